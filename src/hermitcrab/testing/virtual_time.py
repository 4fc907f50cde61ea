"""An event loop on which time passes only when nothing else can happen: an hour of timers takes as long as its work.

Nothing happens by itself in such a loop but timers, so it fits tests whose other ends are all in this process. Work
that hosts give to threads is done in place, which also makes a run repeatable.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint

T = TypeVar("T")

_STUCK_AFTER_S = 20.0
"""Of real time: nothing is ready, no timer runs, and nobody will wake this loop."""


class _Jumping(selectors.DefaultSelector):
    """Waits for what is ready now; if nothing is, lets the time pass that it was to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            ready = super().select(_STUCK_AFTER_S)
            if not ready:
                raise TimeoutError("everything waits for something that cannot come")
            return ready
        ready = super().select(0)
        if not ready and timeout > 0:
            self.passed_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.passed_s


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
