"""How containers end: drained, told, killed; and what becomes of those that do not end, or cannot be asked about."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import structlog

from hermitcrab.model.container import ContainerStatus
from hermitcrab.model.ids import Generation
from hermitcrab.testing.simulation import Simulation

Play = Callable[..., None]


async def causes(simulation: Simulation, name: str = "chat") -> list[str]:
    """Why its containers ended, without the first."""
    session = await simulation.session(simulation.chats[name][1])
    return [each["cause"] for each in await simulation.host.runner.certificates(session)][1:]


async def has_live(simulation: Simulation) -> None:
    await simulation.say("chat")
    await simulation.answered()
    await simulation.until_phase("chat", "ready")


async def works(simulation: Simulation) -> None:
    """Its runner has a message and does not come to an end with it."""
    simulation.script.answers = False
    await simulation.say("chat")
    await simulation.until_phase("chat", "ready")
    await anyio.sleep(1)


def test_one_that_works_may_finish_its_turn(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await works(simulation)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(simulation.host.runner.kill, simulation.chats["chat"][1])
            await anyio.sleep(2)
            assert simulation.phase("chat") == "draining"
            simulation.script.answers = True
            simulation.runners.wake_up()
        assert simulation.engine.calls["stop"] == 1  # the one of its first container, which had nothing to do
        (counts,) = await simulation.counts()
        assert counts.pending_triggers == 0
        assert await causes(simulation) == ["stopped"]

    play(scenario)


def test_one_that_does_not_finish_in_time_is_told_to_end_and_its_message_is_kept(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await works(simulation)
        began = anyio.current_time()
        await simulation.host.runner.kill(simulation.chats["chat"][1])
        assert 5 <= anyio.current_time() - began < 6
        assert simulation.container("chat") is None
        (counts,) = await simulation.counts()
        assert counts.pending_triggers == 1

    play(scenario)


def test_one_that_obeys_nothing_is_killed_after_drain_and_grace(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await works(simulation)
        simulation.script.obeys = False
        began = anyio.current_time()
        await simulation.host.runner.kill(simulation.chats["chat"][1])
        assert 15 <= anyio.current_time() - began < 16
        assert simulation.container("chat") is None

    play(scenario)


def test_all_are_stopped_at_once(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        for number in range(5):
            await simulation.add_session(f"more-{number}")
        simulation.script.answers = simulation.script.obeys = False
        for name in simulation.chats:
            await simulation.say(name)
            await simulation.until_phase(name, "ready")
        began = anyio.current_time()
        await simulation.host.runner.stop_all()
        assert anyio.current_time() - began < 16
        assert not simulation.machine.containers

    play(scenario)


def test_a_message_to_one_that_drains_gets_the_next_container(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await works(simulation)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(simulation.host.runner.kill, simulation.chats["chat"][1])
            await anyio.sleep(1)
            await simulation.say("chat", "later")
            simulation.script.answers = True
        await simulation.answered()
        assert simulation.container("chat") is not None
        assert simulation.script.received[-1][1:] == (3, "later")

    play(scenario)


def test_one_that_cannot_be_killed_is_stuck_said_once_and_tried_again(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await has_live(simulation)
        await simulation.add_session("other")
        simulation.script.obeys = False
        simulation.engine.faults.cannot_kill = True
        with structlog.testing.capture_logs() as told:
            await simulation.host.runner.kill(simulation.chats["chat"][1])
        assert [each["event"] for each in told if each["log_level"] == "error"] == ["container.stuck"]
        assert simulation.phase("chat") == "stuck"
        (view,) = [each for each in simulation.host.runner.views() if each.phase == "stuck"]
        assert "would not end" in view.text
        await simulation.say("chat", "waiting")
        await simulation.say("other", "not held up")
        await simulation.until_phase("other", "ready")
        stops = simulation.engine.calls["stop"]
        with structlog.testing.capture_logs() as told:
            await anyio.sleep(300)
        assert not [each for each in told if each["log_level"] == "error"]
        assert 3 <= simulation.engine.calls["stop"] - stops <= 8
        assert simulation.phase("chat") in {"stuck", "stopping"}  # It may be in the middle of a try.
        simulation.engine.faults.cannot_kill = False
        await simulation.answered()
        assert await causes(simulation) == ["stopped"]

    play(scenario)


def test_an_engine_that_cannot_be_asked_leaves_a_container_unknown_until_it_answers(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await has_live(simulation)
        container = simulation.container("chat")
        assert container is not None
        simulation.engine.faults.unavailable = True
        assert container.process is not None
        container.process.exit(1)
        await simulation.until_phase("chat", "unknown")
        await simulation.say("chat", "while it is away")
        await anyio.sleep(120)
        assert simulation.phase("chat") == "unknown"
        assert await causes(simulation) == []
        simulation.engine.faults.unavailable = False
        await simulation.answered()
        assert await causes(simulation) == ["exited"]

    play(scenario)


def test_one_that_lived_through_an_outage_goes_on(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await has_live(simulation)
        container = simulation.container("chat")
        simulation.engine.faults.unavailable = True
        await simulation.host.runner.kill(simulation.chats["chat"][1])
        assert simulation.phase("chat") == "unknown"
        # The wish to end it is kept, and another container meanwhile there is not.
        simulation.engine.faults.unavailable = False
        await simulation.until_phase("chat", "absent")
        assert simulation.container("chat") is None
        await has_live(simulation)
        assert simulation.container("chat") is not container

    play(scenario)


def test_an_open_link_says_that_a_container_lives_whatever_its_engine_says(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await has_live(simulation)
        simulation.engine.faults.unavailable = True
        simulation.engine.lose_events()
        await anyio.sleep(10)
        assert simulation.phase("chat") == "ready"
        await simulation.say("chat", "still here?")
        await simulation.answered()
        assert simulation.script.received[-1][1:] == (2, "still here?")

    play(scenario)


def test_a_start_that_the_engine_broke_off_is_cleared_away_once_it_answers(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        simulation.script.says_hello = False
        await simulation.say("chat")
        await simulation.until_phase("chat", "starting")
        simulation.engine.faults.unavailable = True
        await simulation.until_phase("chat", "unknown")
        container = simulation.container("chat")
        assert container is not None
        assert container.status is ContainerStatus.RUNNING
        simulation.engine.faults.unavailable = False
        simulation.script.says_hello = True
        await simulation.answered()
        assert await causes(simulation) == ["start-failed"]
        assert container.status is ContainerStatus.EXITED
        assert list(simulation.machine.containers) == [container.spec.name]

    play(scenario)


def test_a_frozen_one_ends_at_once(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await has_live(simulation)
        await simulation.until_phase("chat", "frozen")
        await simulation.host.runner.kill(simulation.chats["chat"][1])
        assert simulation.container("chat") is None

    play(scenario, quiet_before_freeze_s=10.0)


def test_a_look_for_the_end_of_an_earlier_generation_leaves_the_present_one_alone(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await has_live(simulation)
        key = simulation.chats["chat"][1]
        session = await simulation.session(key)
        await simulation.host.runner.restart(session, wake=True)
        await simulation.until_phase("chat", "ready")
        container = simulation.container("chat")
        assert container is not None
        certificates = await simulation.host.runner.certificates(session)
        slot = simulation.host.runner._slots.get(key)
        assert slot is not None
        # As when it was asked for before the restart, and comes to its turn after it.
        await simulation.host.runner._stopper.check(slot, Generation(slot.life.generation - 1))
        assert simulation.container("chat") is container
        assert simulation.phase("chat") == "ready"
        assert await simulation.host.runner.certificates(session) == certificates

    play(scenario)
