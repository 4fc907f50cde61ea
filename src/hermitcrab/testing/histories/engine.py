"""The engine of one history: what every life of a host asks of it is a step, at which that life may end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hermitcrab.containers.engine import EngineOptions
from hermitcrab.model.container import ContainerSpec
from hermitcrab.testing.fake_engine import FakeEngine
from hermitcrab.testing.histories.life import stop_if_dead

if TYPE_CHECKING:
    from hermitcrab.testing.histories.world import World


class WorldEngine(FakeEngine):
    """The machine's engine as one life of a host knows it."""

    def __init__(self, world: World) -> None:
        super().__init__(
            EngineOptions(installation=world.template.installation, folder=world.home.engine_folder("fake")),
            machine=world.machine,
            behaviour=world.behaviour,
        )
        self._world = world

    def forget(self) -> None:
        """The host that asked it is no more."""
        if self._on_end in self.machine.listeners:
            self.machine.listeners.remove(self._on_end)

    async def _enter(self, method: str) -> None:
        self._world.note("engine", method)
        self._world.step(f"engine.{method}")
        await super()._enter(method)
        await self._world.threads.late()
        stop_if_dead()

    async def create(self, spec: ContainerSpec) -> None:
        await super().create(spec)
        self._world.created(spec)

    async def start(self, name: str) -> None:
        await super().start(name)
        self._world.started(self.machine.containers[name].spec)

    async def remove(self, name: str) -> None:
        found = self.machine.containers.get(name)
        await super().remove(name)
        if found is not None and found.process is not None:
            self._world.removed.append(found.spec)

    async def freeze(self, name: str) -> None:
        await super().freeze(name)
        if (runner := self._world.runner_of(self.machine.containers[name])) is not None:
            runner.frozen()

    async def thaw(self, name: str) -> None:
        await super().thaw(name)
        if (runner := self._world.runner_of(self.machine.containers[name])) is not None:
            runner.thawed()
