"""A session that another host on the same home has begun to start: no failure, and nothing that waits is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from hermitcrab.containers.lifecycle.slot import WakeOutcome
from hermitcrab.containers.lifecycle.starting import Starter
from hermitcrab.store import sessions
from hermitcrab.testing.simulation import Simulation

Play = Callable[..., None]


def another_host_is_faster(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start finds that its generation was claimed after it was looked up."""
    usual = Starter.start

    async def late(starter: Starter, slot: Any, *arguments: Any) -> None:
        monkeypatch.setattr(Starter, "start", usual)
        session = slot.session
        await simulation.host.store.write(lambda connection: sessions.claim(connection, session.id, session.generation))
        await usual(starter, slot, *arguments)

    monkeypatch.setattr(Starter, "start", late)


def test_wakes_that_lose_the_claim_wait_and_tell_why(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(simulation: Simulation) -> None:
        session = await simulation.session(simulation.chats["chat"][1])
        outcomes: list[WakeOutcome] = []

        async def wake() -> None:
            outcomes.append(await simulation.host.runner.wake(session))

        another_host_is_faster(simulation, monkeypatch)
        with capture_logs() as logs:
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(wake)
        assert {outcome.kind for outcome in outcomes} == {"waiting"}
        assert all("another host" in outcome.text and outcome.retry_in_s is not None for outcome in outcomes)
        assert not [line for line in logs if line["log_level"] in {"warning", "error"}]
        # Nothing waits for it here: once that was looked at, nobody keeps it in mind.
        await simulation.until_phase("chat", "absent")
        await anyio.sleep(5)
        assert not simulation.host.runner.attends(session.id)
        assert not simulation.machine.containers

    play(scenario)


def test_a_message_that_waits_where_the_claim_was_lost_is_answered(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(simulation: Simulation) -> None:
        before = (await simulation.session(simulation.chats["chat"][1])).generation
        another_host_is_faster(simulation, monkeypatch)
        with capture_logs() as logs:
            row = await simulation.say("chat", "still there?")
            await simulation.channel.answer_to(row)
        assert not [line for line in logs if line["log_level"] in {"warning", "error"}]
        container = simulation.container("chat")
        assert container is not None
        assert container.spec.generation == before + 2

    play(scenario)
