"""What the foreign runner said, on its way to the host: found in its file, sent once, and marked there as delivered.

In order: a message with files holds back what was said after it until they are with the host.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from hermitcrab_runner.logs import note
from hermitcrab_runner.prompt import Destination
from hermitcrab_runner.rows import text_of
from hermitcrab_runner.shim import outbox, refusal
from hermitcrab_runner.shim.inbound import InboundFile
from hermitcrab_runner.shim.layout import Workspace
from hermitcrab_runner.shim.outbound import OutboundFile
from hermitcrab_runner.shim.times import iso_time, parse_time
from hermitcrab_runner.shim.translate import NOWHERE, OutRow, Place, Unsendable, content_text, way_of
from hermitcrab_wire import frames
from hermitcrab_wire.limits import MAX_FILES_IN_A_MESSAGE

RESENT_AT_MOST = 64
"""Without the file that tells what was delivered, only the newest may not have been."""

_NOTES_AT_MOST = 8
_TASK_LOG = "task_log"


class _Leaving:
    """A message at the head of the queue, with its files."""

    def __init__(self, out: OutRow, files: list[outbox.OutFile]) -> None:
        self.out = out
        self.files = files
        self.stored = 0
        self.upload: outbox.Upload | None = None


class Said:
    def __init__(
        self,
        workspace: Workspace,
        *,
        send: Callable[[frames.Frame], None],
        log: Callable[[str], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._workspace = workspace
        self._send, self._log, self._wall = send, log, wall
        self.destinations: Sequence[Destination] = ()
        self.home: Place = NOWHERE
        self._queue: deque[OutRow] = deque()
        self._leaving: _Leaving | None = None
        self._sent: dict[str, OutRow] = {}
        """Neither committed nor refused yet."""
        self._said_before: Counter[tuple[str, ...]] = Counter()
        self._told: set[str] = set()

    @property
    def busy(self) -> bool:
        """Something that was said is not on its way yet."""
        return bool(self._queue) or self._leaving is not None

    def begin(self, inbound: InboundFile, outbound: OutboundFile, *, repeated: Sequence[OutRow]) -> None:
        """Send what an earlier container said and nobody took. `repeated`: what a turn that begins again had said."""
        self._said_before = Counter(map(_words, repeated))
        delivered: list[str] = []
        left: list[OutRow | Unsendable] = []
        while found := outbound.said():
            for out in found:
                if out.id is not None and inbound.is_delivered(out.id):
                    delivered.append(out.id)
                else:
                    left.append(out)
        if inbound.fresh:
            for out in left[:-RESENT_AT_MOST]:
                if out.id is not None:
                    inbound.delivered(out.id, "delivered")
            left = left[-RESENT_AT_MOST:]
        outbound.forget_said(delivered)
        for out in left:
            self.take(out, inbound, repeatable=False)

    def take(self, out: OutRow | Unsendable, inbound: InboundFile, *, repeatable: bool = True) -> None:
        """A row of messages_out: send it, keep it for later, or say why not."""
        if isinstance(out, Unsendable):
            self._log(f"not sent: message {out.id or 'without an id'}, as {out.reason}")
            if out.id is not None:
                inbound.delivered(out.id, "failed")
            return
        if repeatable and self._said_before[_words(out)] > 0:
            # Its turn was broken off after it had said this, and says it again.
            self._said_before[_words(out)] -= 1
            note("said.before", id=out.id)
            inbound.delivered(out.id, "delivered")
            return
        if out.kind == _TASK_LOG:
            # What a task came to, for its owner and for no chat.
            self._log(f"a task's own log: {text_of(out.content.get('text'))}")
            inbound.delivered(out.id, "delivered")
            return
        self._queue.append(out)
        self.go_on(inbound)

    def go_on(self, inbound: InboundFile) -> None:
        """Send what can be sent now."""
        while self._leaving is not None or self._queue:
            leaving = self._leaving = self._leaving or self._open(self._queue.popleft(), inbound)
            if leaving is None:
                continue
            if leaving.stored < len(leaving.files):
                if leaving.upload is None:
                    leaving.upload = outbox.Upload(leaving.files[leaving.stored], self._send)
                return
            self._leaving = None
            self._say(leaving.out, [each.id for each in leaving.files], inbound)

    def reconnected(self) -> None:
        """Frames of files were lost with the link."""
        if self._leaving is not None and self._leaving.upload is not None:
            self._leaving.upload.begin()

    def file_ready(self, frame: frames.FileReady) -> None:
        if (upload := self._upload(frame.id)) is not None:
            upload.ready(frame.offset)

    def file_stored(self, frame: frames.FileStored, inbound: InboundFile) -> None:
        if self._leaving is not None and (upload := self._upload(frame.id)) is not None:
            upload.close()
            self._leaving.stored += 1
            self._leaving.upload = None
            self.go_on(inbound)

    def _upload(self, key: str) -> outbox.Upload | None:
        upload = self._leaving.upload if self._leaving is not None else None
        return upload if upload is not None and upload.file.id == key else None

    def _open(self, out: OutRow, inbound: InboundFile) -> _Leaving | None:
        """With the files that can be sent; None: nothing of it can."""
        files: list[outbox.OutFile] = []
        for name in out.files[:MAX_FILES_IN_A_MESSAGE]:
            try:
                files.append(outbox.open_file(self._workspace, out.id, name))
            except outbox.UnusableError as error:
                self._log(f"not sent: a file of {out.id}: {error}")
                self._tell(out, str(error), inbound)
        if out.files:
            kept = {**out.content, "files": [each.name for each in files]}
            if not files:
                del kept["files"]
                if not kept.get("text"):
                    self._refused(out, inbound, "none of its files can be sent")
                    return None
            out = out._replace(content=kept)
        return _Leaving(out, files)

    def _say(self, out: OutRow, files: list[str], inbound: InboundFile) -> None:
        way = way_of(
            out,
            answered=inbound.place_of(out.in_reply_to) if out.in_reply_to is not None else None,
            latest=inbound.latest_from(out.place),
            home=self.home,
            destinations=self.destinations,
        )
        if way is None:
            self._refused(out, inbound, f"no destination of this agent is {out.place.channel_type}:{out.place[1]}")
            return
        self._sent[out.id] = out
        at = parse_time(out.deliver_after)
        self._send(
            frames.Out(
                id=out.id,
                kind=out.kind,
                content=out.content,
                to=way.to,
                in_reply_to=way.in_reply_to,
                files=files or None,
                deliver_after=iso_time(at) if at is not None and at > self._wall() else None,
            )
        )

    def committed(self, key: str, inbound: InboundFile) -> None:
        out = self._sent.pop(key, None)
        if out is not None:
            inbound.delivered(key, "delivered")
            if out.files:
                outbox.clear(self._workspace, key)

    def refused(self, frame: frames.Refused, inbound: InboundFile) -> None:
        if self._leaving is not None and (upload := self._upload(frame.id or "")) is not None:
            upload.close()
            leaving, self._leaving = self._leaving, None
            for each in leaving.files[leaving.stored + 1 :]:
                os.close(each.descriptor)
            self._refused(leaving.out, inbound, f"{upload.file.name}: {frame.text}")
            self.go_on(inbound)
            return
        out = self._sent.pop(frame.id or "", None)
        if out is not None:
            self._refused(out, inbound, frame.text)

    def turn_ended(self) -> None:
        """What was broken off has been worked on again: from here on, nothing counts as a repeat."""
        self._said_before.clear()

    def _refused(self, out: OutRow, inbound: InboundFile, reason: str) -> None:
        self._log(f"not sent: {out.action} {out.id}: {reason}")
        inbound.delivered(out.id, "failed")
        self._tell(out, reason, inbound)

    def _tell(self, out: OutRow, reason: str, inbound: InboundFile) -> None:
        rows = refusal.rows(out, reason, now=self._wall(), told=self._told)
        if rows and len(self._told) <= _NOTES_AT_MOST:
            inbound.write(rows)


def _words(out: OutRow) -> tuple[str, ...]:
    place = tuple(part or "" for part in out.place)
    return (out.kind, *place, content_text(_without_ids(out.content)))


def _without_ids(content: dict[str, Any]) -> dict[str, Any]:
    """Ids are new in each attempt."""
    return {key: value for key, value in content.items() if key not in {"questionId", "requestId", "taskId"}}
