"""What follows an end or a start that failed: the next attempt after a while, if something waits for it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import anyio
import structlog

from hermitcrab.containers.lifecycle.background import Background
from hermitcrab.containers.lifecycle.ending import Ender
from hermitcrab.containers.lifecycle.slot import Slot, Told
from hermitcrab.containers.lifecycle.slots import Slots
from hermitcrab.errors import HermitcrabError
from hermitcrab.logic import retry
from hermitcrab.logic.ending import Ending
from hermitcrab.logic.lifecycle import STARTABLE, Life, Phase, Signal
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.sessions import Session
from hermitcrab.observe.supervision import isolated

log = structlog.get_logger(__name__)


class Retries:
    def __init__(
        self,
        *,
        slots: Slots,
        background: Background,
        mailboxes: Mailboxes,
        ender: Ender,
        told: Told,
        wake: Callable[[Session], Awaitable[object]],
    ) -> None:
        self._slots, self._background, self._mailboxes = slots, background, mailboxes
        self._ender, self._told, self._wake = ender, told, wake

    def after_failure(self, slot: Slot, *, at_least: int = 0) -> float:
        """Seconds until the next attempt, as after so many failures. Any earlier timer of it does nothing any more."""
        delay = retry.START.delay_s(max(slot.failures, at_least), random.random())  # noqa: S311
        slot.retry += 1
        self._background.spawn(self._retry_later, slot, slot.retry, delay)
        return delay

    async def after_end(self, slot: Slot, ending: Ending) -> None:
        """Start it again if something waits that the end was not to prevent; otherwise keep nothing of it."""
        slot.failures = 0 if ending.planned else slot.failures + 1
        try:
            if await self._ender.quarantine_costly_rows(slot, ending):
                self._told.said(slot.session, ())
            counts = await self._mailboxes.run(slot.session, Mailbox.counts)
        except (HermitcrabError, OSError) as error:
            log.warning("mailbox.not-read", session=slot.session.id, text=str(error))
            self.after_failure(slot)
            return
        if slot.starting is not None or slot.life.phase is not Phase.ABSENT:
            return  # A message that came meanwhile has started it again.
        if counts.pending_triggers and (slot.wanted or ending.cause != "stopped") and not self._background.closing:
            self.after_failure(slot)
            return
        self._slots.forget(slot)
        await isolated(self._slots.settle, slot.session)

    async def _retry_later(self, slot: Slot, number: int, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        while slot.retry == number and slot.starting is not None:
            # The attempt that failed is not over: its chat is still told of it, say.
            await slot.starting.wait()
        if slot.retry != number or self._slots.get(slot.session.id) is not slot:
            return
        if slot.life.phase is Phase.BACKOFF:
            slot.take(Signal.RETRY_DUE)
        if slot.life.phase in STARTABLE:
            await self._go_on(slot)

    async def _go_on(self, slot: Slot) -> None:
        """Start it again if something waits for it; otherwise keep nothing of it."""
        number = slot.retry
        try:
            pending = (await self._mailboxes.run(slot.session, Mailbox.counts)).pending_triggers
        except (HermitcrabError, OSError) as error:
            log.warning("mailbox.not-read", session=slot.session.id, text=str(error))
            slot.failures += 1
            self.after_failure(slot)
            return
        if slot.retry != number or slot.starting is not None or slot.life.phase not in STARTABLE:
            return
        if pending:
            await self._wake(slot.session)
            return
        slot.life = Life(Phase.ABSENT, slot.life.generation)
        self._slots.forget(slot)
        await self._slots.settle(slot.session)
