"""Who may start now: so many at once, and never more containers than there is room and memory for.

What a container is counted for is a reservation, not what it uses: that changes with every turn, and a place once given
cannot be taken back from one that works. Freezing gives no memory back, so a frozen one counts as any other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from hermitcrab.containers.lifecycle.background import Background
from hermitcrab.containers.lifecycle.slot import Slot
from hermitcrab.containers.lifecycle.slots import Slots
from hermitcrab.containers.lifecycle.watch import least_recently_active
from hermitcrab.logic.fair_queue import FairQueue, Lack, Room, Ticket
from hermitcrab.logic.lifecycle import LIVE
from hermitcrab.model.ids import SessionId
from hermitcrab.settings.model import ContainerSettings

EVICTED_WITHIN_S = 2.0
"""If the one that was to make room has not ended by then, another is asked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionView:
    """How full it is, as `crab status` shows it."""

    budget_mb: int | None
    reserved_mb: int
    running: int
    running_at_most: int
    starting: int
    queued: int


class Admission:
    def __init__(
        self,
        settings: ContainerSettings,
        slots: Slots,
        background: Background,
        stop: Callable[[Slot, str], Awaitable[None]],
        *,
        budget_mb: int | None,
    ) -> None:
        self._settings, self._slots, self._background, self._stop = settings, slots, background, stop
        self._budget_mb = budget_mb
        self._queue = FairQueue()
        self._turns: dict[str, anyio.Event] = {}
        """Set for whoever waits when it should look again."""
        self._entering: dict[SessionId, int] = {}
        """Admitted, and not counted by their phase yet; with what each is counted for."""

    @asynccontextmanager
    async def admitted(self, slot: Slot) -> AsyncIterator[None]:
        """Waits for a turn and for room; inside, the place is the session's."""
        ticket = Ticket(slot.session.id, slot.group.id, self._memory_mb(slot))
        self._queue.join(ticket)
        self._turns[ticket.key] = anyio.Event()
        try:
            await self._await_turn(ticket)
            self._entering[slot.session.id] = ticket.memory_mb
        finally:
            self._queue.leave(ticket)
            del self._turns[ticket.key]
            self.changed()
        try:
            yield
        finally:
            del self._entering[slot.session.id]
            self.changed()

    def changed(self) -> None:
        """A container ended or has nothing to do: whoever is first looks again."""
        first = self._queue.first()
        if first is not None:
            self._turns[first.key].set()

    def reasons(self) -> dict[SessionId, tuple[str, int]]:
        """Why each of those that wait here does so, and its place in the queue. Costs by all that run and wait."""
        places = self._queue.places()
        room = self._room() if places else None
        found = {}
        for key, place in places.items():
            slot = self._slots.get(SessionId(key))
            if room is not None and slot is not None:
                found[slot.session.id] = f"{self._lack(room, slot)}; place {place} of {len(places)}", place
        return found

    def _lack(self, room: Room, slot: Slot) -> str:
        match room.lack(self._memory_mb(slot)):
            case Lack.MEMORY:
                return f"waits for memory: {room.reserved_mb} of {room.budget_mb} MB are reserved, and all have work"
            case Lack.PLACE:
                return f"waits for a place: {room.running} containers run, and all have work"
            case _:
                return f"waits for its turn: {room.starting} are starting"

    def view(self) -> AdmissionView:
        room = self._room()
        return AdmissionView(
            budget_mb=self._budget_mb,
            reserved_mb=room.reserved_mb,
            running=room.running,
            running_at_most=room.running_at_most,
            starting=room.starting,
            queued=len(self._queue),
        )

    async def _await_turn(self, ticket: Ticket) -> None:
        turn = self._turns[ticket.key]
        while True:
            evicting = False
            if self._queue.first() is ticket:
                lack = self._room().lack(ticket.memory_mb)
                if lack is None:
                    self._queue.take()
                    return
                evicting = lack is not Lack.TURN and self._evict()
            with anyio.move_on_after(EVICTED_WITHIN_S if evicting else float("inf")):
                await turn.wait()
            turn = self._turns[ticket.key] = anyio.Event()

    def _evict(self) -> bool:
        """Begin to end the container that has been quiet longest. False: all of them work."""
        idle = least_recently_active(each for each in self._slots if each.session.id not in self._entering)
        if idle is not None:
            self._background.spawn(self._stop, idle, "evicted")
        return idle is not None

    def _memory_mb(self, slot: Slot) -> int:
        limit = slot.config.limits.memory_mb or self._settings.memory_mb
        return min(limit, self._settings.memory_reservation_mb)

    def _room(self) -> Room:
        settled = [slot for slot in self._slots if slot.life.phase in LIVE and slot.session.id not in self._entering]
        return Room(
            starting=len(self._entering),
            starts_at_most=self._settings.concurrent_starts,
            running=len(self._entering) + len(settled),
            running_at_most=self._settings.max_running,
            reserved_mb=sum(self._entering.values()) + sum(self._memory_mb(slot) for slot in settled),
            budget_mb=self._budget_mb,
        )
