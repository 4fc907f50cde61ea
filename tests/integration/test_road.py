"""The whole road on every engine: a message in, an answer out, and what happens to containers on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from hermitcrab.app import Host
from hermitcrab.model.container import ContainerStatus
from hermitcrab.model.ids import Generation
from hermitcrab.testing.scratch import REPLY_WITHIN_S, RecordingChannel, add_chat, host_on, say, session_of

Found = TypeVar("Found")
NeedEngine = Callable[[str], Mapping[str, str]]
ENGINES = ["bubblewrap", "docker", "podman"]

pytestmark = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
def options(engine: str, need_engine: NeedEngine) -> dict[str, Any]:
    """Settings of the engine under test, or a skip."""
    prefix = "HERMITCRAB__CONTAINERS__"
    found = need_engine(engine)
    return {key.removeprefix(prefix).lower(): value for key, value in found.items() if key != f"{prefix}ENGINE"}


async def until(question: Callable[[], Awaitable[Found]]) -> Found:
    """The first answer that is not empty: for what happens in the engine and tells nobody here."""
    with anyio.fail_after(REPLY_WITHIN_S):
        while not (found := await question()):  # noqa: ASYNC110
            await anyio.sleep(0.05)
    return found


async def answer(host: Host, channel: RecordingChannel, address: Any, key: str, text: str) -> str:
    receipt = await say(host, address, key, text)
    assert receipt.accepted
    _, delivery = await channel.answer_to(receipt.row_ids[0])
    return str(delivery.content["text"])


async def test_a_message_is_answered_from_a_container(engine: str, options: dict[str, Any], tmp_path: Path) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello there") == "Echo: hello there"
        assert await answer(host, channel, address, "two", "again") == "Echo: again"
        (container,) = await host.engine.containers()
        assert container.generation == 1
        assert container.status is ContainerStatus.RUNNING


async def test_a_message_that_is_received_twice_is_answered_once(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello") == "Echo: hello"
        receipt = await say(host, address, "one", "hello")
        assert receipt.accepted
        assert receipt.reason is not None
        assert await answer(host, channel, address, "two", "other") == "Echo: other"
        assert len(channel.delivered) == 2


async def test_a_burst_is_answered_completely_by_one_container(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(say, host, address, f"m-{number}", f"<{number}>")
        with anyio.fail_after(REPLY_WITHIN_S):
            while True:
                said = " ".join(delivery.content["text"] for _, delivery in channel.delivered.values())
                if all(f"<{number}>" in said for number in range(30)):
                    break
                await channel.next_delivery()
        assert sum(said.count(f"<{number}>") for number in range(30)) == 30
        assert len(await host.engine.containers()) == 1


async def test_wakes_at_once_make_one_container(engine: str, options: dict[str, Any], tmp_path: Path) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello") == "Echo: hello"
        session = await session_of(host, host.runner.views()[0].session_id)
        await host.runner.kill(session.id)
        assert await host.engine.containers() == []
        kinds: list[str] = []

        async def wake() -> None:
            kinds.append((await host.runner.wake(session)).kind)

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(wake)
        assert set(kinds) <= {"started", "live"}
        (container,) = await host.engine.containers()
        assert container.generation == 2


async def test_a_container_is_adopted_by_the_next_host(engine: str, options: dict[str, Any], tmp_path: Path) -> None:
    async with host_on(tmp_path / "home", engine, keep=True, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello") == "Echo: hello"
    async with host_on(tmp_path / "home", engine, **options) as (host, channel):
        assert host.reconciled.adopted == 1
        assert host.reconciled.removed == 0
        assert await answer(host, channel, address, "two", "still there?") == "Echo: still there?"
        (container,) = await host.engine.containers()
        assert container.generation == 1


async def test_a_container_with_other_settings_is_replaced_by_the_next_host(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, keep=True, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello") == "Echo: hello"
    async with host_on(tmp_path / "home", engine, pids=99, **options) as (host, channel):
        assert host.reconciled.adopted == 0
        assert host.reconciled.removed == 1
        assert await answer(host, channel, address, "two", "new here?") == "Echo: new here?"
        (container,) = await host.engine.containers()
        assert container.generation == 2


async def test_a_container_that_dies_leaves_a_certificate_and_loses_nothing(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello") == "Echo: hello"
        session = await session_of(host, host.runner.views()[0].session_id)
        await say(host, address, "two", "/exit 7")
        found = await until(lambda: host.runner.certificates(session))
        assert found[0]["cause"] == "exited"
        assert found[0]["exit_code"] == 7
        assert found[0]["generation"] == 1
        assert found[0]["rows_returned"] == 1


async def test_a_message_that_ends_every_container_is_set_aside_with_a_notice(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        text = await answer(host, channel, address, "poison", "/exit 7")
        assert text.startswith("I have set your message aside: 3 containers ended the same way (exited)")
        assert await answer(host, channel, address, "next", "are you well?") == "Echo: are you well?"


async def test_a_quiet_container_is_frozen_and_thawed_by_a_message(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, quiet_before_freeze_s=0, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello") == "Echo: hello"

        async def frozen() -> bool:
            (container,) = await host.engine.containers()
            return container.status is ContainerStatus.FROZEN

        await until(frozen)
        assert host.runner.views()[0].phase == "frozen"
        assert await answer(host, channel, address, "two", "awake?") == "Echo: awake?"
        assert host.runner.views()[0].generation == Generation(1)


async def test_a_host_that_leaves_ends_its_containers_and_nothing_else(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "other", engine, **options) as (other, other_channel):
        _, there = await add_chat(other, "chat")
        assert await answer(other, other_channel, there, "one", "hello") == "Echo: hello"
        async with host_on(tmp_path / "home", engine, **options) as (host, channel):
            _, address = await add_chat(host, "chat")
            assert await answer(host, channel, address, "one", "hello") == "Echo: hello"
        (container,) = await other.engine.containers()
        assert container.status is ContainerStatus.RUNNING
        async with host_on(tmp_path / "home", engine, **options) as (host, _):
            assert await host.engine.containers() == []


async def test_the_quietest_container_makes_room_for_another(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine an engine takes its time to end one, and another would be ended as well for that.
    monkeypatch.setattr("hermitcrab.containers.lifecycle.admission.EVICTED_WITHIN_S", 600.0)
    async with host_on(tmp_path / "home", engine, max_running=2, **options) as (host, channel):
        addresses = [(await add_chat(host, f"chat-{number}"))[1] for number in range(3)]
        for number, address in enumerate(addresses):
            assert await answer(host, channel, address, f"m-{number}", f"hello {number}") == f"Echo: hello {number}"
        assert len(await host.engine.containers()) == 2
        assert await answer(host, channel, addresses[0], "again", "still here?") == "Echo: still here?"
        assert len(await host.engine.containers()) == 2
