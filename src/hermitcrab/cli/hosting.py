"""A host in this process, in the foreground, until SIGTERM or SIGINT: what `crab up` runs."""

from __future__ import annotations

import os
import resource
import signal
import socket

import anyio
import structlog

from hermitcrab import __version__
from hermitcrab.app import Host, open_host
from hermitcrab.control.methods import methods
from hermitcrab.control.server import serving
from hermitcrab.observe.logs import configure_logs
from hermitcrab.observe.pauses import forget_imports
from hermitcrab.settings.home import Home, HomeLock
from hermitcrab.settings.load import load

NOTIFY_SOCKET = "NOTIFY_SOCKET"
"""Set by whoever wants to be told when the host is ready: a service manager, or `crab demo`."""

DESCRIPTORS = 65_536

log = structlog.get_logger(__name__)


async def run_host(
    home: Home, *, engine: str | None = None, provider: str | None = None, keep_containers: bool = False
) -> int:
    """The exit code, once it was asked to leave. `engine`, `provider`: in place of what the settings say."""
    home.prepare()
    _allow_many_descriptors()
    with HomeLock(home):
        settings = load(home.path, {"containers.engine": engine, "agents.provider": provider})
        configure_logs(level=settings.logs.level, format=settings.logs.format)
        forget_imports()
        notify = os.environ.pop(NOTIFY_SOCKET, "")
        async with (
            open_host(home, settings, keep_containers=keep_containers) as host,
            serving(home.run, methods(host)),
        ):
            log.info(
                "host.ready",
                version=__version__,
                home=str(home.path),
                engine=settings.containers.engine,
                provider=settings.agents.provider,
                pid=os.getpid(),
            )
            _tell_ready(notify)
            reason = await _until_asked_to_leave(host)
            log.info("host.leaving", reason=reason)
    log.info("host.gone")
    return 0


def _allow_many_descriptors() -> None:
    """Each live session takes a handful of descriptors; the usual soft limit is for programs of another kind."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _until_asked_to_leave(host: Host) -> str:
    """Until a signal or `crab stop`. Afterwards a signal has its ordinary effect again: it ends the process."""
    reason = "asked to stop"

    async def signalled() -> None:
        nonlocal reason
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                reason = signal.Signals(number).name
                host.stop_requested.set()
                return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(signalled)
        await host.stop_requested.wait()
        tasks.cancel_scope.cancel()
    return reason


def _tell_ready(address: str) -> None:
    """The one line of the service managers' readiness protocol; somebody who is not there is not told."""
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(b"READY=1", f"\0{address[1:]}" if address.startswith("@") else address)
        except OSError as error:
            log.warning("host.nobody-told", reason=str(error))
