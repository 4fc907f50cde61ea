"""A host of one session, as a runner sees it: for tests of runners and providers.

It keeps what it commits in memory, answers like the real host, and can be told to break the link, to withhold answers
or to forget everything that was not committed. `running_runner` starts the real runner as a process on it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

import hermitcrab_runner
from hermitcrab.settings.sockets import bind_unix
from hermitcrab_wire import frames
from hermitcrab_wire.codec import LineBuffer, decode, encode
from hermitcrab_wire.limits import PROTOCOL
from hermitcrab_wire.parsing import parse

SOCKET_NAME = "link.sock"
_READ_BYTES = 64 * 1024
_RUNNER_SOURCE = str(Path(hermitcrab_runner.__file__ or "").resolve().parent.parent)


@dataclass(frozen=True, slots=True)
class Completion:
    """How a row ended. `failed` is None when it was answered."""

    turn: str
    failed: str | None


class FakeHost:
    def __init__(self, folder: Path, *, config: Mapping[str, Any], destinations: Sequence[Mapping[str, Any]]) -> None:
        self.path = folder / SOCKET_NAME
        self.config = dict(config)
        self.destinations = [dict(each) for each in destinations]
        self.generation = 1
        self.rows: dict[str, dict[str, Any]] = {}
        """Every row given to `push`, by id."""
        self.done: dict[str, Completion] = {}
        self.outs: dict[str, dict[str, Any]] = {}
        """What was said, by id, in the order of its commit."""
        self.state: dict[str, str] = {}
        self.files: dict[str, bytearray] = {}
        """What came of files, by id."""
        self.stored: set[str] = set()
        """Ids of files that came whole."""
        self.received: list[frames.Frame] = []
        """Every frame from every runner, in order."""
        self.withheld: set[type[frames.Frame]] = set()
        """Kinds of frames that are dropped unread, as by a host that dies just then."""
        self.unanswered: set[type[frames.Frame]] = set()
        """Kinds of frames that are committed, but whose acknowledgement is lost."""
        self.refusals: dict[str, str] = {}
        """Codes to refuse a frame with, once, by its id or turn."""
        self.refused_kinds: set[str] = set()
        """Kinds of outs that are refused."""
        self.routing: dict[str, Any] | None = None
        """The session's own chat."""
        self._stream: anyio.abc.ByteStream | None = None
        """The link's. There may be older ones whose end has not been noticed."""
        self._streams: list[anyio.abc.ByteStream] = []
        self._changed = anyio.Event()

    @property
    def texts(self) -> list[str]:
        """What was said, in order."""
        return [out["content"]["text"] for out in self.outs.values()]

    @property
    def connected(self) -> bool:
        return self._stream is not None

    def of_kind(self, kind: type[frames.Frame]) -> list[Any]:
        return [frame for frame in self.received if isinstance(frame, kind)]

    async def push(self, *rows: Mapping[str, Any]) -> None:
        """Accept rows, as if a channel had brought them, and hand them to the runner if there is one."""
        for row in rows:
            self.rows[row["id"]] = dict(row)
        if self._stream is not None:
            await _send(self._stream, frames.Inbound(rows=[dict(row) for row in rows]))

    async def say(self, frame: frames.Frame) -> None:
        assert self._stream is not None, "no runner is connected"
        await _send(self._stream, frame)

    async def cut(self) -> None:
        """Break the link. What was on its way is lost; the runner may dial again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            # Its own task hears of it, and closes it: a stream is not to be closed while another task waits on it.
            stream.extra(anyio.abc.SocketAttribute.raw_socket).shutdown(socket.SHUT_RDWR)
            await self.until(lambda _host: stream not in self._streams)

    async def until(self, condition: Callable[[FakeHost], bool]) -> None:
        """Wait for something to become true of this host. The test's own timeout is the deadline."""
        while not condition(self):
            await self._changed.wait()

    async def answered(self, *ids: str) -> None:
        await self.until(lambda host: all(key in host.done for key in ids))

    async def _serve(self, stream: anyio.abc.ByteStream) -> None:
        self._streams.append(stream)
        buffer = LineBuffer()
        try:
            while True:
                for line in buffer.feed(await stream.receive(_READ_BYTES)):
                    frame = parse(decode(line), frames.FROM_RUNNER)
                    if stream is not self._stream and not isinstance(frame, frames.Hello):
                        continue
                    self.received.append(frame)
                    if type(frame) not in self.withheld:
                        await self._handle(frame, stream)
                    self._tell()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            self._streams.remove(stream)
            if self._stream is stream:
                self._stream = None
            self._tell()
            await stream.aclose()

    async def _handle(self, frame: frames.Frame, stream: anyio.abc.ByteStream) -> None:
        if not isinstance(frame, frames.Claim):
            key = str(getattr(frame, "turn", None) or getattr(frame, "id", None))
            if (code := self.refusals.pop(key, None)) is not None:
                await _send(stream, frames.Refused(code=code, text="as the test wants it", id=key))
                return
        answer: frames.Frame | None = None
        match frame:
            case frames.Out() if frame.kind in self.refused_kinds:
                answer = frames.Refused(code="unknown-kind", text=f"no kind {frame.kind} here", id=frame.id)
            case frames.Hello():
                await self._greet(frame, stream)
            case frames.Claim():
                answer = frames.Claimed(turn=frame.turn)
            case frames.Out():
                self._commit(frame.to_json())
                answer = frames.Committed(id=frame.id)
            case frames.FileBegin():
                answer = frames.FileReady(id=frame.id, offset=len(self.files.setdefault(frame.id, bytearray())))
            case frames.FileChunk():
                received = self.files[frame.id]
                if frame.offset == len(received):
                    received += base64.b64decode(frame.data, validate=True)
                answer = frames.FileReady(id=frame.id, offset=len(received))
            case frames.FileEnd():
                assert hashlib.sha256(self.files[frame.id]).hexdigest() == frame.sha256
                self.stored.add(frame.id)
                answer = frames.FileStored(id=frame.id)
            case frames.SetState():
                self.state.pop(frame.key, None)
                if frame.value is not None:
                    self.state[frame.key] = frame.value
                answer = frames.Committed(id=frame.id)
            case frames.Complete():
                for out in frame.outs:
                    self._commit(out)
                for key in frame.ids:
                    self.done.setdefault(key, Completion(frame.turn, frame.failed))
                answer = frames.Completed(turn=frame.turn)
            case _:
                pass
        if answer is not None and type(frame) not in self.unanswered:
            await _send(stream, answer)

    async def _greet(self, hello: frames.Hello, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        if hello.generation != self.generation:
            await _send(stream, frames.Refused(code="stale-generation", text="another generation has this socket"))
            return
        await _send(
            stream,
            frames.Welcome(
                protocol=PROTOCOL,
                generation=self.generation,
                session="session",
                config=self.config,
                destinations=self.destinations,
                state=dict(self.state),
                routing=self.routing,
            ),
        )
        held = set(hello.holds) if hello.resumes else set()
        waiting = [row for key, row in self.rows.items() if key not in self.done and key not in held]
        if waiting:
            await _send(stream, frames.Inbound(rows=waiting))

    def _commit(self, out: Mapping[str, Any]) -> None:
        said = {key: value for key, value in out.items() if key != "type"}
        assert self.stored.issuperset(said.get("files") or ()), "a file that did not come before its message"
        known = self.outs.setdefault(said["id"], said)
        assert known["content"] == said["content"], "one id for two different things said"

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


async def _send(stream: anyio.abc.ByteStream, frame: frames.Frame) -> None:
    await stream.send(encode(frame.to_json()))


@asynccontextmanager
async def fake_host(
    folder: Path,
    *,
    config: Mapping[str, Any] | None = None,
    destinations: Sequence[Mapping[str, Any]] = (),
) -> AsyncIterator[FakeHost]:
    host = FakeHost(folder, config=config or {}, destinations=destinations)
    listener = await anyio.abc.SocketListener.from_socket(bind_unix(folder, SOCKET_NAME, 0o666))
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, host._serve)  # noqa: SLF001  # both belong to this file
        yield host
        group.cancel_scope.cancel()


def row(key: str, text: object = "hello", *, trigger: bool = True, **fields: Any) -> dict[str, Any]:
    """An inbound row as the host pushes it."""
    return {
        "id": key,
        "seq": 2,
        "kind": "chat",
        "timestamp": "2026-11-23T09:10:00.000Z",
        "trigger": trigger,
        "content": {"text": text, "sender": "Ada"},
        "channel_type": "terminal",
        "platform_id": "main",
        "thread_id": None,
        **fields,
    }


@asynccontextmanager
async def running_runner(
    host: FakeHost,
    *,
    provider: str = "echo",
    env: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    **options: Any,
) -> AsyncIterator[anyio.abc.Process]:
    """The real runner as a process on `host`; killed on the way out if it still runs. `options` as for open_process."""
    variables = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": _RUNNER_SOURCE,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HERMITCRAB_LINK": str(host.path),
        "HERMITCRAB_GENERATION": str(host.generation),
        "HERMITCRAB_PROVIDER": provider,
        "TZ": "UTC",
        **(env or {}),
    }
    command = [sys.executable, "-P", "-S", "-m", "hermitcrab_runner", *arguments]
    options.setdefault("stderr", None)
    process = await anyio.open_process(
        command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **options
    )
    async with process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
