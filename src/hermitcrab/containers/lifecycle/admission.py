"""Who may start now: so many at once, and never more containers than there is room and memory for.

What a container is counted for is a reservation, not what it uses: that changes with every turn, and a place once given
cannot be taken back from one that works. Freezing gives no memory back, so a frozen one counts as any other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from hermitcrab.containers.lifecycle.background import Background
from hermitcrab.containers.lifecycle.slot import Slot
from hermitcrab.containers.lifecycle.slots import Slots
from hermitcrab.containers.lifecycle.watch import least_recently_active
from hermitcrab.logic.fair_queue import FairQueue, Lack, Room, Ticket
from hermitcrab.logic.lifecycle import LIVE
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.settings.model import ContainerSettings

EVICTED_WITHIN_S = 2.0
"""So long, the place of one that was to make room counts as free soon; then another one is asked to."""


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
        self._leaving: dict[SessionId, tuple[Generation, float]] = {}
        """Which generation was asked to make room, and until when its place counts as free soon."""

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
            wait_s = float("inf")
            if self._queue.first() is ticket:
                lack = self._room().lack(ticket.memory_mb)
                if lack is None:
                    self._queue.take()
                    return
                if lack is not Lack.TURN:
                    wait_s = self._make_room(ticket.memory_mb)
            with anyio.move_on_after(wait_s):
                await turn.wait()
            turn = self._turns[ticket.key] = anyio.Event()

    def _make_room(self, memory_mb: int) -> float:
        """Begin to end as many containers as it takes, those first that have been quiet longest.

        After how many seconds to look whether they have ended, if nothing tells of it. Without end: all of them work.
        """
        now = anyio.current_time()
        self._leaving = {key: each for key, each in self._leaving.items() if self._is_leaving(key, *each)}
        while self._room(without=self._leaving).lack(memory_mb) in {Lack.MEMORY, Lack.PLACE}:
            staying = (each for each in self._slots if each.session.id not in {*self._entering, *self._leaving})
            idle = least_recently_active(staying)
            if idle is None:
                break
            self._leaving[idle.session.id] = idle.life.generation, now + EVICTED_WITHIN_S
            self._background.spawn(self._stop, idle, "evicted")
        return min((until - now for _, until in self._leaving.values()), default=float("inf"))

    def _is_leaving(self, key: SessionId, generation: Generation, until: float) -> bool:
        slot = self._slots.get(key)
        still_there = slot is not None and slot.life.phase in LIVE and slot.life.generation == generation
        return still_there and anyio.current_time() < until

    def _memory_mb(self, slot: Slot) -> int:
        limit = slot.config.limits.memory_mb or self._settings.memory_mb
        return min(limit, self._settings.memory_reservation_mb)

    def _room(self, *, without: Collection[SessionId] = ()) -> Room:
        counted_apart = {*self._entering, *without}
        settled = [slot for slot in self._slots if slot.life.phase in LIVE and slot.session.id not in counted_apart]
        return Room(
            starting=len(self._entering),
            starts_at_most=self._settings.concurrent_starts,
            running=len(self._entering) + len(settled),
            running_at_most=self._settings.max_running,
            reserved_mb=sum(self._entering.values()) + sum(self._memory_mb(slot) for slot in settled),
            budget_mb=self._budget_mb,
        )
