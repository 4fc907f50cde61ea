"""Who may start now: so many at once, and never more containers than there is room for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from hermitcrab.containers.slot import Slot
from hermitcrab.containers.slots import Slots
from hermitcrab.containers.watch import least_recently_active
from hermitcrab.logic.lifecycle import LIVE
from hermitcrab.model.ids import SessionId
from hermitcrab.settings.model import ContainerSettings


class Admission:
    def __init__(
        self,
        settings: ContainerSettings,
        slots: Slots,
        stop: Callable[[Slot, str], Awaitable[None]],
    ) -> None:
        self._most, self._slots, self._stop = settings.max_running, slots, stop
        self._starts = anyio.Semaphore(settings.concurrent_starts)
        self._entering: set[SessionId] = set()
        """Admitted, and not counted by their phase yet."""
        self._waiting = 0
        self._changed = anyio.Event()

    @asynccontextmanager
    async def admitted(self, slot: Slot) -> AsyncIterator[None]:
        """Waits for a turn and for room; inside, the place is the session's."""
        async with self._starts:
            await self._make_room()
            self._entering.add(slot.session.id)
            try:
                yield
            finally:
                self._entering.discard(slot.session.id)
                self.changed()

    def changed(self) -> None:
        """A container ended or has nothing to do: whoever waits for room looks again."""
        if self._waiting:
            self._changed.set()
            self._changed = anyio.Event()

    async def _make_room(self) -> None:
        """With as many containers as may be, end the one that has been quiet longest; if all work, wait for one."""
        while len(self._taken()) >= self._most:
            changed = self._changed
            idle = least_recently_active(each for each in self._slots if each.session.id not in self._entering)
            if idle is not None:
                await self._stop(idle, "evicted")
                continue
            self._waiting += 1
            try:
                await changed.wait()
            finally:
                self._waiting -= 1

    def _taken(self) -> set[SessionId]:
        return self._entering | {slot.session.id for slot in self._slots if slot.life.phase in LIVE}
