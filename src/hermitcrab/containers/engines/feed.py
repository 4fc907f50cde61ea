"""One source of engine events with any number of listeners, none of which can hold up another."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from hermitcrab.model.container import EngineEvent

RESYNC = EngineEvent(kind="resync")

PENDING_AT_MOST = 1000
"""A listener that is further behind than this is told to look for itself."""


class Listener:
    """What one subscriber has not read yet. Ends when its feed is closed."""

    def __init__(self) -> None:
        self._pending: deque[EngineEvent] = deque([RESYNC])
        self._news = anyio.Event()
        self._closed = False

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> EngineEvent:
        while not self._pending:
            if self._closed:
                raise StopAsyncIteration
            self._news = anyio.Event()
            await self._news.wait()
        return self._pending.popleft()

    def tell(self, event: EngineEvent) -> None:
        if len(self._pending) >= PENDING_AT_MOST:
            self._pending.clear()
            event = RESYNC
        self._pending.append(event)
        self._news.set()

    def close(self) -> None:
        self._closed = True
        self._news.set()


class EventFeed:
    """Publishing never waits. To be used on one event loop only."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def publish(self, event: EngineEvent) -> None:
        for listener in self._listeners:
            listener.tell(event)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """The events from now on, a `resync` first."""
        listener = Listener()
        self._listeners.append(listener)
        try:
            yield listener
        finally:
            self._listeners.remove(listener)

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()
