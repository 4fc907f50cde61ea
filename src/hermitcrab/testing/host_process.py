"""A real host process on a home, and a person at its terminal who stays while it is killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from hermitcrab.channels.terminal.render import text_of
from hermitcrab.control.client import ControlClient
from hermitcrab.errors import HermitcrabError, HostUnreachableError
from hermitcrab.settings.home import Home

WITHIN_S = 300.0
"""For whatever is waited for. Nothing takes this long unless something is wrong, on the busiest machine."""
_LOOK_AGAIN_S = 0.02


class HostProcess:
    """`crab up` as a child. Only this child is ever ended, by its id."""

    def __init__(
        self,
        home: Path,
        *,
        engine: str,
        provider: str = "echo",
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        program: Sequence[str] = ("hermitcrab.cli.main",),
    ) -> None:
        """`log`: where it writes (default: beside the home). `program`: a module that acts as `crab`, and its words."""
        self.home = Home(home)
        self.log = log or home.parent / "host.log"
        self.environment = {
            **os.environ,
            "HERMITCRAB__CONTAINERS__ENGINE": engine,
            "HERMITCRAB__AGENTS__PROVIDER": provider,
            **(env or {}),
        }
        self._program = program
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def cpu_s(self) -> float:
        """CPU time that the running host has used so far."""
        assert self._child is not None
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def start(self, *, env: Mapping[str, str] | None = None, wait: bool = True) -> None:
        """Start it; with `wait`, return when its control socket answers (or it has died)."""
        command = [sys.executable, "-m", *self._program, "up", "--home", str(self.home.path)]
        with self.log.open("ab") as log:
            self._child = await to_thread.run_sync(
                lambda: subprocess.Popen(
                    command,
                    env={**self.environment, **(env or {})},
                    stdout=log,
                    stderr=log,
                    # A Ctrl-C is for whoever started it, who then ends it.
                    start_new_session=True,
                )
            )
        if wait:
            await self.ready()

    async def ready(self) -> None:
        with anyio.fail_after(WITHIN_S):
            while self.alive:
                try:
                    async with ControlClient.connect(self.home) as client:
                        await client.call("status")
                        return
                except HostUnreachableError:
                    await anyio.sleep(_LOOK_AGAIN_S)

    async def died(self, *, within_s: float = WITHIN_S) -> int:
        """The exit code, as soon as it has one; negative for a signal."""
        child = self._child
        assert child is not None
        return await to_thread.run_sync(lambda: child.wait(within_s), abandon_on_cancel=True)

    async def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        if self._child is not None and self.alive:
            self._child.kill()
            await self.died()

    def send(self, number: signal.Signals) -> None:
        """A signal, if it still runs."""
        if self._child is not None and self.alive:
            self._child.send_signal(number)

    async def stop(self) -> int:
        """SIGTERM, and wait until it has ended what runs."""
        if self._child is not None and self.alive:
            self._child.terminate()
        return await self.died()

    def output(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass(slots=True)
class Person:
    """At the terminal of one group: says things, and sees each answer once, as an idempotent channel shows it."""

    home: Home
    group: str = "main"
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Content by delivery key, in the order of first arrival."""
    _news: anyio.Event = field(default_factory=anyio.Event)

    @property
    def texts(self) -> list[str]:
        return [text_of(content) for content in self.seen.values()]

    async def stay(self) -> None:
        """Be attached until cancelled, however often the host goes away."""
        while True:
            try:
                async with ControlClient.connect(self.home) as client:
                    attachment = ""
                    async for event in client.stream("chat.attach", group=self.group):
                        if event["kind"] == "attached":
                            attachment = event["attachment"]
                        elif event["kind"] == "message":
                            if event["key"] not in self.seen:
                                self.seen[event["key"]] = event["content"]
                                self._news.set()
                                self._news = anyio.Event()
                            await client.call("chat.ack", attachment=attachment, key=event["key"])
            except HermitcrabError:
                await anyio.sleep(_LOOK_AGAIN_S)

    async def say(self, key: str, text: str, *, within_s: float = WITHIN_S) -> None:
        """Say it until a host has taken it; a repeat under the same key is the same message."""
        with anyio.fail_after(within_s):
            while True:
                try:
                    async with ControlClient.connect(self.home) as client:
                        await client.call("chat.send", group=self.group, id=key, text=text)
                        return
                except HostUnreachableError:
                    await anyio.sleep(_LOOK_AGAIN_S)

    async def wait_for(self, text: str, *, within_s: float = WITHIN_S) -> None:
        """Until an answer contains `text`."""
        with anyio.fail_after(within_s):
            while not any(text in each for each in self.texts):
                await self._news.wait()


@asynccontextmanager
async def attended(person: Person) -> AsyncIterator[Person]:
    """The person stays for as long as the block lasts."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(person.stay)
        yield person
        tasks.cancel_scope.cancel()
