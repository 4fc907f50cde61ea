"""Following the engine's events. They are hints, after which the engine is asked (law 1)."""

from __future__ import annotations

import anyio
import structlog

from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle.background import Background
from hermitcrab.containers.lifecycle.slots import Slots
from hermitcrab.containers.lifecycle.stopping import Stopper
from hermitcrab.errors import HermitcrabError

RESUBSCRIBED_AFTER_S = 2.0

log = structlog.get_logger(__name__)


class Follower:
    def __init__(self, *, slots: Slots, background: Background, engine: Engine, stopper: Stopper) -> None:
        self._slots, self._background = slots, background
        self._engine, self._stopper = engine, stopper
        self.settled = anyio.Event()
        """Events are heard, or known not to be."""

    async def run(self) -> None:
        """For as long as the host runs: an engine that goes away is an engine that may come back."""
        while True:
            try:
                async with self._engine.events() as events:
                    self.settled.set()
                    async for event in events:
                        if event.kind == "ended" and event.name is not None:
                            self._check_soon(event.name)
                        elif event.kind == "resync":
                            for name in self._slots.names():
                                self._check_soon(name)
            except (HermitcrabError, OSError) as error:
                log.warning("engine.events-lost", engine=self._engine.name, text=str(error))
                for slot in self._slots:
                    slot.engine_was_away = True
            self.settled.set()
            await anyio.sleep(RESUBSCRIBED_AFTER_S)

    def _check_soon(self, name: str) -> None:
        slot = self._slots.named(name)
        if slot is not None:
            self._background.spawn(self._stopper.check, slot, slot.life.generation)
