"""The embedded engine: containers from bubblewrap, with no daemon and no image.

A container is a folder with a record in it and a supervised process that outlives the host. A later host finds both
again by the folder, and learns of the end from a descriptor of the process. Nothing is polled, and no thread or process
of the host's stays with a container. What blocks is in `bubblewrap_sandbox`; this half has the event loop's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread

from hermitcrab.containers.engine import EngineOptions
from hermitcrab.containers.engines import bubblewrap_log, bubblewrap_preflight, bubblewrap_root
from hermitcrab.containers.engines import bubblewrap_processes as process
from hermitcrab.containers.engines.bubblewrap_processes import Process
from hermitcrab.containers.engines.bubblewrap_records import LOG, Processes, Shelf
from hermitcrab.containers.engines.bubblewrap_sandbox import Found, Sandboxes
from hermitcrab.containers.engines.feed import EventFeed
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic import bubblewrap_arguments
from hermitcrab.model.container import (
    Capabilities,
    ContainerSpec,
    ContainerStats,
    ContainerStatus,
    ContainerView,
    EngineEvent,
    Finding,
)

T = TypeVar("T")

THREADS = 8
"""Calls under way at once. Each takes a few milliseconds."""

LOG_CHECK_S = 10.0
"""How often the logs of running containers are looked at: between two looks one can grow without bound."""

KILL_S = 10.0
"""SIGKILL to pid 1 of a pid namespace ends all of it at once, unless a process hangs in the kernel."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,200}")


@dataclass(slots=True)
class _Watch:
    """A process whose end is waited for on the event loop."""

    name: str
    container: str
    process: Process
    then: Process | None
    """Waited for next: the main process, should the supervisor end before it."""
    descriptor: int
    log: str
    log_bytes: int
    ended: anyio.Event = field(default_factory=anyio.Event)


class BubblewrapEngine:
    name = "bubblewrap"

    def __init__(self, options: EngineOptions) -> None:
        self._sandboxes = Sandboxes(options.installation, Shelf(options.folder))
        self._feed = EventFeed()
        self._watches: dict[str, _Watch] = {}
        self._limiter: anyio.CapacityLimiter | None = None
        self._log_timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def capabilities(self) -> Capabilities:
        return await self._call(partial(bubblewrap_preflight.capabilities, self._sandboxes))

    async def preflight(self) -> list[Finding]:
        return await anyio.to_thread.run_sync(bubblewrap_preflight.findings, self._sandboxes)

    async def ensure_image(self, image: str | None) -> None:
        if image is not None:  # The host's own /usr needs no looking for.
            await self._call(partial(bubblewrap_root.check_image, image))

    async def python(self, image: str | None) -> tuple[int, int]:
        if image is None:  # The interpreter that this host runs on.
            return sys.version_info[:2]
        await self.ensure_image(image)
        return await self._call(partial(bubblewrap_root.python_of, image))

    async def create(self, spec: ContainerSpec) -> None:
        bubblewrap_arguments.check(spec)
        await self._call(partial(self._sandboxes.create, spec))

    async def start(self, name: str) -> None:
        _check_name(name)
        found = await self._call(partial(self._sandboxes.start, name))
        if not found.runs and found.processes is not None and found.processes.supervisor is not None:
            # Its end came before anybody could wait for it.
            process.reap(found.processes.supervisor)
            self._feed.publish(EngineEvent(kind="ended", name=name))
        self._watch(found)

    async def freeze(self, name: str) -> None:
        found = await self._running(name)
        if found.view.status is not ContainerStatus.FROZEN:
            await self._call(partial(self._sandboxes.freeze, found))

    async def thaw(self, name: str) -> None:
        found = await self._running(name)
        await self._call(partial(self._sandboxes.thaw, found))

    async def stop(self, name: str, *, grace_s: float) -> None:
        found = await self._find(name)
        if found is None or not found.runs:
            return
        if grace_s <= 0 or not await self._end(found, signal.SIGTERM, grace_s):
            await self._kill(found)

    async def remove(self, name: str) -> None:
        gone = False
        # Once more if it was started just after it was found not to run.
        while not gone:
            found = await self._find(name)
            if found is not None and found.runs:
                await self._kill(found)
            gone = await self._call(partial(self._sandboxes.forget, name))

    async def inspect(self, name: str) -> ContainerView | None:
        found = await self._find(name)
        return None if found is None else found.view

    async def containers(self) -> list[ContainerView]:
        every = await self._call(self._sandboxes.all)
        for found in every:
            self._watch(found)
        return [found.view for found in every]

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        async with self._feed.subscribe() as listener:
            # From here on every container that runs is watched, whoever started it.
            await self.containers()
            yield listener

    async def logs(self, name: str, *, lines: int) -> list[str]:
        found = await self._find(name)
        return [] if found is None else await self._call(partial(self._sandboxes.log, found, lines))

    async def stats(self, name: str) -> ContainerStats:
        found = await self._must_find(name)
        return await self._call(partial(self._sandboxes.usage, found))

    async def aclose(self) -> None:
        self._is_closed = True
        for watch in list(self._watches.values()):
            self._unwatch(watch)
        if self._log_timer is not None:
            self._log_timer.cancel()
            self._log_timer = None
        self._feed.close()
        await anyio.to_thread.run_sync(self._sandboxes.close)

    async def _find(self, name: str) -> Found | None:
        _check_name(name)
        found = await self._call(partial(self._sandboxes.find, name))
        if found is not None:
            self._watch(found)
        return found

    async def _must_find(self, name: str) -> Found:
        found = await self._find(name)
        if found is None:
            raise EngineError(Failure.UNKNOWN, f"There is no container {name}")
        return found

    async def _running(self, name: str) -> Found:
        found = await self._must_find(name)
        if not found.runs:
            raise EngineError(Failure.UNKNOWN, f"The container {name} does not run")
        return found

    async def _end(self, found: Found, number: signal.Signals, seconds: float) -> bool:
        """Send the signal and wait for the end; whether it came in time."""
        await self._call(partial(self._sandboxes.end, found, number))
        watch = self._watch(found)
        if watch is None:
            return True
        with anyio.move_on_after(seconds):
            await watch.ended.wait()
        return watch.ended.is_set()

    async def _kill(self, found: Found) -> None:
        if not await self._end(found, signal.SIGKILL, KILL_S):
            raise EngineError(
                Failure.UNKNOWN,
                f"The container {found.view.name} cannot be killed",
                hint="One of its processes hangs in the kernel, as on a dead network disk.",
            )

    async def _call(self, function: Callable[[], T]) -> T:
        """Run blocking work in a thread, with errors of the machine told as the engine's."""
        if self._is_closed:
            raise EngineError(Failure.RUNTIME_UNAVAILABLE, "The bubblewrap engine was closed")
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(THREADS)

        def opened() -> T:
            try:
                self._sandboxes.open()
                return function()
            except OSError as error:
                full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN}
                raise EngineError(
                    Failure.RESOURCES_EXHAUSTED if full else Failure.RUNTIME_UNAVAILABLE,
                    f"Bubblewrap cannot be used: {error}",
                    hint="`crab doctor` says what is missing.",
                ) from error

        return await anyio.to_thread.run_sync(opened, limiter=self._limiter)

    def _watch(self, found: Found) -> _Watch | None:
        """Wait for its end on the event loop, if it runs; None if it does not any more."""
        watch = self._watches.get(found.view.name)
        if watch is not None and watch.container == found.record.id:
            return watch
        processes = found.processes
        if self._is_closed or not found.runs or processes is None:
            return None
        opened = _first_alive(processes)
        if opened is None:
            # Whoever was just told that it runs is told that it ended.
            self._feed.publish(EngineEvent(kind="ended", name=found.view.name))
            return None
        waited_for, descriptor = opened
        watch = _Watch(
            name=found.view.name,
            container=found.record.id,
            process=waited_for,
            then=None if waited_for == processes.main else processes.main,
            descriptor=descriptor,
            log=str(found.folder.path / LOG),
            log_bytes=found.record.spec.limits.log_bytes,
        )
        self._watches[watch.name] = watch
        asyncio.get_running_loop().add_reader(descriptor, self._on_end, watch)
        self._check_logs_later()
        return watch

    def _on_end(self, watch: _Watch) -> None:
        process.reap(watch.process)
        if watch.then is not None and process.lives(watch.then):
            descriptor = process.open_descriptor(watch.then)
            if descriptor is not None:
                asyncio.get_running_loop().remove_reader(watch.descriptor)
                os.close(watch.descriptor)
                watch.process, watch.then, watch.descriptor = watch.then, None, descriptor
                asyncio.get_running_loop().add_reader(descriptor, self._on_end, watch)
                return
        self._unwatch(watch)
        watch.ended.set()
        self._feed.publish(EngineEvent(kind="ended", name=watch.name))

    def _unwatch(self, watch: _Watch) -> None:
        if self._watches.get(watch.name) is watch:
            del self._watches[watch.name]
        asyncio.get_running_loop().remove_reader(watch.descriptor)
        os.close(watch.descriptor)

    def _check_logs_later(self) -> None:
        if self._log_timer is None:
            self._log_timer = asyncio.get_running_loop().call_later(LOG_CHECK_S, self._check_logs)

    def _check_logs(self) -> None:
        # On the loop: asking a local file for its size takes microseconds, and cutting one is rare.
        self._log_timer = None
        for watch in self._watches.values():
            try:
                bubblewrap_log.trim(watch.log, watch.log_bytes)
            except OSError:
                # Removed meanwhile, or a disk with troubles of its own; the next look is soon.
                continue
        if self._watches:
            self._check_logs_later()


def _first_alive(processes: Processes) -> tuple[Process, int] | None:
    """The supervisor, which outlives the main process by the writing of the exit code; else the main process."""
    for each in (processes.supervisor, processes.main):
        if each is not None and (descriptor := process.open_descriptor(each)) is not None:
            return each, descriptor
    return None


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise EngineError(Failure.SPEC_INVALID, f"{name!r} cannot be the name of a container")
