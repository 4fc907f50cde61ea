"""What is broken for all is tried by one."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from hermitcrab.errors import ConflictError
from hermitcrab.testing.simulation import Simulation

Play = Callable[..., None]


async def many(simulation: Simulation, count: int = 12) -> list[str]:
    names = [f"s{number}" for number in range(count)]
    await simulation.add_sessions_of_one_group(names)
    return names


async def message_each(simulation: Simulation, names: list[str]) -> None:
    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(simulation.say, name)


def test_an_image_that_is_missing_is_looked_for_by_one_session_at_a_time(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        names = await many(simulation)
        simulation.engine.images = frozenset({"another"})
        await message_each(simulation, names)
        await anyio.sleep(60)
        (breaker,) = simulation.host.runner.breakers()
        assert breaker.dependency.startswith("image of ")
        assert breaker.failures >= 3
        assert "There is no image" in breaker.text
        # Those that began before it opened, and then one for each pause of 2, 4, 8, ... seconds.
        assert simulation.engine.calls["ensure_image"] - 1 < 2 * len(names)
        looked = simulation.engine.calls["ensure_image"]
        await anyio.sleep(60)
        assert simulation.engine.calls["ensure_image"] - looked <= 3
        queued = [view for view in simulation.host.runner.views() if view.phase == "queued"]
        assert queued
        assert all("waits for the image of" in view.text for view in queued)
        simulation.engine.images = frozenset({None})
        await simulation.answered()
        assert simulation.host.runner.breakers() == []

    play(scenario)


def test_one_groups_image_holds_up_no_other_group(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        names = await many(simulation, 6)
        simulation.engine.images = frozenset({"another"})
        await message_each(simulation, names)
        await anyio.sleep(5)
        assert simulation.host.runner.breakers()
        simulation.engine.images = frozenset({None})
        began = anyio.current_time()
        await simulation.say("chat")
        await simulation.until_phase("chat", "ready")
        assert anyio.current_time() - began < 1

    play(scenario)


def test_a_gateway_that_opens_no_doors_stops_the_starts_of_all(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(simulation: Simulation) -> None:
        names = await many(simulation)
        asked = 0

        async def refuse(*_arguments: object) -> None:
            nonlocal asked
            asked += 1
            raise ConflictError("no door today")

        with monkeypatch.context() as patched:
            patched.setattr(simulation.host.gateway, "open", refuse)
            await message_each(simulation, names)
            await anyio.sleep(120)
            (breaker,) = simulation.host.runner.breakers()
            assert breaker.dependency == "gateway"
            assert asked < 2 * len(names)
        await simulation.answered()
        assert simulation.host.runner.breakers() == []

    play(scenario)


def test_an_engine_that_is_away_is_not_asked_by_every_session(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        names = await many(simulation)
        simulation.engine.faults.unavailable = True
        await message_each(simulation, names)
        await anyio.sleep(60)
        assert "engine" in [each.dependency for each in simulation.host.runner.breakers()]
        calls = simulation.engine.calls.total()
        await anyio.sleep(120)
        assert simulation.engine.calls.total() - calls < 60
        simulation.engine.faults.unavailable = False
        began = anyio.current_time()
        await simulation.answered()
        assert anyio.current_time() - began < 120
        assert simulation.host.runner.breakers() == []

    play(scenario)
