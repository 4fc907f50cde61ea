"""An engine that did not answer while containers of ours were on it: asked until it does, once for all of them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import anyio
import structlog

from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle.background import Background
from hermitcrab.containers.lifecycle.breakers import ENGINE, Breakers
from hermitcrab.containers.lifecycle.deadline import Deadline
from hermitcrab.containers.lifecycle.slot import Slot
from hermitcrab.containers.lifecycle.slots import Slots
from hermitcrab.containers.lifecycle.stopping import ANSWERED_WITHIN_S
from hermitcrab.errors import EngineError
from hermitcrab.logic import retry
from hermitcrab.logic.lifecycle import Phase
from hermitcrab.observe.supervision import isolated

AT_ONCE = 16

log = structlog.get_logger(__name__)


class Recovery:
    def __init__(
        self,
        *,
        slots: Slots,
        background: Background,
        engine: Engine,
        breakers: Breakers,
        find_again: Callable[[Slot], Awaitable[None]],
    ) -> None:
        self._slots, self._background, self._engine = slots, background, engine
        self._find_again, self._breakers = find_again, breakers
        self._running = False

    def begin(self) -> None:
        """A container is UNKNOWN. Whoever asks already asks for it too."""
        if not self._running:
            self._running = True
            self._background.spawn(self._ask)

    async def _ask(self) -> None:
        failures = 0
        try:
            while unknown := [slot for slot in self._slots if slot.life.phase is Phase.UNKNOWN]:
                failures += 1
                await anyio.sleep(retry.ENGINE.delay_s(failures, random.random()))  # noqa: S311
                try:
                    with Deadline(ANSWERED_WITHIN_S, "listing", f"the containers of {self._engine.name}"):
                        await self._engine.containers()
                except EngineError as error:
                    log.info("engine.still-unknown", engine=self._engine.name, text=error.message, asked=failures)
                    continue
                log.info("engine.answers-again", engine=self._engine.name, containers=len(unknown))
                self._breakers.recheck(ENGINE)
                await self._find_all(unknown)
        finally:
            self._running = False

    async def _find_all(self, unknown: list[Slot]) -> None:
        limiter = anyio.Semaphore(AT_ONCE)

        async def find(slot: Slot) -> None:
            async with limiter:
                await self._find_again(slot)

        async with anyio.create_task_group() as tasks:
            for slot in unknown:
                tasks.start_soon(isolated, find, slot)
