"""An unmodified v2 runner in a real container: a stand-in for one that knows nothing but SQLite and files."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from anyio import to_thread

from hermitcrab.app import Host
from hermitcrab.channels.base import Choice, Delivery, Traits
from hermitcrab.logic.pieces import Shows
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.messages import Address, ChannelMessage, InFile
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.store import container_configs
from hermitcrab.testing import foreign_runner
from hermitcrab.testing.scratch import REPLY_WITHIN_S, RecordingChannel, add_chat, host_on, say, session_of

Found = TypeVar("Found")
NeedEngine = Callable[[str], Mapping[str, str]]

SETTINGS = "/home/node/.claude/settings.json"
PLANTED = '{"hooks":{"Stop":[]}}'


def options(engine: str, need_engine: NeedEngine) -> dict[str, Any]:
    prefix = "HERMITCRAB__CONTAINERS__"
    found = need_engine(engine)
    return {key.removeprefix(prefix).lower(): value for key, value in found.items() if key != f"{prefix}ENGINE"}


async def foreign_chat(host: Host, name: str) -> tuple[AgentGroup, Address]:
    """A chat with an agent that a foreign runner serves. Its program lies in the group's folder."""
    group, address = await add_chat(host, name)
    options = ("--poll", "0.05", "--settings", SETTINGS)
    config = ContainerConfig(foreign_command=("python3", "/workspace/agent/runner.py", *options))
    await host.store.write(lambda connection: container_configs.put(connection, group.id, config))
    folder = host.home.groups / group.folder
    await to_thread.run_sync(lambda: folder.mkdir(parents=True, exist_ok=True))
    await to_thread.run_sync(lambda: shutil.copy(foreign_runner.__file__, folder / "runner.py"))
    return group, address


async def until(question: Callable[[], Awaitable[Found]]) -> Found:
    with anyio.fail_after(REPLY_WITHIN_S):
        while not (found := await question()):  # noqa: ASYNC110
            await anyio.sleep(0.05)
    return found


async def answer(host: Host, channel: RecordingChannel, address: Address, key: str, text: str) -> str:
    receipt = await say(host, address, key, text)
    assert receipt.accepted
    _, delivery = await channel.answer_to(receipt.row_ids[0])
    return str(delivery.content["text"])


@pytest.mark.parametrize("engine", ["bubblewrap", "docker"])
async def test_a_foreign_runner_answers_from_a_container(engine: str, need_engine: NeedEngine, tmp_path: Path) -> None:
    async with host_on(tmp_path / "home", engine, **options(engine, need_engine)) as (host, channel):
        _, address = await foreign_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello there") == "Echo: hello there"
        first = await answer(host, channel, address, "two", "recall")
        assert first.startswith("I am conversation-")
        assert first.endswith("and know chat, terminal")
        # Another container, the same conversation.
        await host.runner.kill(host.runner.views()[0].session_id)
        assert await answer(host, channel, address, "three", "recall") == first
        (container,) = await host.engine.containers()
        assert container.generation == 2


@pytest.mark.parametrize("engine", ["bubblewrap", "docker"])
async def test_a_foreign_runner_adds_to_its_harness_settings_and_what_is_planted_there_lasts_no_longer_than_it(
    engine: str, need_engine: NeedEngine, tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options(engine, need_engine)) as (host, channel):
        _, address = await foreign_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello") == "Echo: hello"
        (path,) = host.home.sessions.glob("*/*/state/settings.json")

        def hooks() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(path.read_text())["hooks"]
            return found

        added = await to_thread.run_sync(hooks)
        assert set(added) == {"PreCompact", "SessionStart"}
        assert await answer(host, channel, address, "two", f"sh echo '{PLANTED}' >{SETTINGS}") == "done"
        assert set(await to_thread.run_sync(hooks)) == {"Stop"}
        await host.runner.kill(host.runner.views()[0].session_id)
        assert await answer(host, channel, address, "three", f"sh ln -sf /etc/passwd {SETTINGS}") == "done"
        await host.runner.kill(host.runner.views()[0].session_id)
        assert await answer(host, channel, address, "four", "again") == "Echo: again"
        assert await to_thread.run_sync(hooks) == added


async def test_a_container_with_a_foreign_runner_is_adopted(need_engine: NeedEngine, tmp_path: Path) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap", keep=True) as (host, channel):
        _, address = await foreign_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello") == "Echo: hello"
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        assert host.reconciled.adopted == 1
        assert await answer(host, channel, address, "two", "still there?") == "Echo: still there?"


async def test_a_foreign_runner_that_dies_leaves_a_certificate_and_loses_nothing(
    need_engine: NeedEngine, tmp_path: Path
) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        _, address = await foreign_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello") == "Echo: hello"
        session = await session_of(host, host.runner.views()[0].session_id)
        assert await answer(host, channel, address, "two", "die pushed") == "Echo: die pushed"
        (certificate,) = await host.runner.certificates(session)
        assert certificate["exit_code"] == 128 + signal.SIGKILL
        assert certificate["rows_returned"] >= 1
        assert len(channel.delivered) == 2


async def test_a_quiet_foreign_runner_is_frozen_and_thawed(need_engine: NeedEngine, tmp_path: Path) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap", quiet_before_freeze_s=0) as (host, channel):
        _, address = await foreign_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello") == "Echo: hello"

        async def frozen() -> bool:
            return host.runner.views()[0].phase == "frozen"

        await until(frozen)
        assert await answer(host, channel, address, "two", "awake?") == "Echo: awake?"


async def test_messages_for_a_command_that_there_is_not_are_set_aside_with_a_notice(
    need_engine: NeedEngine, tmp_path: Path
) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        group, address = await foreign_chat(host, "chat")
        config = ContainerConfig(foreign_command=("no-such-program",))
        await host.store.write(lambda connection: container_configs.put(connection, group.id, config))
        text = await answer(host, channel, address, "one", "hello")
        assert text.startswith("I have set your message aside: 3 containers ended the same way")
        assert "exited with code 127" in text


async def test_what_a_foreign_runner_sends_besides_text_reaches_the_channel(
    need_engine: NeedEngine, tmp_path: Path
) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        channel.traits = Traits(shows=Shows(edits=True, reactions=True, cards=True, questions=True, files=True))
        _, address = await foreign_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello") == "Echo: hello"
        await say(host, address, "two", "card news | file notes.txt some words | react 2 thumbs_up | ask sure?")
        found: list[Delivery] = []
        with anyio.fail_after(REPLY_WITHIN_S):
            while len(found) < 4:
                await channel.next_delivery()
                found = [each for _, each in channel.delivered.values() if each.content.get("text") != "Echo: hello"]
        card, file, reaction, question = found
        assert card.content["card"] == {"title": "news"}
        assert [each.name for each in file.files] == ["notes.txt"]
        assert (reaction.content["emoji"], reaction.target) == ("thumbs_up", "one")
        assert question.content["questionId"] == question.key.rpartition("/")[2]


@pytest.mark.parametrize(
    ("engine", "way"),
    [("bubblewrap", "a button"), ("bubblewrap", "a number"), ("bubblewrap", "words"), ("podman", "a button")],
)
async def test_the_answer_to_a_foreign_runners_question_reaches_the_tool_that_waits(
    engine: str, way: str, need_engine: NeedEngine, tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options(engine, need_engine)) as (host, channel):
        seen: list[Delivery] = []
        deliver = channel.deliver

        async def record(delivery: Delivery) -> str | None:
            seen.append(delivery)
            return await deliver(delivery)

        channel.deliver = record  # type: ignore[method-assign]
        channel.traits = Traits(shows=Shows(questions=way == "a button"))
        _, address = await foreign_chat(host, "chat")
        await say(host, address, "one", "ask Shall I go on?")
        with anyio.fail_after(REPLY_WITHIN_S):
            while not seen:
                await channel.next_delivery()
        if way == "a button":
            receipt = await host.router.choose(Choice(key=seen[0].key, option="no", user_id="recording:2"))
        else:
            receipt = await say(host, address, "two", "2" if way == "a number" else "No!")
        assert receipt.row_ids[0].startswith("qr-q-")
        with anyio.fail_after(REPLY_WITHIN_S):
            while len(seen) < 2:
                await channel.next_delivery()
        assert seen[1].content["text"] == "chosen no"
        session = await session_of(host, receipt.session_ids[0])

        async def all_done() -> bool:
            return not await host.mailboxes.run(session, lambda mailbox: mailbox.counts().pending)

        await until(all_done)
        row = await host.mailboxes.run(session, lambda mailbox: mailbox.inbound(receipt.row_ids[0]))
        assert row is not None
        assert row.status == "completed"


async def test_a_foreign_runner_learns_the_platforms_id_of_what_it_said(
    need_engine: NeedEngine, tmp_path: Path
) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        channel.traits = Traits(shows=Shows(edits=True))
        edits: list[Delivery] = []
        deliver = channel.deliver

        async def record(delivery: Delivery) -> str | None:
            await deliver(delivery)
            if delivery.content.get("operation") == "edit":
                edits.append(delivery)
            return f"platform-{delivery.content['text']}"

        channel.deliver = record  # type: ignore[method-assign]
        _, address = await foreign_chat(host, "chat")
        assert await answer(host, channel, address, "one", "hello") == "Echo: hello"
        ids = await until_ids(host, {"platform-Echo: hello"})
        assert len(ids) == 1
        # Now it names the message as the platform does, and the host takes that for what it is.
        await say(host, address, "two", "edit 3 better")
        with anyio.fail_after(REPLY_WITHIN_S):
            while not edits:
                await channel.next_delivery()
        assert (edits[0].content["messageId"], edits[0].target) == ("platform-Echo: hello", "platform-Echo: hello")
        await until_ids(host, {"platform-Echo: hello", "platform-better"})
        # What arrives while there is no runner, the next one hears of at its start.
        release = anyio.Event()

        async def slow(delivery: Delivery) -> str | None:
            await release.wait()
            return await record(delivery)

        channel.deliver = slow  # type: ignore[method-assign]
        receipt = await say(host, address, "three", "late")
        session = await session_of(host, receipt.session_ids[0])

        async def answered() -> bool:
            return not await host.mailboxes.run(session, lambda mailbox: mailbox.counts().pending)

        await until(answered)
        await host.runner.kill(session.id)
        release.set()
        await until_delivered(host, session)
        assert await answer(host, channel, address, "four", "again") == "Echo: again"
        await until_ids(host, {f"platform-{text}" for text in ("Echo: hello", "better", "Echo: late", "Echo: again")})


async def until_ids(host: Host, wanted: set[str]) -> list[str]:
    """Until the runner's own database has these ids of the platform's; it is read as the agent's tools read it."""
    query = "SELECT platform_message_id FROM delivered WHERE platform_message_id IS NOT NULL"

    async def found() -> list[str]:
        ids = await to_thread.run_sync(read_only, host.home, query)
        return ids if wanted <= set(ids) else []

    return await until(found)


def read_only(home: Home, query: str) -> list[str]:
    """One column of the only foreign runner's own database. Its writers may hold it for as long as they like."""
    (path,) = home.sessions.glob("*/*/work/inbound.db")
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=REPLY_WITHIN_S)
    try:
        return [each for (each,) in connection.execute(query)]
    finally:
        connection.close()


async def until_delivered(host: Host, session: Session) -> None:
    async def delivered() -> bool:
        return not await host.mailboxes.run(session, lambda mailbox: mailbox.counts().undelivered)

    await until(delivered)


async def test_a_foreign_runner_finds_the_files_that_people_send(need_engine: NeedEngine, tmp_path: Path) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        _, address = await foreign_chat(host, "chat")
        files = []
        for number, name in enumerate(("first.txt", "../second <x>.md"), 1):
            path = tmp_path / name.rpartition("/")[2]
            await to_thread.run_sync(path.write_text, f"words of file {number}")
            files.append(InFile(name=name, path=path, bytes=path.stat().st_size))
        message = ChannelMessage(
            id="one",
            address=address,
            content={"text": "open 2", "sender": "somebody", "senderId": "recording:1"},
            timestamp="2026-01-01T00:00:00.000Z",
            files=tuple(files),
        )
        receipt = await host.router.receive(message)
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert delivery.content["text"] == "words of file 2"


async def test_a_foreign_agent_looks_things_up_and_changes_nothing(need_engine: NeedEngine, tmp_path: Path) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        group, address = await foreign_chat(host, "chat")
        await add_chat(host, "secret-neighbour")
        seen = await answer(host, channel, address, "one", "ncl groups list")
        assert seen.startswith("ncl True")
        assert group.id in seen
        assert "secret-neighbour" not in seen
        listed = await answer(host, channel, address, "two", "ncl sessions list")
        assert host.runner.views()[0].session_id in listed
        assert await answer(host, channel, address, "three", "ncl wirings list") == (
            "ncl False this agent may look at its own group only"
        )
        tasks = await answer(host, channel, address, "tasks", "ncl tasks create")
        assert tasks == "ncl False this host has no scheduler yet"
        refused = await answer(host, channel, address, "four", "ncl groups delete")
        assert refused.startswith("ncl False groups-delete changes something; an administrator can do it")
        # What is no command is answered with a note, which the agent reads as a message.
        await say(host, address, "five", "schedule water the plants")
        await say(host, address, "six", "install cowsay")
        session = await session_of(host, host.runner.views()[0].session_id)

        async def both_noted() -> bool:
            notes = await to_thread.run_sync(
                read_only, host.home, "SELECT content FROM messages_in WHERE id LIKE 'sys-resp-%'"
            )
            return all(
                any(part in each for each in notes)
                for part in ("this host has no scheduler yet", "packages need somebody's consent")
            )

        await until(both_noted)

        async def all_done() -> bool:
            return not await host.mailboxes.run(session, lambda mailbox: mailbox.counts().pending)

        await until(all_done)
