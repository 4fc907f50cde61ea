"""An engine that says nothing at all holds up no host: what cannot be asked is unknown, and asked again (law 1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from hermitcrab.containers.lifecycle.stopping import ANSWERED_WITHIN_S
from hermitcrab.testing.fake_engine import FakeContainer, FakeEngine
from hermitcrab.testing.simulation import Simulation

STARTED_WITHIN_S = 3 * ANSWERED_WITHIN_S


async def left_behind(simulation: Simulation) -> FakeContainer:
    """The host was killed, and its container lives."""
    await simulation.say("chat")
    await simulation.answered()
    container = simulation.container("chat")
    assert container is not None
    await simulation.crash()
    return container


async def started(simulation: Simulation) -> None:
    with anyio.fail_after(STARTED_WITHIN_S):
        await simulation.start()


async def answered_by(simulation: Simulation) -> str:
    await simulation.say("chat")
    await simulation.answered()
    container = simulation.container("chat")
    assert container is not None
    return container.id


def test_a_host_starts_beside_it_and_takes_over_what_runs_once_it_speaks(play: Any) -> None:
    async def scenario(simulation: Simulation) -> None:
        container = await left_behind(simulation)
        simulation.engine.faults.gate = gate = anyio.Event()
        await started(simulation)
        assert simulation.host.reconciled.engine_unknown
        assert simulation.host.reconciled.adopted == simulation.host.reconciled.removed == 0
        simulation.engine.faults.gate = None
        gate.set()
        assert await answered_by(simulation) == container.id

    play(scenario)


def test_one_that_falls_silent_at_a_frozen_container_neither_loses_it_nor_holds_up_the_host(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silence(_engine: FakeEngine, _name: str) -> None:
        await anyio.sleep_forever()

    async def scenario(simulation: Simulation) -> None:
        await simulation.say("chat")
        await simulation.until_phase("chat", "frozen")
        container = simulation.container("chat")
        assert container is not None
        await simulation.crash()
        with monkeypatch.context() as patched:
            patched.setattr(FakeEngine, "thaw", silence)
            await started(simulation)
        assert simulation.host.reconciled.adopted == simulation.host.reconciled.removed == 0
        await simulation.host.reconciler.sweep()
        assert await answered_by(simulation) == container.id

    play(scenario, quiet_before_freeze_s=10)


def test_one_that_falls_silent_at_a_removal_does_not_hold_up_the_host(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silence(_engine: FakeEngine, _name: str) -> None:
        await anyio.sleep_forever()

    async def scenario(simulation: Simulation) -> None:
        container = await left_behind(simulation)
        container.spec = replace(container.spec, workdir="/elsewhere")
        with monkeypatch.context() as patched:
            patched.setattr(FakeEngine, "remove", silence)
            await started(simulation)
        assert simulation.host.reconciled.removed == 0
        await simulation.host.reconciler.sweep()
        assert await answered_by(simulation) != container.id

    play(scenario)
