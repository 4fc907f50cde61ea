"""An engine's service for one self-test alone, so that ending it disturbs nobody else.

Podman's service is only a door to what lies on the disk, and any user can open another. Docker's is a daemon with
storage of its own: as root, one is started beside the machine's, and the image that containers need is copied into it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

import anyio
from anyio import to_thread

from hermitcrab.containers.engines import bubblewrap_processes as process
from hermitcrab.containers.engines.bubblewrap_processes import Process
from hermitcrab.containers.engines.docker_api import find_socket
from hermitcrab.containers.images.desk import default_tag
from hermitcrab.errors import EngineError, Failure
from hermitcrab.selftest.disk import unmount
from hermitcrab.settings.model import ContainerSettings
from hermitcrab.settings.sockets import connect_unix

ANSWERS_WITHIN_S = 60.0
ENDS_WITHIN_S = 30.0
AGAIN_AFTER_S = 0.1
STARTED_AGAIN_AFTER_S = 2.0
"""What the unit files of services say: what is left of the one that died may need a moment to go."""


class Daemon(Protocol):
    socket: Path

    async def start(self) -> None:
        """Return when it answers; if it does so already, at once."""

    async def restart(self) -> None:
        """SIGKILL, and start again."""


class Service:
    """A child that answers on a socket. `command` names that socket."""

    def __init__(self, command: list[str], *, socket: Path, log: Path) -> None:
        self.socket = socket
        self._command, self._log = command, log
        self._child: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Return when it answers. One that ends at once, as its predecessor has not let go yet, is started again.

        Raises EngineError when it does not answer for long.
        """
        with anyio.move_on_after(ANSWERS_WITHIN_S):
            while True:
                if self._child is None or self._child.poll() is not None:
                    self.socket.unlink(missing_ok=True)
                    self._child = await to_thread.run_sync(self._begin)
                if await to_thread.run_sync(_answers, self.socket):
                    return
                await anyio.sleep(AGAIN_AFTER_S)
        raise EngineError(Failure.RUNTIME_UNAVAILABLE, f"{self._command[0]} did not come up: {self.last_words()}")

    def _begin(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            # Of a session of its own, so that a Ctrl-C is for the self-test alone, which ends it last.
            return subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    async def restart(self) -> None:
        await self.end(signal.SIGKILL)
        await anyio.sleep(STARTED_AGAIN_AFTER_S)
        await self.start()

    async def end(self, number: signal.Signals) -> None:
        child = self._child
        if child is None:
            return
        child.send_signal(number)
        try:
            await to_thread.run_sync(lambda: child.wait(ENDS_WITHIN_S))
        except subprocess.TimeoutExpired:
            child.kill()
            await to_thread.run_sync(child.wait)

    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return lines[-1][:300] if lines else "it said nothing"


def _answers(socket: Path) -> bool:
    try:
        with connect_unix(socket, timeout_s=ANSWERS_WITHIN_S) as connection:
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


@asynccontextmanager
async def own_daemon(folder: Path, settings: ContainerSettings) -> AsyncIterator[Daemon | None]:
    """A service of our own for the engine of these settings; None where there is none to start, or none may be."""
    match settings.engine:
        case "podman" if shutil.which("podman") is not None:
            command = ["podman", "system", "service", "--time", "0", f"unix://{folder / 'podman.sock'}"]
            async with _running(Service(command, socket=folder / "podman.sock", log=folder / "podman.log")) as service:
                yield service
        case "docker" if os.geteuid() == 0 and shutil.which("dockerd") and shutil.which("docker"):
            with docker_folders(folder):
                async with _running(dockerd(folder)) as service:
                    image, machines = settings.image or default_tag(), find_socket("docker", settings.docker_socket)
                    await _copy_image(image, source=machines, target=service.socket)
                    yield service
        case _:
            yield None


@asynccontextmanager
async def _running(service: Service) -> AsyncIterator[Service]:
    try:
        await service.start()
        yield service
    finally:
        with anyio.CancelScope(shield=True):
            await service.end(signal.SIGTERM)


def dockerd(folder: Path, *options: str) -> Service:
    """A Docker that keeps everything in that folder, but what must have a short path: that is in `_run_folder`."""
    run = _run_folder(folder)
    command = ["dockerd", f"--host=unix://{run / 'docker.sock'}", f"--pidfile={run / 'pid'}"]
    command += [f"--data-root={folder / 'docker'}", f"--exec-root={run / 'exec'}"]
    # A containerd that the machine has may serve another Docker, whose containers are none of ours.
    command += [f"--containerd-namespace={folder.name}", f"--containerd-plugins-namespace={folder.name}-plugins"]
    # Containers have no network here, and a test must not change the machine's.
    command += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
    return Service([*command, *options], socket=run / "docker.sock", log=folder / "docker.log")


def _run_folder(folder: Path) -> Path:
    """A socket's path holds 107 bytes, whatever TMPDIR says."""
    return Path("/run") / folder.name


@contextmanager
def docker_folders(folder: Path) -> Iterator[None]:
    """What `dockerd` needs, for as long as the block lasts."""
    run = _run_folder(folder)
    run.mkdir(mode=0o700)
    try:
        yield
    finally:
        process.end_all(lambda: _shims(folder.name), ENDS_WITHIN_S)
        _unmount_below(folder / "docker")
        _unmount_below(run)
        shutil.rmtree(run)


async def _copy_image(image: str, *, source: str, target: Path) -> None:
    """Raises EngineError when the machine's Docker does not have it."""

    def copy() -> str:
        save = ["docker", "--host", f"unix://{source}", "save", image]
        load = ["docker", "--host", f"unix://{target}", "load", "--quiet"]
        with subprocess.Popen(save, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as saving:
            loaded = subprocess.run(load, stdin=saving.stdout, capture_output=True, check=False)
            assert saving.stderr is not None
            why = saving.stderr.read() + loaded.stderr
        return "" if saving.returncode == 0 == loaded.returncode else why.decode(errors="replace").strip()

    if why := await to_thread.run_sync(copy):
        raise EngineError(
            Failure.IMAGE_UNAVAILABLE,
            f"The image {image} cannot be copied into a Docker for the test: {why[-300:]}",
            hint="crab image build --engine docker makes the agent image.",
        )


def _shims(namespace: str) -> Iterator[Process]:
    """What a containerd that was killed has left of its containers."""
    for pid in process.pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            shim = process.identify(pid)
            if shim is not None and namespace in words and Path(words[0]).name.startswith("containerd-shim"):
                yield shim


def _unmount_below(place: Path) -> None:
    """What a daemon that was killed has left mounted at or below that place, the innermost first."""
    if not place.exists():
        return
    with Path("/proc/self/mountinfo").open() as lines:
        targets = [Path(line.split(" ")[4]) for line in lines]
    for target in reversed(targets):
        if place == target or place in target.parents:
            unmount(target)
