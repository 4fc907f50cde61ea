"""How late an event loop gets: the time that a task waits for its turn beyond what it asked for."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

EVERY_S = 0.005


@asynccontextmanager
async def sampling(*, every_s: float = EVERY_S) -> AsyncIterator[list[float]]:
    """Milliseconds of lag, sampled while the block lasts.

    A loop that stands still takes no samples, and would look good for it. So the samples that it missed are made up
    for: each of them would have waited for what was left of the standstill.
    """
    samples: list[float] = []

    async def sample() -> None:
        while True:
            began = time.monotonic()
            await anyio.sleep(every_s)
            lag = time.monotonic() - began - every_s
            samples.extend(with_missed(lag, every_s))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sample)
        try:
            yield samples
        finally:
            tasks.cancel_scope.cancel()


def with_missed(lag_s: float, every_s: float) -> list[float]:
    """One measured lag, and those that would have been measured meanwhile, in milliseconds."""
    found = [max(0.0, lag_s) * 1000]
    while (lag_s := lag_s - every_s) > 0:
        found.append(lag_s * 1000)
    return found
