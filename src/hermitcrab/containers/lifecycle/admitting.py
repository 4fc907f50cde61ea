"""The last look at a container before it is given anything: its additional mounts and what it can write are as decided.

Both are looked at when the runner says hello. Until then only the host's own code has run in there.
"""

from __future__ import annotations

import structlog
from anyio import to_thread

from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle.slot import Slot
from hermitcrab.containers.materials.mounts import verify_inside
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.admittance import unproven
from hermitcrab_wire import frames

log = structlog.get_logger(__name__)


class Admittance:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def admit(self, slot: Slot, hello: frames.Hello) -> str:
        """Nothing, or why the container may not have any message. The start that waits for it fails with the reason."""
        try:
            await self._look(slot, hello)
        except EngineError as error:
            log.error("container.not-admitted", session=slot.session.id, failure=error.failure, text=error.message)
            slot.refusal = error
            slot.hello.set()
            return error.message
        return ""

    async def _look(self, slot: Slot, hello: frames.Hello) -> None:
        if slot.spec is None:
            return
        errors = {str(each.get("path")): str(each.get("error"))[:40] for each in hello.unwritable}
        if (problem := unproven(slot.spec, frozenset(hello.writable), errors)) is not None:
            raise problem
        if not any(decision.allowed for decision in slot.decisions):
            return
        view = await self._engine.inspect(slot.name)
        if view is None or view.pid is None:
            raise EngineError(
                Failure.STARTED_THEN_DIED, f"the container of {slot.session.id} ended before it could be looked into"
            )
        await to_thread.run_sync(verify_inside, slot.decisions, view.pid)
