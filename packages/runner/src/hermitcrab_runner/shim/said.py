"""What the foreign runner said, on its way to the host: found in its file, sent once, and marked there as delivered."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from hermitcrab_runner.logs import note
from hermitcrab_runner.prompt import Destination
from hermitcrab_runner.shim import refusal
from hermitcrab_runner.shim.inbound import InboundFile
from hermitcrab_runner.shim.outbound import OutboundFile
from hermitcrab_runner.shim.times import parse_time
from hermitcrab_runner.shim.translate import NOWHERE, OutRow, Place, Unsendable, content_text, way_of
from hermitcrab_wire import frames

RESENT_AT_MOST = 64
"""Without the file that tells what was delivered, only the newest may not have been."""

_NOTES_AT_MOST = 8


class Said:
    def __init__(
        self,
        *,
        send: Callable[[frames.Frame], None],
        log: Callable[[str], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._send, self._log, self._wall = send, log, wall
        self.destinations: Sequence[Destination] = ()
        self.home: Place = NOWHERE
        self._sent: dict[str, OutRow] = {}
        """Neither committed nor refused yet."""
        self._postponed: list[OutRow] = []
        self._said_before: Counter[tuple[str, ...]] = Counter()
        self._told: set[str] = set()

    @property
    def due_at(self) -> float | None:
        """When the first of what was postponed is due, on the wall clock."""
        times = [at for each in self._postponed if (at := parse_time(each.deliver_after)) is not None]
        return min(times, default=None)

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
        if (at := parse_time(out.deliver_after)) is not None and at > self._wall():
            self._postponed.append(out)
            return
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
        self._send(frames.Out(id=out.id, kind=out.kind, content=out.content, to=way.to, in_reply_to=way.in_reply_to))

    def take_due(self, inbound: InboundFile) -> None:
        due, now = self._postponed, self._wall()
        self._postponed = []
        for out in due:
            if (parse_time(out.deliver_after) or 0.0) <= now:
                self.take(out._replace(deliver_after=None), inbound, repeatable=False)
            else:
                self._postponed.append(out)

    def committed(self, key: str, inbound: InboundFile) -> None:
        if self._sent.pop(key, None) is not None:
            inbound.delivered(key, "delivered")

    def refused(self, frame: frames.Refused, inbound: InboundFile) -> None:
        out = self._sent.pop(frame.id or "", None)
        if out is not None:
            self._refused(out, inbound, frame.text)

    def turn_ended(self) -> None:
        """What was broken off has been worked on again: from here on, nothing counts as a repeat."""
        self._said_before.clear()

    def _refused(self, out: OutRow, inbound: InboundFile, reason: str) -> None:
        self._log(f"not sent: {out.action} {out.id}: {reason}")
        inbound.delivered(out.id, "failed")
        rows = refusal.rows(out, reason, now=self._wall(), told=self._told)
        if rows and len(self._told) <= _NOTES_AT_MOST:
            inbound.write(rows)


def repeated(outs: Sequence[OutRow], ids: set[str], since: float) -> list[OutRow]:
    """What turns for rows `ids` may have said since they began, among the newest `outs`."""
    return [
        out
        for out in outs
        if (out.in_reply_to is None or out.in_reply_to in ids)
        and ((at := parse_time(out.timestamp)) is None or at >= since)
    ]


def _words(out: OutRow) -> tuple[str, ...]:
    place = tuple(part or "" for part in out.place)
    return (out.kind, *place, content_text(_without_ids(out.content)))


def _without_ids(content: dict[str, Any]) -> dict[str, Any]:
    """Ids are new in each attempt."""
    return {key: value for key, value in content.items() if key not in {"questionId", "requestId", "taskId"}}
