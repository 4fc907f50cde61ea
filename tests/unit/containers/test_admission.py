"""Who gets a container when there is not room for all, and what is evicted for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from hermitcrab.containers.memory import BUDGET_SHARE, memory_budget_mb
from hermitcrab.logic.container_config import parse
from hermitcrab.store import agent_groups, container_configs
from hermitcrab.testing.simulation import Simulation

Play = Callable[..., None]

THREE = {"memory_budget_mb": 3 * 256, "quiet_before_freeze_s": 20.0}
"""Room for three containers."""


async def busy(simulation: Simulation, *names: str) -> None:
    """Their containers have a message, and do not come to an end with it."""
    simulation.script.answers = False
    for name in names:
        await simulation.say(name)
        await simulation.until_phase(name, "ready")


async def sessions(simulation: Simulation, count: int) -> list[str]:
    names = [f"s{number}" for number in range(count)]
    for name in names:
        await simulation.add_session(name)
    return names


def test_what_finds_no_memory_waits_visibly_and_starts_when_there_is(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        names = await sessions(simulation, 5)
        await busy(simulation, *names[:3])
        await simulation.say(names[3])
        await simulation.say(names[4])
        await simulation.until_phase(names[4], "queued")
        views = {view.session_id: view for view in simulation.host.runner.views()}
        first, second = (views[simulation.chats[name][1]] for name in names[3:])
        assert (first.phase, first.place) == ("queued", 1)
        assert (second.phase, second.place) == ("queued", 2)
        assert second.text == "waits for memory: 768 of 768 MB are reserved, and all have work; place 2 of 2"
        admission = simulation.host.runner.admission()
        assert (admission.reserved_mb, admission.budget_mb, admission.queued) == (768, 768, 2)
        assert len(simulation.machine.containers) == 3
        simulation.script.answers = True
        simulation.runners.wake_up()
        await simulation.answered()
        assert len(simulation.machine.containers) <= 3

    play(scenario, **THREE)


def test_a_group_with_a_small_limit_is_counted_for_that_from_its_first_start(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        names = await sessions(simulation, 4)
        store = simulation.host.store
        small = parse({"limits": {"memory_mb": 64}})
        for group in await store.read(agent_groups.all_groups):
            await store.write(lambda connection, key=group.id: container_configs.put(connection, key, small))  # type: ignore[misc]
        await busy(simulation, *names)
        assert simulation.host.runner.admission().reserved_mb == 256

    play(scenario, memory_budget_mb=256)


def test_a_start_that_fails_gives_its_place_to_who_waits(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        first, second = await sessions(simulation, 2)
        simulation.engine.faults.die_after_start = True
        await simulation.say(first)
        await simulation.say(second)
        await anyio.sleep(5)
        simulation.engine.faults.die_after_start = False
        # Each of them would wait behind the other, and nothing runs whose end could wake them.
        await simulation.answered(within_s=300)

    play(scenario, memory_budget_mb=256)


@pytest.mark.parametrize("phase", ["ready", "frozen"])
def test_the_one_that_was_quiet_longest_makes_room(play: Play, phase: str) -> None:
    async def scenario(simulation: Simulation) -> None:
        names = await sessions(simulation, 4)
        for name in names[:3]:
            await simulation.say(name)
            await simulation.answered()
        for name in names[:3]:
            await simulation.until_phase(name, phase)
        await simulation.say(names[3])
        await simulation.answered()
        assert [simulation.phase(name) for name in names] == ["absent", phase, phase, "ready"]
        session = await simulation.session(simulation.chats[names[0]][1])
        assert (await simulation.host.runner.certificates(session))[-1]["cause"] == "evicted"

    play(scenario, **THREE)


def test_while_one_is_slow_to_make_room_no_other_is_ended_for_it(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        names = await sessions(simulation, 4)
        for name in names[:3]:
            await simulation.say(name)
            await simulation.answered()
        simulation.script.stubborn = {simulation.chats[names[0]][1]}
        await simulation.say(names[3])
        await simulation.until_phase(names[0], "draining", "stopping")
        # One that has just nothing to do any more lets whoever waits look again.
        await simulation.say(names[1])
        await simulation.answered()
        assert [simulation.phase(name) for name in names] == ["absent", "ready", "ready", "ready"]

    play(scenario, memory_budget_mb=3 * 256, drain_within_s=0.5, stop_grace_s=1.0)


def test_a_group_with_many_sessions_does_not_starve_another(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        (other,) = await sessions(simulation, 1)
        crowd = [f"crowd-{number}" for number in range(8)]
        await simulation.add_sessions_of_one_group(crowd)
        await busy(simulation, *crowd[:1])
        for name in crowd[1:]:
            await simulation.say(name)
        await anyio.sleep(1)
        await simulation.say(other)
        await anyio.sleep(1)
        views = {view.session_id: view for view in simulation.host.runner.views()}
        assert views[simulation.chats[other][1]].place == 2
        simulation.script.answers = True
        simulation.runners.wake_up()
        await simulation.answered()
        order = [session for session, _, text in simulation.script.received if text == "hello"]
        assert order.index(simulation.chats[other][1]) <= 3

    play(scenario, memory_budget_mb=256)


def test_a_queued_start_can_be_called_off_and_leaves_nothing(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        names = await sessions(simulation, 2)
        await busy(simulation, names[0])
        kinds: list[str] = []

        async def wake() -> None:
            session = await simulation.session(simulation.chats[names[1]][1])
            kinds.append((await simulation.host.runner.wake(session)).kind)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wake)
            await simulation.until_phase(names[1], "queued")
            assert await simulation.host.runner.kill(simulation.chats[names[1]][1])
        assert kinds == ["called-off"]
        assert simulation.host.runner.admission().queued == 0
        assert simulation.phase(names[1]) == "absent"

    play(scenario, memory_budget_mb=256)


def test_two_hundred_wakes_of_one_session_join_one_attempt(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        session = await simulation.session(simulation.chats["chat"][1])
        creates = simulation.engine.calls["create"]
        kinds: list[str] = []

        async def wake() -> None:
            kinds.append((await simulation.host.runner.wake(session)).kind)

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(wake)
        assert kinds == ["started"] * 200
        assert simulation.engine.calls["create"] == creates + 1

    play(scenario)


def test_an_eviction_that_takes_long_holds_up_nobody_if_another_can_go(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        names = await sessions(simulation, 4)
        for name in names[:3]:
            await simulation.say(name)
            await simulation.answered()
        simulation.script.stubborn.add(simulation.chats[names[0]][1])
        began = anyio.current_time()
        await simulation.say(names[3])
        await simulation.until_phase(names[3], "ready")
        assert anyio.current_time() - began < 5
        assert simulation.phase(names[1]) == "absent"

    play(scenario, memory_budget_mb=3 * 256, stop_grace_s=60.0)


def test_the_budget_is_a_share_of_the_memory_that_is_available(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000000 kB\nMemAvailable:   1024000 kB\n")
    assert memory_budget_mb(meminfo) == int(1000 * BUDGET_SHARE)
    for damaged in ("", "MemAvailable:\n", "MemAvailable: many kB\n"):
        meminfo.write_text(damaged)
        assert memory_budget_mb(meminfo) is None
    assert memory_budget_mb(tmp_path / "missing") is None
