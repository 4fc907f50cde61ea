"""Many containers of one group that an earlier host left: looked up together, decided on one by one."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from hermitcrab.groups import surroundings
from hermitcrab.groups.materials import group_documents
from hermitcrab.model.ids import Generation
from hermitcrab.store import container_configs, sessions
from hermitcrab.testing import virtual_time
from hermitcrab.testing.simulation import Simulation

NAMES = ["one", "two", "three", "four", "five"]

Scenario = Callable[[Simulation], Awaitable[None]]


def play(folder: Path, scenario: Scenario) -> None:
    async def life() -> None:
        simulation = Simulation(folder, max_running=20)
        await simulation.start()
        await simulation.add_sessions_of_one_group(NAMES)
        for name in NAMES:
            await simulation.say(name)
        await simulation.answered()
        await scenario(simulation)
        await simulation.stop()

    virtual_time.run(life)


def generations(simulation: Simulation) -> dict[str, int]:
    found = {}
    for name in NAMES:
        container = simulation.container(name)
        assert container is not None
        found[name] = container.spec.generation
    return found


def test_all_are_taken_over_and_their_group_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[str] = []

    def counted(*arguments: object) -> object:
        composed.append("once")
        return group_documents(*arguments)  # type: ignore[arg-type]

    async def scenario(simulation: Simulation) -> None:
        before = generations(simulation)
        await simulation.crash()
        monkeypatch.setattr(surroundings, "group_documents", counted)
        await simulation.start()
        assert simulation.host.reconciled.adopted == len(NAMES)
        assert composed == ["once"]
        assert generations(simulation) == before
        for name in NAMES:
            await simulation.until_phase(name, "ready", within_s=30)
            await simulation.say(name)
        await simulation.answered()
        assert generations(simulation) == before

    play(tmp_path, scenario)


def test_one_that_was_made_differently_is_replaced_and_the_others_are_kept(tmp_path: Path) -> None:
    async def scenario(simulation: Simulation) -> None:
        before = generations(simulation)
        container = simulation.container("three")
        assert container is not None
        await simulation.crash()
        container.spec = replace(container.spec, workdir="/elsewhere")
        await simulation.start()
        assert simulation.host.reconciled.adopted == len(NAMES) - 1
        assert simulation.host.reconciled.removed == 1
        await simulation.say("three")
        await simulation.answered()
        assert generations(simulation) == {**before, "three": before["three"] + 1}

    play(tmp_path, scenario)


def test_one_of_an_earlier_generation_than_was_claimed_is_replaced(tmp_path: Path) -> None:
    """As a host leaves it that claims a new generation and dies before the old container is gone."""

    async def scenario(simulation: Simulation) -> None:
        before = generations(simulation)
        key = simulation.chats["three"][1]
        await simulation.crash()
        with closing(sqlite3.connect(simulation.home.database)) as connection, connection:
            claimed = sessions.claim(connection, key, Generation(before["three"]))
        await simulation.start()
        assert simulation.host.reconciled.adopted == len(NAMES) - 1
        assert simulation.host.reconciled.removed == 1
        await simulation.say("three")
        await simulation.answered()
        assert generations(simulation) == {**before, "three": claimed + 1}

    play(tmp_path, scenario)


def test_none_is_kept_whose_group_has_another_config_now(tmp_path: Path) -> None:
    async def scenario(simulation: Simulation) -> None:
        group = (await simulation.session(simulation.chats["one"][1])).agent_group_id
        await simulation.host.store.write(
            lambda connection: container_configs.put(
                connection, group, replace(container_configs.of(connection, group), assistant_name="Somebody else")
            )
        )
        await simulation.crash()
        await simulation.start()
        assert simulation.host.reconciled.adopted == 0
        assert simulation.host.reconciled.removed == len(NAMES)

    play(tmp_path, scenario)


def test_none_is_kept_whose_config_cannot_be_used(tmp_path: Path) -> None:
    async def scenario(simulation: Simulation) -> None:
        group = (await simulation.session(simulation.chats["one"][1])).agent_group_id
        text = '{"memory_mb": "much"}'
        await simulation.host.store.write(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO container_configs (agent_group_id, document, updated_at) VALUES (?, ?, '')",
                (group, text),
            )
        )
        await simulation.crash()
        await simulation.start()
        assert simulation.host.reconciled.adopted == 0
        assert simulation.host.reconciled.removed == len(NAMES)

    play(tmp_path, scenario)
