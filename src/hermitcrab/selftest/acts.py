"""The faults themselves, done to a scratch installation from outside, as the world does them."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import anyio
import anyio.abc

from hermitcrab.containers.engine import Engine
from hermitcrab.control.client import ControlClient
from hermitcrab.errors import EngineError, HermitcrabError, HostUnreachableError
from hermitcrab.model.container import ContainerStatus, ContainerView
from hermitcrab.selftest.daemons import Daemon
from hermitcrab.selftest.disk import fill_disk
from hermitcrab.selftest.jumping_clock import JumpingClock
from hermitcrab.selftest.schedule import Event, Fault
from hermitcrab.testing.host_process import HostProcess

BACK_WITHIN_S = 240.0
AGAIN_AFTER_S = 0.1


class Acts:
    """Use as: `async with anyio.create_task_group() as tasks: await acts.do(event, tasks)`, event by event."""

    def __init__(
        self, host: HostProcess, engine: Engine, *, disk: Path | None, daemon: Daemon | None, clock: JumpingClock
    ) -> None:
        self._host, self._engine = host, engine
        self._disk, self._daemon, self._clock = disk, daemon, clock
        self.done: Counter[Fault] = Counter()
        self.passed_over: Counter[Fault] = Counter()
        """There was nothing that it could be done to at that moment."""
        self.last: Fault | None = None

    @staticmethod
    def possible(*, disk: Path | None, daemon: Daemon | None) -> list[Fault]:
        without = {Fault.FILL_DISK} if disk is None else set()
        without |= {Fault.KILL_ENGINE} if daemon is None else set()
        return [fault for fault in Fault if fault not in without]

    async def do(self, event: Event, tasks: anyio.abc.TaskGroup) -> None:
        """One fault; what lasts goes on in `tasks`."""
        did = True
        self.last = event.fault
        match event.fault:
            case Fault.KILL_HOST:
                await self._host.kill()
                await self.have_host()
            case Fault.STALL_HOST:
                did = await self._stall_host(event.seconds)
            case Fault.KILL_RUNNER:
                did = await self._signal_runner(event, signal.SIGKILL)
            case Fault.STALL_RUNNER:
                did = await self._stall_runner(event, tasks)
            case Fault.REMOVE_CONTAINER:
                did = await self._remove(event)
            case Fault.CUT_LINK:
                did = await self._ask_about("sessions.reconnect", event, "reconnected")
            case Fault.CUT_GATEWAY:
                did = await self._ask("gateway.reopen", "reopened")
            case Fault.STOP_SESSION:
                did = await self._ask_about("sessions.stop", event, "stopped")
            case Fault.FILL_DISK:
                assert self._disk is not None
                tasks.start_soon(fill_disk, self._disk, event.seconds)
            case Fault.JUMP_CLOCK:
                self._clock.set(event.clock_s)
            case Fault.KILL_ENGINE:
                assert self._daemon is not None
                await self._daemon.restart()
        (self.done if did else self.passed_over)[event.fault] += 1

    def undo(self) -> None:
        """What does not end by itself."""
        self._clock.set(0.0)

    async def have_host(self) -> None:
        """Start the host, again and again where it cannot: the disk may be full just now.

        Raises HostUnreachableError when it does not come up for long after that.
        """
        try:
            with anyio.fail_after(BACK_WITHIN_S):
                await self._host.start()
                while not self._host.alive:
                    await anyio.sleep(AGAIN_AFTER_S)
                    await self._host.start()
        except TimeoutError as error:
            raise HostUnreachableError(
                "The host did not come up for a long time.", hint="Run it again with --log FILE, which says why."
            ) from error

    async def _stall_host(self, seconds: float) -> bool:
        if not self._host.alive:
            return False
        self._host.send(signal.SIGSTOP)
        try:
            await anyio.sleep(seconds)
        finally:
            self._host.send(signal.SIGCONT)
        return True

    async def _running(self, event: Event) -> ContainerView | None:
        """The container that the event is for: of those that run, as many as there are."""
        try:
            found = await self._engine.containers()
        except EngineError:
            return None
        running = sorted((view for view in found if view.status is ContainerStatus.RUNNING), key=lambda view: view.name)
        return running[event.session % len(running)] if running else None

    async def _signal_runner(self, event: Event, number: signal.Signals) -> bool:
        view = await self._running(event)
        if view is None or view.pid is None:
            return False
        return _send(view.pid, number)

    async def _stall_runner(self, event: Event, tasks: anyio.abc.TaskGroup) -> bool:
        view = await self._running(event)
        if view is None or view.pid is None or not _send(view.pid, signal.SIGSTOP):
            return False

        async def go_on(pid: int) -> None:
            await anyio.sleep(event.seconds)
            _send(pid, signal.SIGCONT)

        tasks.start_soon(go_on, view.pid)
        return True

    async def _remove(self, event: Event) -> bool:
        view = await self._running(event)
        if view is None:
            return False
        try:
            await self._engine.remove(view.name)
        except EngineError:
            return False  # Somebody else was faster, or the engine is away just now.
        return True

    async def _ask_about(self, method: str, event: Event, answer: str) -> bool:
        view = await self._running(event)
        return view is not None and await self._ask(method, answer, session=view.session)

    async def _ask(self, method: str, answer: str, **about: str) -> bool:
        try:
            async with ControlClient.connect(self._host.home) as client:
                return bool((await client.call(method, **about))[answer])
        except HermitcrabError:
            return False  # The host is away, or does not know that one any more.


def _send(pid: int, number: signal.Signals) -> bool:
    """Pid by an engine that was asked just now; it is the main process of one of this scratch home's containers."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
