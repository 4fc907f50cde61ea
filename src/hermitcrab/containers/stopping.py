"""When a container ends: on somebody's wish, or because the engine says so. `ending.py` draws up the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import structlog

from hermitcrab.containers.ending import Ender
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.slot import Slot, Told
from hermitcrab.containers.slots import Slots
from hermitcrab.errors import EngineError, HermitcrabError
from hermitcrab.logic.ending import Ending, explain
from hermitcrab.logic.lifecycle import LIVE, Phase, Signal
from hermitcrab.model.container import ContainerStatus
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.observe.supervision import isolated
from hermitcrab.settings.model import ContainerSettings

CLEARED_WITHIN_S = 20.0
"""Clearing away after a start that failed; what is left then, the next start or sweep meets."""

log = structlog.get_logger(__name__)


class Stopper:
    def __init__(
        self,
        *,
        settings: ContainerSettings,
        slots: Slots,
        engine: Engine,
        ender: Ender,
        told: Told,
        ended: Callable[[Slot, Ending], Awaitable[None]],
    ) -> None:
        """`ended`: who decides what follows an end."""
        self._settings, self._slots, self._engine = settings, slots, engine
        self._ender, self._told, self._ended = ender, told, ended

    async def stop(self, slot: Slot, cause: str) -> None:
        """End it and return when it has ended, is stuck, or cannot be asked. A start is called off."""
        if slot.starting is not None:
            slot.wanted_end = cause
            if slot.start_scope is not None:
                slot.start_scope.cancel()
            await slot.starting.wait()
        generation = slot.life.generation
        if slot.life.phase is Phase.STOPPING:
            with anyio.move_on_after(self._settings.stop_grace_s + CLEARED_WITHIN_S):
                await slot.ended.wait()
            return
        if slot.life.phase not in LIVE or not slot.take(Signal.STOP):
            return
        slot.wanted_end = slot.wanted_end or cause
        await self._end(slot, generation)

    async def stop_all(self, cause: str) -> None:
        """End every container, all at once. One that is starting is called off."""
        async with anyio.create_task_group() as tasks:
            for slot in self._slots:
                tasks.start_soon(isolated, self.stop, slot, cause)

    async def look_again(self, session_id: SessionId) -> None:
        """The engine may know more of that container than was heard: ask it, and end again what would not end."""
        slot = self._slots.get(session_id)
        if slot is None or slot.starting is not None:
            return
        generation = slot.life.generation
        if slot.life.phase is Phase.STUCK:
            await self.stop(slot, slot.wanted_end or "stopped")
            return
        if slot.life.phase is Phase.STOPPING and slot.stopping == 0:
            # An earlier attempt could not ask the engine whether it has ended.
            await self._end(slot, generation)
            return
        await self.check(slot, generation)

    async def check(self, slot: Slot, generation: Generation) -> None:
        """Ask the engine whether that generation has ended, and if so, draw up its end. Idempotent."""
        try:
            if slot.life.phase is Phase.STARTING and slot.starting is not None:
                # The start has the lock and waits for a hello; it draws up the end itself.
                view = await self._engine.inspect(slot.name)
                if view is None or view.generation != generation or view.status is ContainerStatus.EXITED:
                    slot.ended.set()
                return
            ending = await self._check_ended(slot, generation)
        except (HermitcrabError, OSError) as error:
            # The engine cannot be asked: neither alive nor dead. The next event or sweep asks again (law 1).
            log.warning("container.unknown", session=slot.session.id, text=str(error))
            return
        if ending is not None:
            await self._ended(slot, ending)

    async def _end(self, slot: Slot, generation: Generation) -> None:
        slot.stopping += 1
        try:
            await self._engine.stop(slot.name, grace_s=self._settings.stop_grace_s)
        except EngineError as error:
            log.error("container.stuck", session=slot.session.id, text=error.message)
            slot.text = error.message
            slot.take(Signal.KILL_FAILED, generation)
            return
        finally:
            slot.stopping -= 1
        await self.check(slot, generation)

    async def _check_ended(self, slot: Slot, generation: Generation) -> Ending | None:
        async with slot.lock:
            if slot.life.generation != generation or slot.life.phase not in LIVE:
                return None
            view = await self._engine.inspect(slot.name)
            if view is not None and view.generation == generation and view.status is not ContainerStatus.EXITED:
                return None
            record = view.exit if view is not None and view.generation == generation else None
            ending = explain(record, wanted=slot.wanted_end, farewell=slot.farewell)
            await self._ender.bury(slot, ending, record)
            slot.take(Signal.ENDED, generation)
            self._told.resting(slot.session)
        return ending
