"""A whole host on a daemon that fails it in every way there is: it neither starts a second container nor ends one that it
cannot ask about (law 1), and it goes on by itself once the daemon does.

Host, adapter and link are the real ones; the daemon and the runners in its containers are fakes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from hermitcrab.app import Host
from hermitcrab.containers.engines import docker, docker_api
from hermitcrab.logic.retry import Backoff
from hermitcrab.model.container import ContainerStatus
from hermitcrab.model.messages import Address
from hermitcrab.testing.fake_daemon import IMAGE, KINDS, FakeDaemon, Fault, Kind, fake_daemon
from hermitcrab.testing.fake_engine import FakeMachine
from hermitcrab.testing.scratch import REPLY_WITHIN_S, RecordingChannel, add_chat, host_on, say
from hermitcrab.testing.scripted_runner import Runners

DEADLINE_S = 0.2
"""For an answer of a daemon that is broken; 30 s outside of tests. A sound one has those here too, and needs none."""

on_both = pytest.mark.parametrize("adapter", ["docker", "podman"])
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermitcrab.containers.lifecycle.following.RESUBSCRIBED_AFTER_S", DEADLINE_S)
    monkeypatch.setattr("hermitcrab.logic.retry.ENGINE", Backoff(first_s=DEADLINE_S, most_s=DEADLINE_S))


@pytest.fixture
def adapter() -> str:
    """Whose adapter speaks to the daemon."""
    return "docker"


@pytest.fixture
async def daemon(tmp_path: Path, adapter: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeDaemon]:
    """One that is waited for less long while it is broken, and only then: a busy machine makes a sound one slow, too."""
    machine = FakeMachine()
    deadlines = [(docker_api, "ANSWER_DEADLINE_S"), (docker, "MAKE_DEADLINE_S"), (docker, "KILL_DEADLINE_S")]
    usual = [(module, name, getattr(module, name)) for module, name in deadlines]
    async with fake_daemon(tmp_path / f"{adapter}.sock", machine, Runners(machine).behaviour) as daemon:
        breaks, mend = daemon.breaks, daemon.mend

        def broken(fault: Fault) -> None:
            for module, name in deadlines:
                monkeypatch.setattr(module, name, DEADLINE_S)
            breaks(fault)

        def mended() -> None:
            for each in usual:
                monkeypatch.setattr(*each)
            mend()

        monkeypatch.setattr(daemon, "breaks", broken)
        monkeypatch.setattr(daemon, "mend", mended)
        yield daemon


@dataclass(slots=True)
class Scene:
    host: Host
    channel: RecordingChannel
    daemon: FakeDaemon
    address: Address

    @property
    def phases(self) -> list[str]:
        return [view.phase for view in self.host.runner.views()]

    async def tell(self, key: str) -> str:
        """Say something; the id of its row."""
        return (await say(self.host, self.address, key, key)).row_ids[0]

    async def answered(self, row: str) -> None:
        _, delivery = await self.channel.answer_to(row)
        assert str(delivery.content["text"]).startswith("Echo: ")

    async def until(self, holds: Callable[[], bool]) -> None:
        with anyio.fail_after(REPLY_WITHIN_S):
            while not holds():  # noqa: ASYNC110  # nobody tells of everything that is waited for here
                await anyio.sleep(0.01)

    def only_one(self) -> None:
        """Exactly one container is there and runs, and never two of one session did."""
        assert [each.status for each in self.daemon.containers] == [ContainerStatus.RUNNING]
        assert self.daemon.most_running == 1


def spoken_to(folder: Path) -> tuple[str, Path]:
    """The adapter that the daemon was made for, and its socket."""
    (socket,) = folder.glob("*.sock")
    return socket.stem, socket


@asynccontextmanager
async def scene(tmp_path: Path, daemon: FakeDaemon, *, keep: bool = False, again: bool = False) -> AsyncIterator[Scene]:
    adapter, socket = spoken_to(tmp_path)
    settings = {f"{adapter}_socket": str(socket), "image": IMAGE, "stop_grace_s": 1.0}
    async with host_on(tmp_path / "home", adapter, keep=keep, **settings) as (host, channel):
        address = Address(channel_type="recording", platform_id="chat") if again else (await add_chat(host, "chat"))[1]
        yield Scene(host, channel, daemon, address)


@on_both
@every_kind
async def test_a_live_container_is_left_alone_and_goes_on_answering(
    kind: Kind, tmp_path: Path, daemon: FakeDaemon
) -> None:
    async with scene(tmp_path, daemon) as now:
        await now.answered(await now.tell("before"))
        daemon.breaks(Fault(kind))
        found = await now.host.reconciler.sweep()
        assert found.engine_unknown
        assert (found.removed, found.woken, found.repaired) == (0, 0, 0)
        # The link needs no engine.
        await now.answered(await now.tell("meanwhile"))
        now.only_one()
        daemon.mend()
        found = await now.host.reconciler.sweep()
        assert not found.engine_unknown
        await now.answered(await now.tell("after"))
        now.only_one()
        assert daemon.asked("POST /containers/create") == 1
        assert daemon.asked("DELETE") == 0


@on_both
@every_kind
async def test_a_start_that_fails_is_made_again_by_itself(kind: Kind, tmp_path: Path, daemon: FakeDaemon) -> None:
    async with scene(tmp_path, daemon) as now:
        daemon.breaks(Fault(kind))
        row = await now.tell("wake up")
        await now.until(lambda: {"backoff", "unknown"} & {*now.phases} != set())
        assert daemon.running == []
        daemon.mend()
        await now.answered(row)
        now.only_one()


@every_kind
@pytest.mark.parametrize("step", ["/create", "/start"])
async def test_a_step_that_was_taken_although_its_answer_is_lost_leaves_no_second_container(
    step: str, kind: Kind, tmp_path: Path, daemon: FakeDaemon
) -> None:
    async with scene(tmp_path, daemon) as now:
        daemon.breaks(Fault(kind, about=step, acts=True))
        row = await now.tell("wake up")
        if step == "/start":
            # Its runner came up behind the host's back, and may even have answered.
            await now.until(lambda: daemon.asked(step) > 0)
        else:
            await now.until(lambda: {"backoff", "unknown"} & {*now.phases} != set())
        daemon.mend()
        await now.answered(row)
        await now.answered(await now.tell("and again"))
        now.only_one()


@every_kind
async def test_an_end_that_cannot_be_asked_about_is_drawn_up_later(
    kind: Kind, tmp_path: Path, daemon: FakeDaemon
) -> None:
    async with scene(tmp_path, daemon) as now:
        await now.answered(await now.tell("before"))
        (container,) = daemon.containers
        daemon.breaks(Fault(kind))
        daemon.end(container.spec.name)
        row = await now.tell("to nobody")
        await now.host.reconciler.sweep()
        # Neither alive nor dead: no second container, and the first is still there to be asked.
        assert daemon.containers == [container]
        daemon.mend()
        await now.host.reconciler.sweep()
        await now.answered(row)
        now.only_one()
        assert container not in daemon.containers


@every_kind
async def test_a_host_that_comes_up_beside_a_broken_engine_adopts_once_it_answers(
    kind: Kind, tmp_path: Path, daemon: FakeDaemon
) -> None:
    async with scene(tmp_path, daemon, keep=True) as now:
        await now.answered(await now.tell("before"))
    (container,) = daemon.running
    daemon.breaks(Fault(kind))
    async with scene(tmp_path, daemon, again=True) as now:
        assert now.host.reconciled.engine_unknown
        row = await now.tell("who are you?")
        assert daemon.running == [container]
        daemon.mend()
        await now.host.reconciler.sweep()
        await now.answered(row)
        now.only_one()


@every_kind
async def test_a_removal_that_fails_holds_up_the_next_start_and_no_longer(
    kind: Kind, tmp_path: Path, daemon: FakeDaemon
) -> None:
    async with scene(tmp_path, daemon) as now:
        await now.answered(await now.tell("before"))
        (container,) = daemon.containers
        daemon.breaks(Fault(kind, about="DELETE"))
        daemon.end(container.spec.name)
        row = await now.tell("wake up")
        await now.until(lambda: daemon.asked("DELETE") > 0)
        assert daemon.running == []
        daemon.mend()
        await now.host.reconciler.sweep()
        await now.answered(row)
        now.only_one()


async def test_a_name_that_is_in_use_while_its_container_is_removed_is_waited_for(
    tmp_path: Path, daemon: FakeDaemon
) -> None:
    async with scene(tmp_path, daemon) as now:
        await now.answered(await now.tell("before"))
        (container,) = daemon.containers
        daemon.names_stay_in_use = True
        daemon.end(container.spec.name)
        row = await now.tell("wake up")
        await now.until(lambda: daemon.asked("DELETE") > 1)
        assert daemon.running == []
        daemon.finish_removals()
        await now.host.reconciler.sweep()
        await now.answered(row)
        now.only_one()


async def test_an_end_that_no_event_tells_is_found_all_the_same(tmp_path: Path, daemon: FakeDaemon) -> None:
    async with scene(tmp_path, daemon) as now:
        await now.answered(await now.tell("before"))
        daemon.drops_events = True
        (container,) = daemon.containers
        daemon.end(container.spec.name)
        row = await now.tell("to nobody")
        await now.host.reconciler.sweep()
        await now.answered(row)
        now.only_one()
        assert container not in daemon.containers


@on_both
async def test_an_end_while_the_event_stream_was_cut_is_found_when_it_is_taken_up_again(
    tmp_path: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The broken link tells nothing here: nobody asks after it before the stream is there again.
    monkeypatch.setattr("hermitcrab.containers.lifecycle.hearing.REDIALLED_WITHIN_S", 600.0)
    async with scene(tmp_path, daemon) as now:
        await now.answered(await now.tell("before"))
        await now.until(lambda: daemon.asked("GET /events") == 1)
        (container,) = daemon.containers
        daemon.breaks(Fault("error", about="GET /events"))
        daemon.end(container.spec.name)
        row = await now.tell("to nobody")
        assert daemon.containers == [container]
        daemon.mend()
        await now.answered(row)
        now.only_one()


@on_both
async def test_many_live_containers_outlast_a_daemon_that_knows_nothing(tmp_path: Path, daemon: FakeDaemon) -> None:
    async with scene(tmp_path, daemon) as now:
        rows = [await now.tell("first")]
        others = [(await add_chat(now.host, f"chat-{number}"))[1] for number in range(9)]
        rows += [(await say(now.host, each, f"to {each.platform_id}", "hello")).row_ids[0] for each in others]
        for row in rows:
            await now.answered(row)
        before = sorted(each.id for each in daemon.running)
        assert len(before) == 10
        for kind in KINDS:
            daemon.breaks(Fault(kind))
            found = await now.host.reconciler.sweep()
            assert found.engine_unknown
            daemon.mend()
        found = await now.host.reconciler.sweep()
        assert (found.removed, found.repaired) == (0, 0)
        assert sorted(each.id for each in daemon.running) == before
