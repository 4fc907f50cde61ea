"""SIGKILL of the host and of the runner at every step of a message's road, and of a container's life after it: nothing
is lost, nothing doubled, and nothing left behind anywhere.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import pytest

from hermitcrab.control.client import ControlClient
from hermitcrab.errors import HostUnreachableError
from hermitcrab.testing.engine_conformance_inside import until
from hermitcrab.testing.host_process import HostProcess, Person, attended
from hermitcrab.testing.leaks import left_behind
from hermitcrab_wire import faults

HOST_POINTS = [point for point in faults.POINTS if not point.startswith(("runner.", "container."))]
LIFE_POINTS = [point for point in faults.POINTS if point.startswith("container.")]
RUNNER_POINTS = [point for point in faults.POINTS if point.startswith("runner.")]
NeedEngine = Callable[[str], Mapping[str, str]]
ON_DAEMONS = ["wake.claimed", "wake.prepared", "wake.created", "wake.started", "link.welcomed", "outbound.committed"]
"""What a daemon has a part in. The rest of the road is the same whatever the engine, and walked with bubblewrap."""

REST = {
    "HERMITCRAB__CONTAINERS__QUIET_BEFORE_FREEZE_S": "0.1",
    "HERMITCRAB__CONTAINERS__SILENT_BEFORE_KILL_S": "18",
}
"""Frozen within three seconds or so: containers are looked over as often as they beat."""


async def check_end(host: HostProcess, person: Person, texts: list[str]) -> None:
    assert person.texts == texts, host.output()
    async with ControlClient.connect(host.home) as client:
        containers = (await client.call("status"))["containers"]
    assert len(containers) <= 1, containers
    assert await host.stop() == 0, host.output()
    assert await left_behind(host.home, host.environment) == [], host.output()


@pytest.mark.parametrize("point", HOST_POINTS)
async def test_a_host_killed_there_loses_and_doubles_nothing(
    point: str, tmp_path: Path, need_engine: NeedEngine
) -> None:
    await host_is_killed("bubblewrap", point, tmp_path, need_engine("bubblewrap"))


@pytest.mark.parametrize("engine", ["docker", "podman"])
@pytest.mark.parametrize("point", ON_DAEMONS)
async def test_a_host_killed_there_on_a_daemon_loses_and_doubles_nothing(
    engine: str, point: str, tmp_path: Path, need_engine: NeedEngine
) -> None:
    await host_is_killed(engine, point, tmp_path, need_engine(engine))


async def host_is_killed(engine: str, point: str, tmp_path: Path, env: Mapping[str, str]) -> None:
    host = HostProcess(tmp_path / "home", engine=engine, env=env)
    token = tmp_path / "token"
    token.touch()
    try:
        await host.start(env={faults.VARIABLE: f"{point}:{token}"})
        async with attended(Person(host.home)) as person, anyio.create_task_group() as tasks:
            tasks.start_soon(person.say, "one", "first")
            assert await host.died() == -signal.SIGKILL, f"the host did not pass {point}\n{host.output()}"
            assert not token.exists()
            await host.start()
            await person.wait_for("first")
            await person.say("two", "second")
            await person.wait_for("second")
        await check_end(host, person, ["Echo: first", "Echo: second"])
    finally:
        await host.kill()


@pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])
@pytest.mark.parametrize("point", LIFE_POINTS)
async def test_a_host_killed_while_a_container_rests_or_ends_leaves_nothing_behind(
    engine: str, point: str, tmp_path: Path, need_engine: NeedEngine
) -> None:
    host = HostProcess(tmp_path / "home", engine=engine, env=need_engine(engine))
    token = tmp_path / "token"
    try:
        await host.start(env={faults.VARIABLE: f"{point}:{token}", **(REST if point == "container.frozen" else {})})
        async with attended(Person(host.home)) as person, anyio.create_task_group() as tasks:
            if point == "container.frozen":
                token.touch()  # Before there is anything that could come to rest while nobody looks.
                tasks.start_soon(person.say, "one", "first")
            else:
                await person.say("one", "first")
                await person.wait_for("first")
                token.touch()
                await stop_its_container(host)
            assert await host.died() == -signal.SIGKILL, f"the host did not pass {point}\n{host.output()}"
            await host.start()
            await person.wait_for("first")
            await person.say("two", "second")
            await person.wait_for("second")
            if point == "container.frozen":
                assert "container.adopted" in host.output()
        await check_end(host, person, ["Echo: first", "Echo: second"])
    finally:
        await host.kill()


async def stop_its_container(host: HostProcess) -> None:
    """Ask for it; the host dies over it."""
    async with ControlClient.connect(host.home) as client:
        (view,) = (await client.call("status"))["containers"]
        with pytest.raises(HostUnreachableError):
            await client.call("sessions.stop", session=view["session_id"])


@pytest.mark.parametrize("point", RUNNER_POINTS)
async def test_a_runner_killed_there_loses_and_doubles_nothing(
    point: str, tmp_path: Path, need_engine: NeedEngine
) -> None:
    host = HostProcess(tmp_path / "home", engine="bubblewrap", env=need_engine("bubblewrap"))
    try:
        await host.start()
        async with attended(Person(host.home)) as person:
            # The session's folders exist only after its first message.
            await person.say("zero", "before")
            await person.wait_for("before")
            assert await host.stop() == 0, host.output()
            (work,) = host.home.sessions.glob("*/*/work")
            token = work / "token"
            token.touch()
            os.chown(token, work.stat().st_uid, work.stat().st_gid)
            await host.start(env={"HERMITCRAB_RUNNER_FAULT": f"{point}:/workspace/token"})
            await person.say("one", "first")
            await person.wait_for("first")
            # The last point comes after the answer, which may be here before the runner hears that it was taken.
            await until(lambda: not token.exists())
            await person.say("two", "second")
            await person.wait_for("second")
        await check_end(host, person, ["Echo: before", "Echo: first", "Echo: second"])
    finally:
        await host.kill()


ASK = '{"title": "Lunch", "question": "Where?", "options": ["here", "there"]}'
ASKED = "Lunch\nWhere?\n1. here\n2. there\nAnswer with the number or the words."
TOOLS = f'/tool send_message {{"text": "half way"}}\n/tool ask_user_question {ASK}'


@pytest.mark.parametrize("point", ["outbound.committed", "delivery.sent", "inbound.committed"])
async def test_a_host_killed_over_a_turn_that_asks_neither_loses_nor_repeats_what_was_said_in_it(
    point: str, tmp_path: Path, need_engine: NeedEngine
) -> None:
    host = HostProcess(tmp_path / "home", engine="bubblewrap", env=need_engine("bubblewrap"))
    token = tmp_path / "token"
    try:
        await host.start(env={faults.VARIABLE: f"{point}:{token}"})
        async with attended(Person(host.home)) as person, anyio.create_task_group() as tasks:
            if point != "inbound.committed":
                token.touch()
            tasks.start_soon(person.say, "one", TOOLS)
            if point == "inbound.committed":
                await person.wait_for("Where?")
                token.touch()  # The host dies when it has the answer, and before anybody hears of that.
                tasks.start_soon(person.say, "two", "2")
            assert await host.died() == -signal.SIGKILL, f"the host did not pass {point}\n{host.output()}"
            await host.start()
            await person.wait_for("Where?")
            if point != "inbound.committed":
                await person.say("two", "2")
            await person.wait_for("Echo:")
        reply = "Echo: Message sent to (current conversation) (id: 3)\nthere"
        await check_end(host, person, ["half way", ASKED, reply])
    finally:
        await host.kill()


async def test_a_runner_killed_over_its_answer_repeats_nothing_that_it_had_said(
    tmp_path: Path, need_engine: NeedEngine
) -> None:
    host = HostProcess(tmp_path / "home", engine="bubblewrap", env=need_engine("bubblewrap"))
    try:
        await host.start()
        async with attended(Person(host.home)) as person:
            await person.say("zero", "before")
            await person.wait_for("before")
            assert await host.stop() == 0, host.output()
            (work,) = host.home.sessions.glob("*/*/work")
            token = work / "token"
            token.touch()
            os.chown(token, work.stat().st_uid, work.stat().st_gid)
            await host.start(env={"HERMITCRAB_RUNNER_FAULT": "runner.answered:/workspace/token"})
            await person.say("one", TOOLS)
            await person.wait_for("Where?")
            await person.say("two", "there")
            await person.wait_for("Echo: Message sent")
            assert not token.exists(), host.output()
        reply = "Echo: Message sent to (current conversation) (id: 5)\nthere"
        await check_end(host, person, ["Echo: before", "half way", ASKED, reply])
    finally:
        await host.kill()
