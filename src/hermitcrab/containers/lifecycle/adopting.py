"""What becomes of a container that the engine has and nobody here has made: taken over, or removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import anyio
import structlog

from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle.background import Background
from hermitcrab.containers.lifecycle.deadline import Deadline
from hermitcrab.containers.lifecycle.ending import Ender
from hermitcrab.containers.lifecycle.hearing import Hearing
from hermitcrab.containers.lifecycle.slot import Slot
from hermitcrab.containers.lifecycle.slots import Slots
from hermitcrab.containers.lifecycle.starting import Starter
from hermitcrab.containers.lifecycle.stopping import ANSWERED_WITHIN_S, CLEARED_WITHIN_S, Stopper
from hermitcrab.containers.lifecycle.waking import nudge
from hermitcrab.errors import EngineError, Failure, HermitcrabError, NotFoundError
from hermitcrab.logic.lifecycle import LIVE, STARTABLE, Life, Phase, Signal
from hermitcrab.model.container import ContainerSpec, ContainerStatus, ContainerView
from hermitcrab.model.ids import SessionId
from hermitcrab.observe.supervision import isolated

RUNS = frozenset({ContainerStatus.RUNNING, ContainerStatus.FROZEN})

log = structlog.get_logger(__name__)


class Adopter:
    def __init__(
        self,
        *,
        slots: Slots,
        background: Background,
        engine: Engine,
        starter: Starter,
        ender: Ender,
        stopper: Stopper,
        hearing: Hearing,
    ) -> None:
        self._slots, self._background, self._engine = slots, background, engine
        self._starter, self._ender, self._stopper = starter, ender, stopper
        self._hearing = hearing
        self._foreseen: dict[SessionId, ContainerSpec] = {}
        """Of containers that were expected and not met yet."""

    async def expect(self, views: Sequence[ContainerView]) -> None:
        """Look up what `meet` needs for these, all at once: what is alike for many is looked up once."""
        await self._slots.open_all(view.session for view in views)
        wanted = [
            (slot, view.generation)
            for view in views
            if (slot := self._slots.get(view.session)) is not None
            and slot.life.phase in STARTABLE
            and view.generation == slot.session.generation
            and view.status in RUNS
        ]
        self._foreseen = await self._starter.foresee(wanted)

    async def meet(self, view: ContainerView) -> Literal["kept", "adopted", "removed"]:
        """Decide about a container that the engine has: ours already, taken over from an earlier host, or left over."""
        try:
            slot = await self._slots.open(view.session)
        except NotFoundError:
            await self._remove(view)
            return "removed"
        begun = slot.starting is not None and slot.life.phase not in STARTABLE
        if begun or slot.life.phase in LIVE:
            if slot.life.phase is Phase.UNKNOWN:
                await self.find_again(slot)
            elif view.status is ContainerStatus.EXITED or slot.life.phase in {Phase.STOPPING, Phase.STUCK}:
                await self._stopper.look_again(slot)
            return "kept"
        async with slot.lock:
            if slot.life.phase in LIVE:
                return "kept"
            try:
                may = slot.life.phase in STARTABLE and slot.session.id not in self._slots.withheld
                adopted = may and await self._adopt(slot, view)
                if not adopted:
                    await self._remove(view)
            finally:
                self._slots.forget(slot)
        if adopted:
            self._background.spawn(self._await_adopted, slot)
        return "adopted" if adopted else "removed"

    async def _adopt(self, slot: Slot, view: ContainerView) -> bool:
        if view.generation != slot.session.generation or view.status not in RUNS:
            return False
        slot.hello, slot.ended, slot.refusal = anyio.Event(), anyio.Event(), None
        try:
            spec = self._foreseen.pop(view.session, None)
            if spec is None or spec.generation != view.generation:
                spec = await self._starter.prepare(slot, view.generation)
            slot.spec = spec
            if spec.spec_hash != view.spec_hash:
                log.info("adopt.changed", session=view.session, generation=view.generation)
                return False
            await self._starter.open_sockets(slot, view.generation, self._hearing.of(slot))
            if view.status is ContainerStatus.FROZEN:
                with Deadline(ANSWERED_WITHIN_S, "thawing", view.name):
                    await self._engine.thaw(view.name)
        except (HermitcrabError, OSError) as error:
            await isolated(slot.close_resources)
            if isinstance(error, EngineError) and error.failure is Failure.RUNTIME_UNAVAILABLE:
                raise  # Neither taken over nor given up: a sweep comes back to it (law 1).
            log.warning("adopt.refused", session=view.session, text=str(error))
            return False
        slot.wanted_end = slot.end_text = slot.farewell = None
        slot.engine_was_away = False
        slot.offences = slot.stuck_tries = 0
        slot.measured = None
        slot.take(Signal.ADOPTED, view.generation)
        slot.started_at = slot.active_at = anyio.current_time()
        return True

    async def _remove(self, view: ContainerView) -> None:
        with Deadline(CLEARED_WITHIN_S, "removal", view.name):
            await self._ender.remove_stale(view)

    async def find_again(self, slot: Slot) -> None:
        """The engine answers again: see what became of the container that nobody could be asked about."""
        generation, resumed = slot.life.generation, False
        async with slot.lock:
            if slot.life != Life(Phase.UNKNOWN, generation) or slot.starting is not None:
                return
            with Deadline(ANSWERED_WITHIN_S, "inspection", slot.name):
                view = await self._engine.inspect(slot.name)
            runs = view is not None and view.generation == generation and view.status in RUNS
            if runs and slot.wanted_end is None and slot.exchange is not None:
                with Deadline(ANSWERED_WITHIN_S, "thawing", slot.name):
                    await self._engine.thaw(slot.name)
                slot.hello = anyio.Event()
                if slot.exchange.connected:
                    slot.hello.set()
                slot.exchange.pulse.thawed()
                slot.active_at = anyio.current_time()
                slot.text, slot.engine_was_away = "", False
                resumed = slot.take(Signal.ADOPTED, generation)
        if resumed:
            self._background.spawn(self._await_adopted, slot)
        elif slot.life == Life(Phase.UNKNOWN, generation) and slot.take(Signal.STOP, generation):
            # Ended, or to be ended: both come out when the engine is told to end it.
            await self._stopper.end(slot, generation)

    async def _await_adopted(self, slot: Slot) -> None:
        generation = slot.life.generation
        try:
            await self._starter.await_hello(slot)
            slot.take(Signal.HELLO, generation)
            log.info("container.adopted", session=slot.session.id, generation=generation)
            if slot.wanted:
                slot.wanted = False
                await nudge(slot)  # Of rows that came between the greeting and now, a wake has told.
        except EngineError as error:
            if slot.life.generation != generation or slot.life.phase is not Phase.STARTING:
                return
            if slot.refusal is None:
                await self._stopper.stop(slot, "hung")
                return
            slot.end_text = f"It was taken over from an earlier host, and could not be admitted: {error.message}."
            await self._stopper.stop(slot, "start-failed")
