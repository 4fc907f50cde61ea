"""The faults themselves, done to a scratch installation from outside, as the world does them."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.abc
from anyio import to_thread

from hermitcrab.containers.engine import Engine
from hermitcrab.control.client import ControlClient
from hermitcrab.errors import EngineError, HermitcrabError
from hermitcrab.model.container import ContainerStatus, ContainerView
from hermitcrab.selftest.schedule import Event, Fault
from hermitcrab.testing.host_process import HostProcess

BACK_WITHIN_S = 90.0
SERVICE_WITHIN_S = 30.0
AGAIN_AFTER_S = 0.1

DISK_BYTES = 512 * 1024 * 1024
_FILLED_BYTES = 1024 * 1024


class Acts:
    """Use as: `async with anyio.create_task_group() as tasks: await acts.do(event, tasks)`, event by event."""

    def __init__(self, host: HostProcess, engine: Engine, *, disk: Path | None, service: PodmanService | None) -> None:
        self._host, self._engine, self._disk, self._service = host, engine, disk, service
        self.done: Counter[Fault] = Counter()
        self.passed_over: Counter[Fault] = Counter()
        """There was nothing that it could be done to at that moment."""

    @staticmethod
    def possible(*, disk: Path | None, service: PodmanService | None) -> list[Fault]:
        without = {Fault.FILL_DISK} if disk is None else set()
        without |= {Fault.KILL_ENGINE} if service is None else set()
        return [fault for fault in Fault if fault not in without]

    async def do(self, event: Event, tasks: anyio.abc.TaskGroup) -> None:
        """One fault; what lasts goes on in `tasks`."""
        did = True
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
                did = await self._ask_host("sessions.reconnect", event, "reconnected")
            case Fault.STOP_SESSION:
                did = await self._ask_host("sessions.stop", event, "stopped")
            case Fault.FILL_DISK:
                assert self._disk is not None
                tasks.start_soon(fill_disk, self._disk, event.seconds)
            case Fault.KILL_ENGINE:
                assert self._service is not None
                await self._service.restart()
        (self.done if did else self.passed_over)[event.fault] += 1

    async def have_host(self) -> None:
        """Start the host, again and again where it cannot: the disk may be full just now."""
        with anyio.fail_after(BACK_WITHIN_S):
            await self._host.start()
            while not self._host.alive:
                await anyio.sleep(AGAIN_AFTER_S)
                await self._host.start()

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

    async def _ask_host(self, method: str, event: Event, answer: str) -> bool:
        view = await self._running(event)
        if view is None:
            return False
        try:
            async with ControlClient.connect(self._host.home) as client:
                return bool((await client.call(method, session=view.session))[answer])
        except HermitcrabError:
            return False  # The host is away, or does not know that one any more.


def _send(pid: int, number: signal.Signals) -> bool:
    """Pid by an engine that was asked just now; it is the main process of one of this scratch home's containers."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


async def fill_disk(disk: Path, seconds: float) -> None:
    """Take every byte that is left on the small disk, for a while."""
    ballast = disk / f"ballast-{secrets.token_hex(4)}"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            block = bytes(_FILLED_BYTES)
            while block:
                try:
                    file.write(block)
                except OSError:
                    block = block[: len(block) // 2]

    await to_thread.run_sync(fill)
    try:
        await anyio.sleep(seconds)
    finally:
        ballast.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk of DISK_BYTES in memory at `folder`, or None where this user may mount nothing."""
    mounted = False
    if os.geteuid() == 0 and shutil.which("mount") is not None:
        options = f"size={DISK_BYTES},mode=755"
        command = ["mount", "-t", "tmpfs", "-o", options, "hermitcrab-selftest", str(folder)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


class PodmanService:
    """A service of Podman's own API for this test alone: ending it disturbs nobody else."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "podman.sock"
        self._log = folder / "podman.log"
        self._child: subprocess.Popen[bytes] | None = None

    @staticmethod
    def is_possible() -> bool:
        return shutil.which("podman") is not None

    async def start(self) -> None:
        command = ["podman", "system", "service", "--time", "0", f"unix://{self.socket}"]
        self.socket.unlink(missing_ok=True)

        def start() -> subprocess.Popen[bytes]:
            with self._log.open("ab") as log:
                return subprocess.Popen(command, stdout=log, stderr=log)

        self._child = await to_thread.run_sync(start)
        with anyio.fail_after(SERVICE_WITHIN_S):
            while not self.socket.exists():  # noqa: ASYNC110  # another process makes it, and tells nobody
                await anyio.sleep(AGAIN_AFTER_S)

    async def restart(self) -> None:
        """SIGKILL, and start again. Containers go on without it."""
        await self.stop()
        await self.start()

    async def stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            await to_thread.run_sync(self._child.wait)


@asynccontextmanager
async def podman_service(folder: Path, engine: str) -> AsyncIterator[PodmanService | None]:
    """A service of our own for the engine `podman`; None for the others, whose daemon is not ours to end."""
    if engine != "podman" or not PodmanService.is_possible():
        yield None
        return
    service = PodmanService(folder)
    await service.start()
    try:
        yield service
    finally:
        with anyio.CancelScope(shield=True):
            await service.stop()
