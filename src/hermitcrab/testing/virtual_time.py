"""An event loop on which time passes only when nothing else can happen: an hour of timers takes as long as its work.

Nothing happens by itself in such a loop but timers, so it fits tests whose other ends are all in this process. Work
that hosts give to threads is done in place, which also makes a run repeatable.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint

from hermitcrab.testing.virtual_sockets import MemoryListener, MemoryServer, Network

T = TypeVar("T")

_STUCK_AFTER_S = 20.0
"""Of real time: nothing is ready, no timer runs, and nobody will wake this loop."""

EPOCH_S = 1_767_225_600.0
"""What a turned clock shows at the beginning: 2026-01-01."""


class _Jumping(selectors.DefaultSelector):
    """Waits for what is ready now; if nothing is, lets the time pass that it was to wait for."""

    def __init__(self, stuck_after_s: float) -> None:
        super().__init__()
        self.passed_s = 0.0
        self._stuck_after_s = stuck_after_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            ready = super().select(self._stuck_after_s)
            if not ready:
                raise TimeoutError("everything waits for something that cannot come")
            return ready
        ready = super().select(0) if self._stuck_after_s else []
        if not ready and timeout > 0:
            self.passed_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, *, stuck_after_s: float = _STUCK_AFTER_S) -> None:
        """`stuck_after_s`: how long to wait, of real time, for the kernel; 0: nothing comes from there at all."""
        self._jumping = _Jumping(stuck_after_s)
        self.network = Network()
        """For sockets that were bound by `virtual_sockets.bind`; all others are the kernel's."""
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.passed_s

    async def create_unix_server(
        self, protocol_factory: Any, path: Any = None, *, sock: Any = None, **more: Any
    ) -> Any:
        if not isinstance(sock, MemoryListener):
            return await super().create_unix_server(protocol_factory, path, sock=sock, **more)
        server = MemoryServer(self.network, sock, protocol_factory)
        if more.get("start_serving", True):
            await server.start_serving()
        return server

    def dial(self, path: str, protocol_factory: Any) -> Any:
        """A connection to a socket in memory, as `create_unix_connection` gives one to the kernel's."""
        return self.network.dial(self, path, protocol_factory)


class Clocks:
    """What the machine's clocks show, as far as anybody asks the module `time`."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.set_forward_s = 0.0
        """How far somebody has set the clock of the day."""

    @contextmanager
    def turned(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, function in (
                ("monotonic", self._loop.time),
                ("monotonic_ns", lambda: int(self._loop.time() * 1e9)),
                ("time", self.time),
            ):
                stack.enter_context(patch.object(time, name, function))
            yield

    def time(self) -> float:
        return EPOCH_S + self._loop.time() + self.set_forward_s


async def _in_place(function: Callable[..., Any], *arguments: Any, limiter: Any = None, **_options: Any) -> Any:
    await checkpoint()
    if limiter is None:
        return function(*arguments)
    async with limiter:
        return function(*arguments)


@contextmanager
def work_in_place() -> Iterator[None]:
    """Meanwhile, what is given to threads is done at once, on the loop."""
    with patch.object(to_thread, "run_sync", _in_place):
        yield


def run(function: Callable[[], Awaitable[T]]) -> T:
    """Run `function` in virtual time, from 0 on."""
    with work_in_place():
        return anyio.run(function, backend_options={"loop_factory": VirtualLoop})
