"""A simulated host in virtual time, for tests of the life of containers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hermitcrab.testing import virtual_time
from hermitcrab.testing.simulation import Simulation

Scenario = Callable[[Simulation], Awaitable[None]]
Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Runs a scenario on a simulated host with one session, `chat`, in virtual time."""

    def play(scenario: Scenario, **containers: Any) -> None:
        async def whole() -> None:
            simulation = Simulation(tmp_path, **containers)
            await simulation.start()
            await simulation.add_session("chat")
            await scenario(simulation)
            await simulation.stop()

        virtual_time.run(whole)

    return play
