"""What an earlier host left, and how much of it is known by now: for whoever brings together what runs and what should.

A host knows nothing of it until the engine has answered, and nothing of a session until somebody has looked. Used by
`reconcile.py`, which decides when to look.
"""

from __future__ import annotations

from typing import Literal

from hermitcrab.containers.lifecycle.adopting import Adopter
from hermitcrab.containers.lifecycle.breakers import ENGINE, Breakers
from hermitcrab.containers.lifecycle.ending import Ender
from hermitcrab.containers.lifecycle.slots import Slots
from hermitcrab.containers.lifecycle.stopping import Stopper
from hermitcrab.logic.lifecycle import Phase
from hermitcrab.model.container import ContainerView
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.model.sessions import Session

HELD_S = 60.0
"""Longer than reconciling takes to ask again an engine that has not answered yet."""


class Inheritance:
    def __init__(self, *, slots: Slots, adopter: Adopter, stopper: Stopper, ender: Ender, breakers: Breakers) -> None:
        self._slots, self._adopter, self._stopper = slots, adopter, stopper
        self._ender, self._breakers = ender, breakers

    def overlook(self, session_id: SessionId) -> None:
        """What an earlier host left in it is to be looked at. Until `looked_at` it does not count as settled."""
        self._slots.overlooked.add(session_id)

    def looked_at(self, session_id: SessionId) -> None:
        """All that an earlier host left in it was looked at, or there is nothing to be seen."""
        self._slots.overlooked.discard(session_id)

    def overlooked(self) -> list[SessionId]:
        """Where nobody could look yet."""
        return sorted(self._slots.overlooked)

    async def expect(self, views: list[ContainerView]) -> None:
        """Look up all at once what `meet` needs to decide about each of these."""
        await self._adopter.expect(views)

    async def meet(self, view: ContainerView) -> Literal["kept", "adopted", "removed"]:
        """Decide about a container that the engine has: ours already, taken over from an earlier host, or left over."""
        return await self._adopter.meet(view)

    async def look_again(self, session_id: SessionId) -> None:
        """The engine may know more of that container than was heard: ask it, and end again what would not end."""
        slot = self._slots.get(session_id)
        if slot is not None and slot.life.phase is Phase.UNKNOWN:
            await self._adopter.find_again(slot)
        elif slot is not None:
            await self._stopper.look_again(slot)

    async def certify_missing(self, session: Session, last: Generation, *, rows_returned: int) -> None:
        """Certify the ends of generations up to `last`, where that was not done: nothing is left of them."""
        await self._ender.certify_missing(session, last, rows_returned=rows_returned)

    def engine_not_seen(self, text: str) -> None:
        """What runs from an earlier host, nobody knows yet: nothing is started until `engine_seen` (law 1)."""
        self._breakers.hold(ENGINE, HELD_S, text)

    def engine_seen(self) -> None:
        """Everything that an earlier host left has been met."""
        self._breakers.worked([ENGINE])

    def live(self) -> dict[str, Session]:
        """Sessions by the name of the container that they should have."""
        return self._slots.live()

    def last_ended(self, session: Session) -> Generation:
        """The newest generation that has no container any more, once every container of the engine's was met."""
        slot = self._slots.get(session.id)
        if slot is None:
            return session.generation
        begun = slot.life.phase not in {Phase.ABSENT, Phase.QUEUED, Phase.BACKOFF, Phase.QUARANTINED}
        return Generation(slot.life.generation - 1) if begun else slot.life.generation
