"""A person's end of one group's terminal chat.

It stays attached over restarts of the host, shows no message twice, and repeats a send that was cut off under the same
id, so that the host takes it once. Used by `crab chat`, with and without a text, and by `crab demo`.
"""

from __future__ import annotations

import base64
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from anyio.abc import TaskStatus

from hermitcrab.channels.terminal.render import checked_text, one_line, plain, text_of
from hermitcrab.cli.files import LocalFile, save
from hermitcrab.control.client import ControlClient
from hermitcrab.errors import HermitcrabError, HostUnreachableError, NotFoundError
from hermitcrab.model.ids import new_id
from hermitcrab.settings.home import Home
from hermitcrab_wire.limits import FILE_CHUNK_BYTES

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 2.0

REMEMBERED = 4096
"""Ids of shown messages that are kept to recognise a repeat."""

SETTLED_WITHOUT_US = frozenset({"failed", "refused", "unknown-after-crash"})
"""States of a delivery after which it comes no more."""

LOOKED_EVERY_S = 0.5
"""How often a message's state is looked at while nothing arrives: an agent may also end a turn in silence."""

Json = dict[str, Any]


SENT_AT_MOST = 3
"""Attempts at a message with files, when hosts start meanwhile."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A file of the agent's."""

    name: str
    path: Path | None
    """None: another terminal was faster to save it."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that is on the host's disk."""

    id: str
    heard_by: tuple[tuple[str, str], ...]
    """(session, row) for each agent that heard it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that was said to one message."""

    failed: bool
    messages: tuple[Json, ...]


class Terminal:
    """Use as `await tasks.start(terminal.run)`; then `send` and `answer_to`."""

    def __init__(
        self,
        home: Home,
        group: str,
        *,
        folder: Path | None = None,
        show: Callable[[Json], None],
        typing: Callable[[], None] = lambda: None,
        reached: Callable[[bool], None] = lambda _reached: None,
        trouble: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """`folder`: where files of the agent are saved. `trouble`: told why one could not be, and its message waits."""
        self._home, self._group = home, group
        self._folder = folder if folder is not None else home.received / group
        self.saved: dict[str, list[Saved]] = {}
        """Files of messages that came, by the message's key."""
        self._trouble, self._troubles = trouble, set[str]()
        self._show, self._typing, self._reached = show, typing, reached
        self._client: ControlClient | None = None
        self._connected = anyio.Event()
        self._ever_connected = False
        self._attachment = ""
        self._message_bytes = 0
        self._shown: OrderedDict[str, None] = OrderedDict()
        self._acknowledged: OrderedDict[str, None] = OrderedDict()
        self._arrived = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Stay attached until cancelled. Raises HostUnreachableError only when no host answers at the beginning."""
        delay_s = FIRST_RETRY_S
        while True:
            try:
                async with (
                    ControlClient.connect(self._home) as client,
                    aclosing(client.stream("chat.attach", group=self._group)) as events,
                ):
                    async for event in events:
                        if event["kind"] == "attached":
                            self._attach(client, event)
                            delay_s = FIRST_RETRY_S
                            task_status.started()
                            task_status = anyio.TASK_STATUS_IGNORED
                        elif event["kind"] == "typing":
                            self._typing()
                        else:
                            await self._take(client, event)
            except HostUnreachableError:
                if not self._ever_connected:
                    raise
            finally:
                self._detach(self._client)
            await anyio.sleep(delay_s)
            delay_s = min(2 * delay_s, LAST_RETRY_S)

    async def send(self, text: str, files: Sequence[LocalFile] = ()) -> Sent:
        """Returns once the message is on the host's disk, however often the host goes away meanwhile.

        `files` must stay open until then.
        """
        await self._connected.wait()
        if text or not files:
            checked_text(text, most_bytes=self._message_bytes)
        message_id = new_id("term", int(time.time() * 1000))
        taken = await self._say(message_id, text, files)
        return Sent(message_id, tuple((each["session"], each["row"]) for each in taken["heard_by"]))

    async def _say(self, message_id: str, text: str, files: Sequence[LocalFile]) -> Json:
        words = {"text": text} if text else {}
        if not files:
            return await self.call("chat.send", group=self._group, id=message_id, **words)
        named = [
            {"id": f"{message_id}-{number}", "name": each.name, "sha256": each.sha256}
            for number, each in enumerate(files)
        ]
        attempt = 1
        while True:
            for given, file in zip(named, files, strict=True):
                await self._upload(given["id"], file)
            try:
                return await self.call("chat.send", group=self._group, id=message_id, files=named, **words)
            except NotFoundError:
                # A host that started meanwhile has none of the files.
                if attempt == SENT_AT_MOST:
                    raise
            attempt += 1

    async def _upload(self, key: str, file: LocalFile) -> None:
        offset = -1
        while offset < file.size:
            offset = max(0, offset)
            part = await to_thread.run_sync(file.part, offset, FILE_CHUNK_BYTES)
            if not part and offset < file.size:
                raise HermitcrabError(f"{file.name} became shorter while it was sent.", hint="Send it again.")
            data = base64.b64encode(part).decode()
            taken = await self.call(
                "chat.upload", id=key, bytes=file.size, offset=offset, **({"data": data} if data else {})
            )
            offset = int(taken["received"])

    def words(self, message: Json) -> str:
        """What a person reads of a message, and where its files are."""
        content, saved = message["content"], self.saved.get(message["key"])
        if not saved:
            return text_of(content)
        words = {name: value for name, value in content.items() if name != "files"}
        lines = [
            f"[file: {one_line(each.name)} → {plain(str(each.path)) if each.path else 'saved by another terminal'}]"
            for each in saved
        ]
        has_words = bool(words.get("text") or words.get("markdown"))
        return "\n".join(([text_of(words)] if has_words else []) + lines)

    async def answer_to(self, sent: Sent, said: Callable[[Json], None]) -> Answer:
        """Wait until every agent that heard it is done. `said` gets each message as it comes, once."""
        failed = False
        messages: OrderedDict[str, Json] = OrderedDict()
        for session, row in sent.heard_by:
            while True:
                arrived = self._arrived
                state = await self.call("chat.answers", session=session, row=row)
                for out in state["outs"]:
                    key = out["key"]
                    # One that another terminal was faster to show, or that came before a restart, is ours all the same.
                    here = key in self._acknowledged or out["delivery"] == "delivered"
                    if here and key not in messages:
                        messages[key] = out
                        said(out)
                waiting = [
                    out
                    for out in state["outs"]
                    if out["key"] not in messages and out["delivery"] not in SETTLED_WITHOUT_US
                ]
                if state["ended"] and not waiting:
                    failed = failed or state["status"] in {"failed", "quarantined"}
                    break
                with anyio.move_on_after(LOOKED_EVERY_S):
                    await arrived.wait()
        return Answer(failed=failed, messages=tuple(messages.values()))

    async def call(self, method: str, **params: object) -> Json:
        """A request, repeated on the next host when this one goes away before it answers."""
        while True:
            await self._connected.wait()
            client = self._client
            assert client is not None
            try:
                return await client.call(method, **params)
            except HostUnreachableError:
                self._detach(client)

    def _attach(self, client: ControlClient, event: Json) -> None:
        self._client, self._attachment, self._message_bytes = client, event["attachment"], event["message_bytes"]
        self._ever_connected = True
        self._connected.set()
        self._reached(True)

    def _detach(self, client: ControlClient | None) -> None:
        if client is None or client is not self._client:
            return
        self._client = None
        self._connected = anyio.Event()
        self._reached(False)

    async def _take(self, client: ControlClient, event: Json) -> None:
        key = event["key"]
        if not await self._save(key, event.get("files") or []):
            return  # It was not shown: it comes again.
        if key not in self._shown:
            self._show(event)
            _remember(self._shown, key)
        # Only what was acknowledged counts as arrived: who leaves between the two gets it again.
        await client.call("chat.ack", attachment=self._attachment, key=key)
        _remember(self._acknowledged, key)
        self._arrived.set()
        self._arrived = anyio.Event()

    async def _save(self, key: str, files: list[Json]) -> bool:
        """Save the files of a message before anything else of it happens."""
        if not files or key in self.saved:
            return True
        try:
            self.saved[key] = [
                Saved(str(each.get("name")), await to_thread.run_sync(save, self._folder, each)) for each in files
            ]
        except HermitcrabError as error:
            text = f"{error.message} {error.hint}".strip()
            if text not in self._troubles:
                self._troubles.add(text)
                self._trouble(text)
            return False
        return True


def _remember(keys: OrderedDict[str, None], key: str) -> None:
    keys[key] = None
    if len(keys) > REMEMBERED:
        keys.popitem(last=False)
