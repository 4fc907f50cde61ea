"""What every engine must do, as tests for whoever writes one.

Subclass `EngineLife`, and for an engine with real processes `EngineInside`, `EngineCalls` and `EngineStrict` too, in a
test module that has a fixture `harness` with an `EngineHarness`. Programs in the containers are shell scripts; an
engine that runs none declares `real=False` and plays the ones of `PLAYED`. Needs pytest with anyio's plugin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import anyio
import pytest

from hermitcrab.containers.engine import Engine
from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import PROMISES, STRICT_PROMISES, ContainerSpec, ContainerStatus, Mount
from hermitcrab.testing.engine_harness import DEADLINE_S, RUNS, Ends, EngineHarness
from hermitcrab.testing.fake_engine import Behaviour, Exits, Obeys, Speaks

ENDS = "exit 7"
FINE = "exit 0"
OBEYS = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"
TALKS = "echo one; echo two >&2; echo three; exit 0"

PLAYED: Mapping[str, Behaviour] = {
    ENDS: Exits(7),
    FINE: Exits(0),
    RUNS: Speaks(("ready",)),
    OBEYS: Obeys(9, ("ready",)),
    TALKS: Exits(0, ("one", "two", "three")),
}


def play(spec: ContainerSpec) -> Behaviour:
    """The behaviour of a fake for the script that a spec of this suite runs."""
    return PLAYED[spec.argv[-1]]


def _failure(caught: pytest.ExceptionInfo[EngineError]) -> Failure:
    return caught.value.failure


def _stop_now(engine: Engine) -> Callable[[str], Awaitable[None]]:
    return lambda name: engine.stop(name, grace_s=0)


class EngineLife:
    """From creation to removal, and across restarts of the host."""

    async def test_the_engine_says_what_it_is(self, harness: EngineHarness) -> None:
        found = await harness.engine.capabilities()
        assert found.engine == harness.engine.name
        assert found.version
        assert found.unrealized.keys() <= PROMISES
        assert found.strict_unrealized.keys() <= STRICT_PROMISES
        assert all([*found.unrealized.values(), *found.strict_unrealized.values()]), "each with its reason"

    async def test_preflight_finds_nothing_in_the_way(self, harness: EngineHarness) -> None:
        findings = await harness.engine.preflight()
        assert findings
        assert [finding for finding in findings if finding.level == "error"] == []

    async def test_a_created_container_does_not_run(self, harness: EngineHarness) -> None:
        spec = harness.spec(RUNS)
        await harness.engine.create(spec)
        view = await harness.view(spec.name)
        assert (view.status, view.pid, view.exit) == (ContainerStatus.CREATED, None, None)

    async def test_a_started_container_runs_and_has_a_pid(self, harness: EngineHarness) -> None:
        view = await harness.view(await harness.started())
        assert view.status is ContainerStatus.RUNNING
        assert view.pid is not None
        assert view.exit is None

    async def test_a_view_tells_what_the_spec_said(self, harness: EngineHarness) -> None:
        spec = harness.spec(RUNS, generation=41)
        await harness.engine.create(spec)
        view = await harness.view(spec.name)
        assert (view.name, view.session, view.generation) == (spec.name, spec.session, 41)
        assert view.spec_hash == spec.spec_hash
        assert view.id

    async def test_a_second_container_of_one_name_is_refused(self, harness: EngineHarness) -> None:
        name = await harness.started()
        with pytest.raises(EngineError) as caught:
            await harness.engine.create(harness.spec(FINE, name=name, generation=2))
        assert _failure(caught) is Failure.NAME_IN_USE
        assert (await harness.view(name)).generation == 1

    async def test_of_many_creations_at_once_one_succeeds(self, harness: EngineHarness) -> None:
        outcomes: list[str] = []
        name = harness.spec(RUNS).name

        async def create(generation: int) -> None:
            try:
                await harness.engine.create(harness.spec(RUNS, name=name, generation=generation))
            except EngineError as error:
                outcomes.append(error.failure)
            else:
                outcomes.append("created")

        async with anyio.create_task_group() as tasks:
            for generation in range(5):
                tasks.start_soon(create, generation)
        assert sorted(outcomes) == ["created", *[Failure.NAME_IN_USE] * 4]

    async def test_starting_a_running_one_changes_nothing(self, harness: EngineHarness) -> None:
        name = await harness.started()
        before = await harness.view(name)
        await harness.engine.start(name)
        assert await harness.view(name) == before

    async def test_what_is_not_there_cannot_be_started_or_frozen(self, harness: EngineHarness) -> None:
        for act in (harness.engine.start, harness.engine.freeze, harness.engine.thaw, harness.engine.stats):
            with pytest.raises(EngineError):
                await act("conform-nobody")

    async def test_a_removed_one_cannot_be_started(self, harness: EngineHarness) -> None:
        spec = harness.spec(RUNS)
        await harness.engine.create(spec)
        await harness.engine.remove(spec.name)
        with pytest.raises(EngineError):
            await harness.engine.start(spec.name)

    async def test_an_ended_one_is_not_started_again(self, harness: EngineHarness) -> None:
        view, _ = await harness.run(harness.spec(FINE))
        with pytest.raises(EngineError) as caught:
            await harness.engine.start(view.name)
        assert _failure(caught) is Failure.STARTED_THEN_DIED

    async def test_the_exit_code_is_kept(self, harness: EngineHarness) -> None:
        view, _ = await harness.run(harness.spec(ENDS))
        assert view.status is ContainerStatus.EXITED
        assert view.exit is not None
        assert (view.exit.exit_code, view.exit.oom_killed) == (7, False)
        assert view.exit.finished_at
        assert view.pid is None

    async def test_stop_lets_a_program_end_itself(self, harness: EngineHarness) -> None:
        name = await harness.started(OBEYS)
        await harness.said(name, "ready")
        await harness.engine.stop(name, grace_s=DEADLINE_S)
        view = await harness.view(name)
        assert view.exit is not None
        assert view.exit.exit_code == 9

    async def test_stop_kills_what_does_not_end_itself(self, harness: EngineHarness) -> None:
        name = await harness.started()
        await harness.said(name, "ready")
        await harness.engine.stop(name, grace_s=0.1)
        view = await harness.view(name)
        assert view.exit is not None
        assert (view.status, view.exit.exit_code) == (ContainerStatus.EXITED, 137)

    async def test_stop_without_grace_kills(self, harness: EngineHarness) -> None:
        name = await harness.started(OBEYS)
        await harness.engine.stop(name, grace_s=0)
        view = await harness.view(name)
        assert view.exit is not None
        assert view.exit.exit_code == 137

    async def test_stopping_what_does_not_run_is_success(self, harness: EngineHarness) -> None:
        view, _ = await harness.run(harness.spec(ENDS))
        await harness.engine.stop(view.name, grace_s=0)
        await harness.engine.stop("conform-nobody", grace_s=0)
        assert (await harness.view(view.name)).exit == view.exit

    async def test_removal_forgets_a_running_one(self, harness: EngineHarness) -> None:
        name = await harness.started()
        await harness.engine.remove(name)
        assert await harness.engine.inspect(name) is None
        assert await harness.engine.containers() == []

    async def test_removing_what_is_gone_is_success(self, harness: EngineHarness) -> None:
        name = await harness.started(FINE)
        await harness.engine.remove(name)
        await harness.engine.remove(name)

    async def test_many_removals_of_one_at_once_all_succeed(self, harness: EngineHarness) -> None:
        name = await harness.started()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(harness.engine.remove, name)
        assert await harness.engine.inspect(name) is None

    async def test_a_name_is_free_after_removal(self, harness: EngineHarness) -> None:
        name = await harness.started()
        await harness.engine.remove(name)
        await harness.engine.create(harness.spec(FINE, name=name, generation=2))
        view = await harness.view(name)
        assert (view.status, view.generation) == (ContainerStatus.CREATED, 2)

    async def test_nobody_is_none(self, harness: EngineHarness) -> None:
        assert await harness.engine.inspect("conform-nobody") is None
        assert await harness.engine.logs("conform-nobody", lines=5) == []

    async def test_all_are_listed_ended_ones_too(self, harness: EngineHarness) -> None:
        ended, _ = await harness.run(harness.spec(FINE))
        running = await harness.started()
        found = {view.name: view.status for view in await harness.engine.containers()}
        assert found == {ended.name: ContainerStatus.EXITED, running: ContainerStatus.RUNNING}

    async def test_another_installation_neither_sees_nor_ends_ours(self, harness: EngineHarness) -> None:
        name = await harness.started()
        stranger = harness.stranger()
        assert await stranger.containers() == []
        acts: tuple[Callable[[str], Awaitable[object]], ...] = (
            stranger.inspect,
            stranger.start,
            stranger.freeze,
            stranger.remove,
            _stop_now(stranger),
        )
        for act in acts:
            with pytest.raises(EngineError) as caught:
                await act(name)
            assert _failure(caught) is Failure.NAME_IN_USE
        assert (await harness.view(name)).status is ContainerStatus.RUNNING

    async def test_events_begin_with_resync_and_tell_an_end_once(self, harness: EngineHarness) -> None:
        first, second = harness.spec(FINE), harness.spec(FINE)
        async with Ends(harness.engine) as ends:
            for spec in (first, second):
                await harness.engine.create(spec)
            await harness.engine.start(first.name)
            assert await ends.kinds_until(first.name) == ["resync", "ended"]
            await harness.engine.start(second.name)
            assert await ends.kinds_until(second.name) == ["ended"]

    async def test_every_listener_is_told(self, harness: EngineHarness) -> None:
        spec = harness.spec(FINE)
        async with Ends(harness.engine) as one, Ends(harness.engine) as other:
            await harness.engine.create(spec)
            await harness.engine.start(spec.name)
            await one.of(spec.name)
            await other.of(spec.name)

    async def test_containers_survive_the_host(self, harness: EngineHarness) -> None:
        name = await harness.started()
        before = await harness.view(name)
        await harness.reopen()
        assert await harness.engine.containers() == [before]

    async def test_a_later_host_is_told_of_the_end_of_an_earlier_ones(self, harness: EngineHarness) -> None:
        name = await harness.started(OBEYS)
        await harness.said(name, "ready")
        await harness.reopen()
        async with Ends(harness.engine) as ends, anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: harness.engine.stop(name, grace_s=DEADLINE_S))
            await ends.of(name)
        view = await harness.view(name)
        assert view.exit is not None
        assert view.exit.exit_code == 9

    async def test_an_end_while_nobody_listened_is_found(self, harness: EngineHarness) -> None:
        view, _ = await harness.run(harness.spec(ENDS))
        await harness.reopen()
        assert await harness.view(view.name) == view

    async def test_both_streams_are_in_the_log(self, harness: EngineHarness) -> None:
        _, lines = await harness.run(harness.spec(TALKS))
        assert sorted(lines) == ["one", "three", "two"]
        assert lines.index("one") < lines.index("three")

    async def test_the_last_lines_are_had(self, harness: EngineHarness) -> None:
        view, lines = await harness.run(harness.spec(TALKS))
        assert await harness.engine.logs(view.name, lines=2) == lines[-2:]
        assert await harness.engine.logs(view.name, lines=0) == []

    async def test_freezing_and_thawing_show_and_repeat(self, harness: EngineHarness) -> None:
        await harness.unrealized("freeze")
        name = await harness.started()
        for _ in range(2):
            await harness.engine.freeze(name)
            assert (await harness.view(name)).status is ContainerStatus.FROZEN
        for _ in range(2):
            await harness.engine.thaw(name)
            assert (await harness.view(name)).status is ContainerStatus.RUNNING

    async def test_what_has_ended_cannot_be_frozen(self, harness: EngineHarness) -> None:
        view, _ = await harness.run(harness.spec(FINE))
        with pytest.raises(EngineError):
            await harness.engine.freeze(view.name)

    async def test_a_frozen_one_is_stopped_with_its_grace(self, harness: EngineHarness) -> None:
        await harness.unrealized("freeze")
        name = await harness.started(OBEYS)
        await harness.said(name, "ready")
        await harness.engine.freeze(name)
        await harness.engine.stop(name, grace_s=DEADLINE_S)
        view = await harness.view(name)
        assert view.exit is not None
        assert view.exit.exit_code == 9

    async def test_a_frozen_one_is_removed(self, harness: EngineHarness) -> None:
        await harness.unrealized("freeze")
        name = await harness.started()
        await harness.engine.freeze(name)
        await harness.engine.remove(name)
        assert await harness.engine.inspect(name) is None

    async def test_a_frozen_one_is_found_frozen_by_a_later_host(self, harness: EngineHarness) -> None:
        await harness.unrealized("freeze")
        name = await harness.started()
        await harness.engine.freeze(name)
        await harness.reopen()
        assert (await harness.view(name)).status is ContainerStatus.FROZEN

    async def test_a_closed_engine_lets_go_and_can_be_opened_again(self, harness: EngineHarness) -> None:
        name = await harness.started()
        await harness.engine.aclose()
        await harness.reopen()
        assert (await harness.view(name)).status is ContainerStatus.RUNNING

    async def test_a_running_one_is_measured(self, harness: EngineHarness) -> None:
        name = await harness.started(OBEYS)
        await harness.said(name, "ready")
        found = await harness.engine.stats(name)
        assert found.pids is not None
        assert 1 <= found.pids <= 3
        assert found.memory_bytes is not None
        assert 0 < found.memory_bytes < 256 * 1024 * 1024

    async def test_a_missing_source_is_an_invalid_spec(self, harness: EngineHarness) -> None:
        mount = Mount(source=str(harness.folder / "missing"), target="/missing")
        with pytest.raises(EngineError) as caught:
            await harness.engine.create(harness.spec(FINE, mounts=(mount,)))
        assert _failure(caught) is Failure.SPEC_INVALID
        assert not (harness.folder / "missing").exists()
        assert await harness.engine.containers() == []

    async def test_an_unknown_image_is_unavailable(self, harness: EngineHarness) -> None:
        with pytest.raises(EngineError) as caught:
            await harness.engine.ensure_image("hermitcrab-no-such-image:0")
        assert _failure(caught) is Failure.IMAGE_UNAVAILABLE
        with pytest.raises(EngineError) as caught:
            await harness.engine.create(harness.spec(FINE, image="hermitcrab-no-such-image:0"))
        assert _failure(caught) is Failure.IMAGE_UNAVAILABLE

    async def test_the_image_of_the_suite_is_there(self, harness: EngineHarness) -> None:
        await harness.engine.ensure_image(harness.image)
        assert await harness.engine.containers() == []
