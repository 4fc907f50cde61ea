"""When a container ends: on somebody's wish, or because the engine says so. `ending.py` draws up the end.

One that works is first asked to finish its turn (drain), then told to end, then killed. One that does not end even then
is STUCK: said once, tried again less and less often. One whose engine cannot be asked is UNKNOWN: `recovery.py` asks
until there is an answer. Neither holds up any other.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import anyio
import structlog

from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle.background import Background
from hermitcrab.containers.lifecycle.deadline import Deadline
from hermitcrab.containers.lifecycle.ending import Ender
from hermitcrab.containers.lifecycle.slot import Slot, Told
from hermitcrab.containers.lifecycle.slots import Slots
from hermitcrab.containers.lifecycle.watch import is_idle
from hermitcrab.errors import EngineError, Failure, HermitcrabError
from hermitcrab.logic import retry
from hermitcrab.logic.ending import Circumstances, Ending, explain
from hermitcrab.logic.lifecycle import LIVE, Life, Phase, Signal
from hermitcrab.model.container import ContainerStatus, ContainerView
from hermitcrab.model.ids import Generation
from hermitcrab.observe.supervision import isolated
from hermitcrab.settings.model import ContainerSettings
from hermitcrab_wire import faults, frames

CLEARED_WITHIN_S = 20.0
"""Clearing away what is left of a container."""

ANSWERED_WITHIN_S = 30.0
"""An engine that says nothing for this long cannot be asked."""

_ABRUPT = frozenset({"hung", "broke-contract", "start-failed", "workspace-full"})
"""Causes that allow no last words."""

_AT_ONCE = frozenset({"workspace-full"})
"""Causes that allow not even the grace: it would go on doing what it is ended for."""

log = structlog.get_logger(__name__)


class Stopper:
    def __init__(
        self,
        *,
        settings: ContainerSettings,
        slots: Slots,
        background: Background,
        engine: Engine,
        ender: Ender,
        told: Told,
        ended: Callable[[Slot, Ending], Awaitable[None]],
        unknown: Callable[[], None],
    ) -> None:
        """`ended`: who decides what follows an end. `unknown`: told of a container whose engine cannot be asked."""
        self._settings, self._slots, self._background = settings, slots, background
        self._engine, self._ender, self._told = engine, ender, told
        self._ended, self._unknown = ended, unknown

    async def stop(self, slot: Slot, cause: str) -> None:
        """End it and return when it has ended, is stuck, or cannot be asked. A start is called off."""
        if slot.starting is not None:
            slot.wanted_end = cause
            if slot.start_scope is not None:
                slot.start_scope.cancel()
            await slot.starting.wait()
        if slot.life.phase not in LIVE:
            return
        if slot.life.phase in {Phase.DRAINING, Phase.STOPPING}:
            await self._joined(slot)
            return
        generation = slot.life.generation
        if cause == "hung":
            # One that has ended says nothing either, and its end has a better reason.
            await self.check(slot, generation)
            if not is_live(slot, generation):
                return
        slot.wanted_end = slot.wanted_end or cause
        if slot.life == Life(Phase.UNKNOWN, generation):
            return  # The wish is noted; whether there is anything to end, nobody can say now.
        if cause not in _ABRUPT:
            await self._drain(slot, generation)
        if slot.life == Life(Phase.STOPPING, generation):
            await self._joined(slot)
        elif is_live(slot, generation) and slot.take(Signal.STOP):
            await self.end(slot, generation)

    async def stop_all(self, cause: str) -> None:
        """End every container, all at once. One that is starting is called off."""
        async with anyio.create_task_group() as tasks:
            for slot in self._slots:
                tasks.start_soon(isolated, self.stop, slot, cause)

    async def look_again(self, slot: Slot) -> None:
        """The engine may know more of that container than was heard."""
        if slot.starting is None:
            await self.check(slot, slot.life.generation)

    async def check(self, slot: Slot, generation: Generation) -> None:
        """Ask the engine whether that generation has ended, and if so, draw up its end. Idempotent. Never raises."""
        ending = None
        try:
            if slot.life.phase in {Phase.CREATED, Phase.STARTING} and slot.starting is not None:
                # The start has the lock and waits, for the engine or a hello; it draws up the end itself. By the time
                # that the engine has answered, another start may have begun, whose container this is not.
                ended = slot.ended
                if _has_ended(await self._inspect(slot), slot, generation):
                    ended.set()
                return
            ending = await self._check_ended(slot, generation)
        except (HermitcrabError, OSError) as error:
            self._not_ended(slot, generation, error)
        if ending is not None:
            await self._ended(slot, ending)

    async def end(self, slot: Slot, generation: Generation) -> None:
        """Have the engine end what is in STOPPING, and draw up its end."""
        grace_s = 0.0 if slot.wanted_end in _AT_ONCE else self._settings.stop_grace_s
        faults.point("container.stopping")
        try:
            with anyio.move_on_after(grace_s + ANSWERED_WITHIN_S) as within:
                await self._engine.stop(slot.name, grace_s=grace_s)
        except (HermitcrabError, OSError) as error:
            self._not_ended(slot, generation, error)
            return
        if within.cancelled_caught:
            self._stuck(slot, generation, f"the engine did not end it in {grace_s + ANSWERED_WITHIN_S:g} s")
            return
        await self.check(slot, generation)
        if slot.life == Life(Phase.STOPPING, generation) and not slot.lock.locked():
            self._stuck(slot, generation, "the engine says that it was stopped, and that it runs")

    async def _joined(self, slot: Slot) -> None:
        """Somebody else is ending it."""
        ended = slot.ended
        with anyio.move_on_after(self._settings.drain_within_s + self._settings.stop_grace_s + CLEARED_WITHIN_S):
            while slot.ended is ended and slot.life.phase in {Phase.DRAINING, Phase.STOPPING}:
                await slot.ended_or_stuck()

    async def _drain(self, slot: Slot, generation: Generation) -> None:
        """Let it finish the turn that it is in. One that has none ends at once when it is told to."""
        within_s, exchange = self._settings.drain_within_s, slot.exchange
        if within_s <= 0 or exchange is None or is_idle(slot) or slot.life.phase is not Phase.READY:
            return
        if not exchange.send(frames.Drain(within_ms=int(within_s * 1000))):
            return
        slot.take(Signal.DRAIN, generation)
        with anyio.move_on_after(within_s):
            await slot.ended.wait()

    async def _check_ended(self, slot: Slot, generation: Generation) -> Ending | None:
        async with slot.lock:
            if slot.life.generation != generation or slot.life.phase not in LIVE:
                return None
            view = await self._inspect(slot)
            if not _has_ended(view, slot, generation):
                slot.engine_was_away = False
                return None
            # From here on it is no live container, even if its end cannot be drawn up at once.
            if slot.life.phase is not Phase.STOPPING:
                slot.take(Signal.STOP, generation)
            record = view.exit if view is not None and view.generation == generation else None
            ending = explain(
                record,
                wanted=slot.wanted_end,
                farewell=slot.farewell,
                note=slot.end_text,
                around=Circumstances(engine_was_away=slot.engine_was_away),
            )
            with Deadline(CLEARED_WITHIN_S, "removal", slot.name):
                await self._ender.bury(slot, ending, record)
            slot.take(Signal.ENDED, generation)
            slot.text = ""
            self._told.resting(slot.session)
        return ending

    async def _inspect(self, slot: Slot) -> ContainerView | None:
        with Deadline(ANSWERED_WITHIN_S, "inspection", slot.name):
            return await self._engine.inspect(slot.name)

    def _not_ended(self, slot: Slot, generation: Generation, error: HermitcrabError | OSError) -> None:
        if slot.life.generation != generation:
            return
        if isinstance(error, EngineError) and error.failure is Failure.RUNTIME_UNAVAILABLE:
            self.lost(slot, generation, error.message)
        elif slot.life.phase is Phase.STOPPING:
            self._stuck(slot, generation, str(error))
        else:
            log.warning("container.not-checked", session=slot.session.id, text=str(error))

    def lost(self, slot: Slot, generation: Generation, text: str) -> None:
        """The engine cannot be asked about it: neither alive nor dead (law 1)."""
        slot.engine_was_away = True
        connected = slot.exchange is not None and slot.exchange.connected
        if slot.life.phase in {Phase.READY, Phase.FROZEN} and connected:
            return  # Its open link says that it lives.
        if slot.take(Signal.ENGINE_LOST, generation):
            log.warning("container.unknown", session=slot.session.id, generation=generation, text=text)
            slot.text = f"the engine cannot be asked about it: {text}"
            slot.notify_stuck()
            self._unknown()

    def _stuck(self, slot: Slot, generation: Generation, text: str) -> None:
        if not slot.take(Signal.KILL_FAILED, generation):
            return
        slot.stuck_tries += 1
        slot.text = f"it would not end: {text}"
        slot.notify_stuck()
        if slot.stuck_tries == 1:  # One alarm, however often it is tried again.
            log.error("container.stuck", session=slot.session.id, generation=generation, container=slot.name, text=text)
        delay = retry.STUCK.delay_s(slot.stuck_tries, random.random())  # noqa: S311
        self._background.spawn(self._try_again, slot, generation, slot.stuck_tries, delay)

    async def _try_again(self, slot: Slot, generation: Generation, number: int, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        if slot.stuck_tries != number:
            return  # Somebody was faster, and a later timer runs.
        if slot.life == Life(Phase.STUCK, generation) and slot.take(Signal.STOP, generation):
            await self.end(slot, generation)


def is_live(slot: Slot, generation: Generation) -> bool:
    """Whether that generation may still have a process."""
    return slot.life.generation == generation and slot.life.phase in LIVE


def _has_ended(view: ContainerView | None, slot: Slot, generation: Generation) -> bool:
    if view is None or view.generation != generation or view.status is ContainerStatus.EXITED:
        return True
    # What was made and never started has no process that could end.
    return view.status is ContainerStatus.CREATED and slot.life.phase is Phase.STOPPING
