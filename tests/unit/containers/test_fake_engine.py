"""The faults of the engine in memory: a test that relies on one must be able to trust it."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import ContainerSpec, ContainerStatus
from hermitcrab.model.ids import Generation, InstallationId, SessionId
from hermitcrab.testing.fake_engine import Behaviour, Exits, FakeEngine, FakeMachine


def spec(name: str = "one", generation: int = 1) -> ContainerSpec:
    return ContainerSpec(
        name=name,
        installation=InstallationId("fake"),
        session=SessionId("s"),
        generation=Generation(generation),
        image=None,
        argv=("true",),
        env={},
        mounts=(),
        uid=1000,
        gid=1000,
    )


async def test_an_unavailable_engine_says_so_and_never_looks_empty() -> None:
    engine = FakeEngine()
    await engine.create(spec())
    engine.faults.unavailable = True
    for act in (engine.containers, engine.capabilities):
        with pytest.raises(EngineError) as caught:
            await act()
        assert caught.value.failure is Failure.RUNTIME_UNAVAILABLE
    assert [finding.level for finding in await engine.preflight()] == ["error"]
    engine.faults.unavailable = False
    assert [view.name for view in await engine.containers()] == ["one"]


async def test_a_slow_engine_answers_when_the_test_lets_it() -> None:
    engine = FakeEngine()
    engine.faults.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.create, spec())
        await anyio.lowlevel.checkpoint()
        assert engine.calls["create"] == 1
        assert engine.machine.containers == {}
        engine.faults.gate.set()
    assert set(engine.machine.containers) == {"one"}


async def test_a_failure_comes_once_and_in_its_method() -> None:
    engine = FakeEngine()
    engine.faults.fail_next["start"] = [EngineError(Failure.RESOURCES_EXHAUSTED, "no memory")]
    await engine.create(spec())
    with pytest.raises(EngineError, match="no memory"):
        await engine.start("one")
    await engine.start("one")


async def test_a_name_can_stay_in_use_after_removal() -> None:
    engine = FakeEngine()
    engine.faults.names_stay_in_use = True
    await engine.create(spec())
    await engine.remove("one")
    assert await engine.inspect("one") is None
    assert await engine.containers() == []
    with pytest.raises(EngineError) as caught:
        await engine.create(spec(generation=2))
    assert caught.value.failure is Failure.NAME_IN_USE
    engine.finish_removals()
    await engine.create(spec(generation=2))


async def test_a_dropped_event_is_never_told_but_can_be_found() -> None:
    engine = FakeEngine(behaviour=lambda _: Behaviour())
    await engine.create(spec())
    async with engine.events() as events:
        assert (await anext(events)).kind == "resync"
        engine.faults.drop_events = True
        await engine.start("one")
        engine.process("one").exit(3)
        engine.lose_events()
        assert (await anext(events)).kind == "resync"
    view = await engine.inspect("one")
    assert view is not None
    assert view.status is ContainerStatus.EXITED


async def test_a_container_can_die_right_after_its_start() -> None:
    engine = FakeEngine()
    engine.faults.die_after_start = True
    await engine.create(spec())
    await engine.start("one")
    view = await engine.inspect("one")
    assert view is not None
    assert view.exit is not None
    assert view.exit.exit_code == 1


async def test_a_container_that_cannot_be_killed_goes_on() -> None:
    engine = FakeEngine(behaviour=lambda _: Behaviour())
    engine.faults.cannot_kill = True
    await engine.create(spec())
    await engine.start("one")
    with pytest.raises(EngineError, match="cannot be killed"):
        await engine.stop("one", grace_s=0)
    view = await engine.inspect("one")
    assert view is not None
    assert view.status is ContainerStatus.RUNNING


async def test_a_process_that_ended_does_not_end_again() -> None:
    engine = FakeEngine(behaviour=lambda _: Exits(5, oom_killed=True))
    await engine.create(spec())
    await engine.start("one")
    engine.process("one").exit(0)
    view = await engine.inspect("one")
    assert view is not None
    assert view.exit is not None
    assert (view.exit.exit_code, view.exit.oom_killed) == (5, True)


async def test_a_listener_that_is_far_behind_is_told_to_look() -> None:
    machine = FakeMachine()
    engine = FakeEngine(machine=machine, behaviour=lambda _: Exits(0))
    async with engine.events() as events:
        for number in range(1100):
            await engine.create(spec(f"c{number}"))
            await engine.start(f"c{number}")
        assert (await anext(events)).kind == "resync"
        assert (await anext(events)).kind == "ended"
