"""A restart gives a session a fresh container, and a word that only that one gets."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from hermitcrab.errors import BadInputError
from hermitcrab.testing.simulation import Simulation

Play = Callable[..., None]


def received(simulation: Simulation, text: str) -> list[int]:
    """Generations that were handed that text."""
    return [generation for _, generation, said in simulation.script.received if said == text]


async def live(simulation: Simulation, name: str = "chat") -> None:
    await simulation.say(name)
    await simulation.answered()
    await simulation.until_phase(name, "ready")


def test_the_word_is_the_fresh_containers_alone(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await live(simulation)
        session = await simulation.session(simulation.chats["chat"][1])
        restart = await simulation.host.runner.restart(session, message="be new")
        assert (restart.had_container, restart.phase, restart.starts) == (True, "absent", True)
        await simulation.answered()
        assert received(simulation, "be new") == [3]
        assert (await simulation.host.runner.certificates(session))[-1]["cause"] == "restart"

    play(scenario)


def test_the_old_container_does_not_get_it_even_while_it_works_on(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        simulation.script.answers = False
        await simulation.say("chat", "slow")
        await simulation.until_phase("chat", "ready")
        session = await simulation.session(simulation.chats["chat"][1])
        await simulation.host.runner.restart(session, message="be new")
        simulation.script.answers = True
        await simulation.answered()
        assert received(simulation, "be new") == [3]
        assert received(simulation, "slow") == [2, 3]

    play(scenario)


def test_the_old_container_does_not_get_it_when_its_link_breaks_while_it_works_on(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        simulation.script.answers = False
        await simulation.say("chat", "slow")
        await simulation.until_phase("chat", "ready")
        session = await simulation.session(simulation.chats["chat"][1])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: simulation.host.runner.restart(session, message="be new"))
            await simulation.until_phase("chat", "draining")
            # At its next hello it is handed all that waits, but for this.
            assert simulation.host.runner.reconnect(session.id)
            await anyio.sleep(3)
            assert [each[1] for each in simulation.script.welcomed][-2:] == [2, 2], "it came back"
            simulation.script.answers = True
            simulation.runners.wake_up()
        await simulation.answered()
        assert received(simulation, "be new") == [3]

    play(scenario)


def test_a_fresh_container_whose_link_breaks_still_gets_it(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await live(simulation)
        session = await simulation.session(simulation.chats["chat"][1])
        simulation.script.hangs_up_on = "be new"
        await simulation.host.runner.restart(session, message="be new")
        await simulation.answered()
        assert received(simulation, "be new") == [3, 3]

    play(scenario)


def test_a_session_without_a_container_sleeps_on_unless_it_is_to_be_woken(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        session = await simulation.session(simulation.chats["chat"][1])
        restart = await simulation.host.runner.restart(session, message="be new")
        assert not restart.starts
        assert (await simulation.counts())[0].pending == 0
        restart = await simulation.host.runner.restart(session, message="wake up", wake=True)
        assert restart.starts
        await simulation.answered()
        assert received(simulation, "wake up") == [2]
        assert received(simulation, "be new") == []

    play(scenario)


def test_without_a_word_the_next_message_starts_the_fresh_one(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await live(simulation)
        session = await simulation.session(simulation.chats["chat"][1])
        assert not (await simulation.host.runner.restart(session)).starts
        assert simulation.phase("chat") == "absent"
        await live(simulation)
        assert simulation.script.received[-1][1] == 3

    play(scenario)


def test_a_groups_restart_reaches_those_that_run_and_no_other_group(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await simulation.add_sessions_of_one_group(["a", "b", "asleep"])
        for name in ("a", "b", "chat"):
            await live(simulation, name)
        group = (await simulation.session(simulation.chats["a"][1])).agent_group_id
        found = await simulation.host.runner.restart_group(group, message="be new")
        assert {each.session for each in found if not isinstance(each, Exception)} == {
            simulation.chats["a"][1],
            simulation.chats["b"][1],
        }
        await simulation.answered()
        assert len(received(simulation, "be new")) == 2
        assert [simulation.phase(name) for name in ("a", "b", "asleep", "chat")] == [
            "ready",
            "ready",
            "absent",
            "ready",
        ]

    play(scenario)


@pytest.mark.parametrize("text", ["", "  \n", "x" * 300_000, "half a pair \ud800"])
def test_a_word_that_cannot_be_kept_restarts_nothing(play: Play, text: str) -> None:
    async def scenario(simulation: Simulation) -> None:
        await live(simulation)
        session = await simulation.session(simulation.chats["chat"][1])
        with pytest.raises(BadInputError):
            await simulation.host.runner.restart(session, message=text)
        assert simulation.phase("chat") == "ready"

    play(scenario)
