"""Runners for containers of the fake engine: they speak the link's protocol in this process, and do as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from hermitcrab.logic.spec import RUN
from hermitcrab.model.container import ContainerSpec, ContainerStatus
from hermitcrab.settings.sockets import short_address
from hermitcrab.testing.fake_engine import Behaviour, FakeContainer, FakeMachine, FakeProcess
from hermitcrab_wire import codec, frames
from hermitcrab_wire.codec import LineBuffer
from hermitcrab_wire.limits import PROTOCOL
from hermitcrab_wire.parsing import parse

BEAT_S = 5.0
REDIAL_S = 1.0
GIVES_UP_AFTER_S = 120.0
"""Without a host for this long it ends, as the real one does."""


@dataclass(slots=True)
class Script:
    """How runners behave, until the test says otherwise. They look at it again before every step."""

    says_hello: bool = True
    beats: bool = True
    answers: bool = True
    """False: rows are claimed, and the turn goes on and on."""
    obeys: bool = True
    """Drain and SIGTERM are followed."""
    stubborn: set[str] = field(default_factory=set)
    """Sessions whose runners do not follow them."""
    crashes_on: str | None = None
    """A message with this text kills the runner."""
    hangs_up_on: str | None = None
    """A message with this text breaks the link of its runner, once, and is not held."""
    received: list[tuple[str, int, str]] = field(default_factory=list)
    """Session, generation and text of every row that a runner was handed."""
    welcomed: list[tuple[str, int, frames.Welcome]] = field(default_factory=list)
    """Session and generation of every runner that was welcomed, and what it was told."""


class Runners:
    """Give `behaviour` to a `FakeEngine`; its containers then answer `Echo: ...`."""

    def __init__(self, machine: FakeMachine) -> None:
        self.script = Script()
        self._running: dict[str, _Runner] = {}
        """By the container's id."""
        machine.listeners.append(self._ended)
        self._machine = machine

    def behaviour(self, spec: ContainerSpec) -> Behaviour:
        container = self._machine.containers[spec.name]
        return self._running.setdefault(container.id, _Runner(container, self.script))

    def wake_up(self) -> None:
        """The script has changed: runners go on with what they held back."""
        for each in self._running.values():
            each.changed.set()

    @property
    def tasks(self) -> int:
        return len(self._running)

    def _ended(self, container: FakeContainer) -> None:
        if (runner := self._running.pop(container.id, None)) is not None:
            runner.cancel()


class _Runner(Behaviour):
    def __init__(self, container: FakeContainer, script: Script) -> None:
        self._container, self._script = container, script
        self._task: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._held: dict[str, dict[str, object]] = {}
        self._turns: dict[str, list[str]] = {}
        self._count = 0
        self._greeted_before = False
        self._draining = False
        self.changed = asyncio.Event()

    def start(self, process: FakeProcess) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(process))

    def signal(self, process: FakeProcess, number: signal.Signals) -> None:
        if number is signal.SIGTERM and self._obeys:
            process.exit(0)

    @property
    def _obeys(self) -> bool:
        return self._script.obeys and self._container.spec.session not in self._script.stubborn

    def cancel(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        if self._task is not None:
            self._task.cancel()

    async def _run(self, process: FakeProcess) -> None:
        folder = next(Path(mount.source) for mount in process.spec.mounts if mount.target == RUN)
        alone_s = 0.0
        while alone_s < GIVES_UP_AFTER_S:
            await self._thawed()
            if self._script.says_hello:
                with contextlib.suppress(OSError):
                    with short_address(folder / "link.sock") as address:
                        reader, self._writer = await asyncio.open_unix_connection(address)
                    alone_s = 0.0
                    await self._talk(process, reader, self._writer)
            await asyncio.sleep(REDIAL_S)
            alone_s += REDIAL_S
        process.exit(75)

    async def _talk(self, process: FakeProcess, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = frames.Hello(
            protocol=PROTOCOL,
            generation=process.spec.generation,
            provider="echo",
            version="0",
            resumes=self._greeted_before,
            holds=list(self._held),
            writable=[each for each in process.spec.env["HERMITCRAB_WRITABLE"].split(":") if each],
        )
        self._send(hello)
        buffer = LineBuffer()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._beat)
                while data := await reader.read(65536):
                    await self._thawed()
                    for line in buffer.feed(data):
                        self._handle(process, parse(codec.decode(line), frames.FROM_HOST))
                tasks.cancel_scope.cancel()
        finally:
            writer.transport.abort()
            self._writer = None

    def _handle(self, process: FakeProcess, frame: frames.Frame) -> None:
        match frame:
            case frames.Welcome():
                self._greeted_before = True
                self._script.welcomed.append((process.spec.session, process.spec.generation, frame))
                self._work()
            case frames.Inbound():
                for row in frame.rows:
                    self._received(process, row)
                self._work()
            case frames.Completed():
                for key in self._turns.pop(frame.turn, ()):
                    self._held.pop(key, None)
                self._leave_if_drained(process)
            case frames.Drain() if self._obeys:
                self._draining = True
                self._leave_if_drained(process)
            case frames.Refused():
                process.exit(3)
            case _:
                pass

    def _received(self, process: FakeProcess, row: dict[str, object]) -> None:
        content = row["content"]
        text = str(content.get("text")) if isinstance(content, dict) else ""
        self._script.received.append((process.spec.session, process.spec.generation, text))
        if self._script.crashes_on is not None and text == self._script.crashes_on:
            process.exit(70)
            return
        if self._script.hangs_up_on is not None and text == self._script.hangs_up_on:
            self._script.hangs_up_on = None
            if self._writer is not None:
                self._writer.transport.abort()
            return
        self._held[str(row["id"])] = row

    def _work(self) -> None:
        if not self._held:
            return
        self._count += 1
        turn, ids = f"{self._container.id}-{self._count}", list(self._held)
        self._turns[turn] = ids
        self._send(frames.Claim(turn=turn, ids=ids))
        if not self._script.answers:
            return
        outs = [
            {"id": f"out-{key}", "kind": "chat", "content": {"text": f"Echo: {key}"}, "to": None, "in_reply_to": key}
            for key in ids
        ]
        self._send(frames.Complete(turn=turn, ids=ids, outs=outs, failed=None))

    async def _beat(self) -> None:
        while True:
            if self._script.beats:
                await self._thawed()
                self._send(frames.Beat(activity="thinking" if self._held else "idle"))
            if self._held and self._script.answers:
                self._work()
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self.changed.wait()

    def _leave_if_drained(self, process: FakeProcess) -> None:
        if self._draining and not self._held:
            self._send(frames.Bye(reason="drained"))
            process.exit(0)

    async def _thawed(self) -> None:
        while self._container.status is ContainerStatus.FROZEN:
            await self._container.thawed.wait()

    def _send(self, frame: frames.Frame) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(codec.encode(frame.to_json()))
