"""Looking over live containers every few seconds: who is silent is ended, who is quiet is frozen, later ended.

Work is by live containers, not by sessions. Liveness is not progress (law 9): a runner that beats is never ended for
being slow.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable

import anyio
import structlog

from hermitcrab.containers.engine import Engine
from hermitcrab.containers.slot import Slot
from hermitcrab.containers.slots import Slots
from hermitcrab.errors import EngineError
from hermitcrab.logic.lifecycle import Phase, Signal
from hermitcrab.observe.supervision import isolated
from hermitcrab.settings.model import ContainerSettings

INTERVAL_S = 5.0

SILENT_AFTER_S = 30.0
"""Six missed beats: the runner's own timer beats whatever the provider does."""

log = structlog.get_logger(__name__)


class Watch:
    def __init__(
        self,
        engine: Engine,
        settings: ContainerSettings,
        slots: Slots,
        stop: Callable[[Slot, str], Awaitable[None]],
        catch_up: Callable[[Slot], Awaitable[None]],
        unrealized: tuple[str, ...],
    ) -> None:
        self._engine, self._settings, self._slots = engine, settings, slots
        self._stop, self._catch_up = stop, catch_up
        self._may_freeze = "freeze" not in unrealized

    async def run(self) -> None:
        """Until cancelled. One that is slow to end holds up no other."""
        async with anyio.create_task_group() as tasks:
            while True:
                began = time.monotonic()
                await anyio.sleep(INTERVAL_S)
                if time.monotonic() - began > 3 * INTERVAL_S:
                    continue  # The host itself stood still: every runner looks silent, and gets an interval to beat.
                for slot in self._slots:
                    tasks.start_soon(isolated, self._look_over, slot)

    async def _look_over(self, slot: Slot) -> None:
        exchange, now = slot.exchange, time.monotonic()
        if exchange is None or slot.lock.locked():
            return
        quiet_s = now - slot.active_at
        if (slot.life.phase is Phase.READY and exchange.is_behind) or (slot.life.phase is Phase.FROZEN and slot.wanted):
            # A mailbox or an engine failed when there was something to push.
            await self._catch_up(slot)
            return
        if slot.life.phase is Phase.READY and now - exchange.pulse.at > SILENT_AFTER_S:
            await self._stop(slot, "hung")
        elif (is_idle(slot) or slot.life.phase is Phase.FROZEN) and quiet_s > self._settings.quiet_before_stop_s:
            await self._stop(slot, "quiet")
        elif is_idle(slot) and quiet_s > self._settings.quiet_before_freeze_s and self._may_freeze:
            await self._freeze(slot)

    async def _freeze(self, slot: Slot) -> None:
        async with slot.lock:
            if not is_idle(slot) or not slot.take(Signal.QUIET):
                return
            try:
                await self._engine.freeze(slot.name)
            except EngineError as error:
                log.warning("container.not-frozen", session=slot.session.id, text=error.message)
                slot.take(Signal.THAWED)


def is_idle(slot: Slot) -> bool:
    """Whether it runs and has nothing to do."""
    exchange = slot.exchange
    return (
        slot.life.phase is Phase.READY
        and exchange is not None
        and exchange.outstanding == 0
        and exchange.pulse.activity == "idle"
    )


def least_recently_active(slots: Iterable[Slot]) -> Slot | None:
    """Which container to end when room is needed; None: all of them have messages to answer.

    The runner's word counts for as long as there are others: one that has nothing of ours cannot hold its place by it.
    """
    every = list(slots)
    quiet = [slot for slot in every if slot.life.phase is Phase.FROZEN or is_idle(slot)]
    owing_nothing = [
        slot
        for slot in every
        if slot.life.phase is Phase.READY and slot.exchange is not None and slot.exchange.outstanding == 0
    ]
    return min(quiet or owing_nothing, key=lambda slot: slot.active_at, default=None)
