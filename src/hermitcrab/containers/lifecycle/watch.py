"""Looking over live containers every few seconds: who is silent is ended, who is quiet is frozen, later ended.

Work is by live containers, not by sessions. `logic/liveness.py` judges whether a runner lives; a runner that beats is
never ended for being slow.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import anyio
import structlog

from hermitcrab.containers.disk.workspaces import Workspaces
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle.slot import Slot
from hermitcrab.containers.link.exchange import Exchange
from hermitcrab.errors import EngineError
from hermitcrab.logic.lifecycle import Phase, Signal
from hermitcrab.logic.liveness import Bounds, State, judge
from hermitcrab.logic.workspace import Free
from hermitcrab.observe.supervision import isolated
from hermitcrab.settings.model import Settings
from hermitcrab_wire import faults
from hermitcrab_wire.limits import BEATS_BEFORE_SILENT

INTERVAL_S = 5.0
"""How often containers are looked over, if none is to be found silent sooner."""

log = structlog.get_logger(__name__)


class Watch:
    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        slots: Iterable[Slot],
        stop: Callable[[Slot, str], Awaitable[None]],
        catch_up: Callable[[Slot], Awaitable[None]],
        unrealized: tuple[str, ...],
        workspaces: Workspaces,
        clock: Callable[[], float],
    ) -> None:
        self._engine, self._settings, self._slots = engine, settings.containers, slots
        self._stop, self._catch_up, self._workspaces, self._clock = stop, catch_up, workspaces, clock
        self._may_freeze = "freeze" not in unrealized
        self._bounds = bounds(settings)
        self._interval_s = min(INTERVAL_S, self._bounds.silent_after_s / BEATS_BEFORE_SILENT)

    async def run(self) -> None:
        """Until cancelled. One that is slow to end holds up no other."""
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.sleep(self._interval_s)
                now = self._clock()  # Read even when there is nobody to look at: it must notice what stood still.
                every = list(self._slots)
                left = await self._workspaces.free() if every else None
                for slot in every:
                    tasks.start_soon(isolated, self._look_over, slot, now, left)

    async def _look_over(self, slot: Slot, now: float, left: Free | None) -> None:
        exchange = slot.exchange
        if exchange is None or slot.lock.locked():
            return
        quiet_s = anyio.current_time() - slot.active_at
        # Before all else: whatever is to be caught up with, a runner that hangs will not do it.
        if slot.life.phase in {Phase.READY, Phase.DRAINING} and await self._judge(slot, exchange, now):
            return
        if (slot.life.phase is Phase.READY and exchange.is_behind) or (slot.life.phase is Phase.FROZEN and slot.wanted):
            # A mailbox or an engine failed when there was something to push.
            await self._catch_up(slot)
            return
        if slot.life.phase is Phase.READY and left is not None:
            await self._workspaces.look(slot, self._stop, left=left)
        if (is_idle(slot) or slot.life.phase is Phase.FROZEN) and quiet_s > self._settings.quiet_before_stop_s:
            await self._stop(slot, "quiet")
        elif is_idle(slot) and quiet_s > self._settings.quiet_before_freeze_s and self._may_freeze:
            await self._freeze(slot)

    async def _judge(self, slot: Slot, exchange: Exchange, now: float) -> bool:
        """Whether it was ended."""
        verdict = judge(exchange.pulse.signs, now, self._bounds)
        match verdict.state:
            case State.SILENT:
                await self._stop(slot, "hung")
                return True
            case State.EXPIRED:
                await self._stop(slot, "expired")
                return True
            case State.TOOL_OVERDUE:
                if exchange.remind(verdict.text):
                    log.warning("runner.tool-overdue", session=slot.session.id, text=verdict.text)
            case State.LATE:
                log.info("runner.late", session=slot.session.id, text=verdict.text)
            case State.ALIVE | State.WAITS:
                pass
        return False

    async def _freeze(self, slot: Slot) -> None:
        async with slot.lock:
            if not is_idle(slot) or not slot.take(Signal.QUIET):
                return
            try:
                await self._engine.freeze(slot.name)
            except EngineError as error:
                log.warning("container.not-frozen", session=slot.session.id, text=error.message)
                slot.take(Signal.THAWED)
            faults.point("container.frozen")


def bounds(settings: Settings) -> Bounds:
    """What the settings say of silence, tools and age."""
    return Bounds(
        silent_after_s=settings.containers.silent_before_kill_s,
        tool_timeout_s=settings.agents.tool_timeout_s,
        tool_grace_s=settings.agents.tool_grace_s,
        lifetime_s=settings.containers.lifetime_s or None,
    )


def is_idle(slot: Slot) -> bool:
    """Whether it runs and has nothing to do."""
    exchange = slot.exchange
    return (
        slot.life.phase is Phase.READY
        and exchange is not None
        and not exchange.has_work
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
        if slot.life.phase is Phase.READY and slot.exchange is not None and not slot.exchange.has_work
    ]
    return min(quiet or owing_nothing, key=lambda slot: slot.active_at, default=None)
