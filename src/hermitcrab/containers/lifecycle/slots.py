"""Every session that has a container or wants one, and when a session that had one needs nobody any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from sqlite3 import Connection

from hermitcrab.containers.lifecycle.slot import Slot
from hermitcrab.errors import NotFoundError
from hermitcrab.logic.lifecycle import LIVE, Life, Phase
from hermitcrab.logic.spec import container_name
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import Generation, InstallationId, SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.observe.supervision import isolated
from hermitcrab.store import agent_groups, sessions
from hermitcrab.store.database import Store


class Slots:
    def __init__(
        self,
        *,
        installation: InstallationId,
        store: Store,
        mailboxes: Mailboxes,
        owes: Callable[[SessionId], bool] = lambda _session_id: False,
    ) -> None:
        """`owes`: whether an end of that session is still to be written down, which the next host must know of."""
        self._installation, self._store, self._mailboxes, self._owes = installation, store, mailboxes, owes
        self._slots: dict[SessionId, Slot] = {}
        self._by_name: dict[str, SessionId] = {}
        self._receiving: Counter[SessionId] = Counter()
        self.withheld: dict[SessionId, str] = {}
        """Sessions that may have no container, and why."""
        self.overlooked: set[SessionId] = set()
        """Nobody could look yet at what an earlier host left in these. Until then they do not count as settled."""

    def __iter__(self) -> Iterator[Slot]:
        """Those of now; what comes and goes meanwhile does not disturb."""
        return iter(list(self._slots.values()))

    def __contains__(self, session_id: SessionId) -> bool:
        return session_id in self._slots

    def get(self, session_id: SessionId) -> Slot | None:
        return self._slots.get(session_id)

    def named(self, container: str) -> Slot | None:
        """The slot whose container has that name."""
        session_id = self._by_name.get(container)
        return self._slots.get(session_id) if session_id is not None else None

    def names(self) -> list[str]:
        return list(self._by_name)

    async def open(self, session_id: SessionId) -> Slot:
        """The session's slot, made if need be. Raises NotFoundError without such a session or its group."""
        if (known := self._slots.get(session_id)) is not None:
            return known

        found = await self._store.read(lambda connection: _found(connection, session_id))
        return self._keep(*found)

    async def open_all(self, session_ids: Iterable[SessionId]) -> None:
        """As `open` for each of them, with one look into the store. Those that cannot be opened are left out."""
        wanted = [each for each in session_ids if each not in self._slots]

        def read(connection: Connection) -> list[tuple[Session, AgentGroup]]:
            found = []
            for each in wanted:
                with suppress(NotFoundError):
                    found.append(_found(connection, each))
            return found

        for session, group in await self._store.read(read) if wanted else ():
            self._keep(session, group)

    def _keep(self, session: Session, group: AgentGroup) -> Slot:
        name = container_name(self._installation, session.id)
        slot = Slot(session=session, group=group, name=name, life=Life(Phase.ABSENT, session.generation))
        # Another task may have been faster while we read.
        slot = self._slots.setdefault(session.id, slot)
        self._by_name[name] = session.id
        return slot

    def forget(self, slot: Slot) -> None:
        """Keep nothing of a session that has no container and wants none."""
        if slot.life.phase is Phase.ABSENT and slot.starting is None:
            self._slots.pop(slot.session.id, None)
            self._by_name.pop(slot.name, None)

    def live(self) -> dict[str, Session]:
        """Sessions by the name of the container that they should have."""
        return {slot.name: slot.session for slot in self._slots.values() if slot.life.phase in LIVE}

    def generation_of(self, session_id: SessionId) -> Generation | None:
        """The generation that the session's live container has, or None without one."""
        slot = self._slots.get(session_id)
        return slot.life.generation if slot is not None and slot.life.phase in LIVE else None

    @contextmanager
    def receiving(self, session_id: SessionId) -> Iterator[bool]:
        """While a row is being committed: gives whether the session is attended.

        If it is not, it must be marked unsettled before the commit, so that a host that is killed right after looks
        there at its next start.
        """
        self._receiving[session_id] += 1
        try:
            slot = self._slots.get(session_id)
            # Only a claim has marked it; one that merely wants a container may never come to that.
            yield slot is not None and slot.life.phase in LIVE
        finally:
            self._receiving[session_id] -= 1
            if not self._receiving[session_id]:
                del self._receiving[session_id]

    async def settle(self, session: Session) -> None:
        """Note that nothing of the session waits, if that is so and nobody is adding to it."""
        seen = await self._store.read(lambda connection: sessions.reasons(connection, session.id))
        is_busy = session.id in self or self._receiving[session.id]
        if is_busy or session.id in self.overlooked or self._owes(session.id):
            return
        counts = await self._mailboxes.look(session, Mailbox.counts)
        if counts.pending_triggers == 0 and counts.undelivered == 0:
            # A row that was announced meanwhile raised the count, and then this changes nothing.
            await self._store.write(lambda connection: sessions.settle(connection, session.id, seen))

    async def settle_all(self) -> None:
        """As `settle`, for every session that is not settled yet."""
        for session in await self._store.read(sessions.unsettled):
            await isolated(self.settle, session)


def _found(connection: Connection, session_id: SessionId) -> tuple[Session, AgentGroup]:
    session = sessions.by_id(connection, session_id)
    if session is None:
        raise NotFoundError(f"there is no session {session_id}")
    group = agent_groups.by_id(connection, session.agent_group_id)
    if group is None:
        raise NotFoundError(f"session {session_id} has no agent group any more")
    return session, group
