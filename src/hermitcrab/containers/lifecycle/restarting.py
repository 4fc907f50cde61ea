"""A fresh container in the place of one that runs, with a word for the fresh one that the old one never gets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from hermitcrab.containers.lifecycle.slots import Slots
from hermitcrab.containers.lifecycle.stopping import Stopper
from hermitcrab.errors import BadInputError, HermitcrabError
from hermitcrab.logic.lifecycle import LIVE
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import AgentGroupId, MessageId, new_id
from hermitcrab.model.messages import InboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.store import sessions
from hermitcrab.store.clock import timestamp
from hermitcrab.store.database import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    session: str
    had_container: bool
    phase: str
    """After the old one was to end: absent, or what keeps it, as stuck and unknown do."""
    starts: bool
    """Whether a fresh one was asked for."""


class Restarter:
    def __init__(
        self,
        *,
        slots: Slots,
        store: Store,
        mailboxes: Mailboxes,
        stopper: Stopper,
        request: Callable[[Session], None],
        message_bytes_at_most: int,
    ) -> None:
        self._slots, self._store, self._mailboxes = slots, store, mailboxes
        self._stopper, self._request = stopper, request
        self._bytes_at_most = message_bytes_at_most

    def check(self, message: str | None) -> None:
        """Raises BadInputError for a message that cannot be kept."""
        if message is None:
            return
        try:
            size = len(message.encode())
        except UnicodeEncodeError as error:
            raise BadInputError("The message is not valid Unicode.", hint="Nothing was restarted.") from error
        if not message.strip() or size > self._bytes_at_most:
            raise BadInputError(
                f"The message has {size:,} bytes; it may have 1 to {self._bytes_at_most:,}.",
                hint="Nothing was restarted.",
            )

    async def restart(self, session: Session, *, message: str | None, wake: bool) -> Restart:
        """End its container, if it has one; `message` is the fresh one's. A session without one is left alone.

        The fresh one starts at once if a message waits for it or `wake` says so, and otherwise with the next message;
        with `wake` also where there was none. Raises BadInputError and StoreError, and then nothing was ended.
        """
        self.check(message)
        slot = self._slots.get(session.id)
        had = slot is not None and (slot.starting is not None or slot.life.phase in LIVE)
        if not had and not wake:
            return Restart(session=session.id, had_container=False, phase="absent", starts=False)
        if message is not None:
            await self._leave_word(session, message)
        if had and slot is not None:
            await self._stopper.stop(slot, "restart")
        starts = wake or message is not None
        if starts:
            self._request(session)
        phase = slot.life.phase.value if slot is not None and slot.life.phase in LIVE else "absent"
        return Restart(session=session.id, had_container=had, phase=phase, starts=starts)

    async def restart_group(
        self, group_id: AgentGroupId, *, message: str | None, wake: bool
    ) -> list[Restart | HermitcrabError]:
        """Every session of the group that has a container, all at once; each by itself."""
        self.check(message)
        results: list[Restart | HermitcrabError] = []

        async def restart(session: Session) -> None:
            try:
                results.append(await self.restart(session, message=message, wake=wake))
            except HermitcrabError as error:
                results.append(error)

        async with anyio.create_task_group() as tasks:
            for slot in self._slots:
                attended = slot.starting is not None or slot.life.phase in LIVE
                if slot.group.id == group_id and attended:
                    tasks.start_soon(restart, slot.session)
        return results

    async def _leave_word(self, session: Session, message: str) -> None:
        now = time.time()
        row = InboundRow(
            id=MessageId(new_id("restart", int(now * 1000))),
            kind="chat",
            timestamp=timestamp(),
            content={"text": message, "sender": "system", "senderId": "system"},
            address=None,
            trigger=True,
            on_wake=True,
        )
        with self._slots.receiving(session.id) as attended:
            if not attended:
                await self._store.write(lambda connection: sessions.unsettle(connection, session.id))
            await self._mailboxes.run(session, lambda mailbox: mailbox.accept(row))
