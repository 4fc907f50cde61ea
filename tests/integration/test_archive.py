"""Sessions as files and folders, with real hosts and real containers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from hermitcrab.app import Host
from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.control.client import ControlClient
from hermitcrab.control.lookup import sessions_json
from hermitcrab.errors import BadInputError, ConflictError, StoreError
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.messages import Address
from hermitcrab.store import moves, sessions
from hermitcrab.testing.host_process import HostProcess, Person, attended
from hermitcrab.testing.scratch import RecordingChannel, add_chat, host_on, say, session_of


@pytest.fixture(autouse=True)
def engine(need_engine: Any) -> None:
    need_engine("bubblewrap")


async def answered(host: Host, channel: RecordingChannel, address: Address, key: str) -> str:
    receipt = await say(host, address, key, f"text {key}")
    _, delivery = await channel.answer_to(receipt.row_ids[0])
    assert delivery.content["text"] == f"Echo: text {key}"
    return receipt.session_ids[0]


async def test_a_session_is_exported_while_it_lives_and_goes_on(tmp_path: Path) -> None:
    async with host_on(tmp_path / "one", "bubblewrap") as (host, channel):
        group, address = await add_chat(host, "chat")
        session = await session_of(host, await answered(host, channel, address, "m1"))
        folders = session_folders(host.home, session)
        (folders.work / "notes.txt").write_text("kept")
        (folders.state / "transcript.jsonl").write_text("{}\n")
        (folders.work / "escape").symlink_to("/etc")
        folders.outbox.mkdir(exist_ok=True)
        (folders.outbox / "on-its-way").write_text("a file")
        found = await host.archivist.export(session, tmp_path / "session.zip")
        assert found.rows["inbound"] >= 1
        assert found.entries == {"work": 2, "state": 1, "inbox": 0, "outbox": 1}
        assert await answered(host, channel, address, "m2") == session.id

    async with host_on(tmp_path / "two", "bubblewrap") as (host, channel):
        group, address = await add_chat(host, "chat")
        taken = await host.archivist.import_(tmp_path / "session.zip", group, go_on=False)
        assert taken.is_wired
        session = await session_of(host, taken.session)
        folders = session_folders(host.home, session)
        assert (folders.work / "notes.txt").read_text() == "kept"
        assert (folders.state / "transcript.jsonl").read_text() == "{}\n"
        assert (folders.work / "escape").is_symlink()
        assert (folders.outbox / "on-its-way").stat().st_uid == os.geteuid()
        history = await host.mailboxes.run(session, lambda mailbox: mailbox.history(None, 10))
        assert [row.content["text"] for row in reversed(history)] == ["text m1", "Echo: text m1"]
        # It is the same conversation, in a container that may write to what came along.
        assert await answered(host, channel, address, "m3") == session.id
        with pytest.raises(ConflictError, match="here already"):
            await host.archivist.import_(tmp_path / "session.zip", group, go_on=False)
        assert (await host.archivist.check(session)).problems == ()


async def test_a_copy_answers_and_delivers_nothing_that_waited(tmp_path: Path) -> None:
    async with host_on(tmp_path / "one", "bubblewrap") as (host, channel):
        _, address = await add_chat(host, "chat")
        session = await session_of(host, await answered(host, channel, address, "m1"))
        await host.runner.withhold(session.id, "for the test")
        await say(host, address, "m2", "waits")
        await host.archivist.hold(session, "for the test")  # So that nobody answers it before it is exported.
        await host.archivist.export(session, tmp_path / "session.zip")
    async with host_on(tmp_path / "two", "bubblewrap") as (host, channel):
        group, _ = await add_chat(host, "chat")
        taken = await host.archivist.import_(tmp_path / "session.zip", group, go_on=False)
        session = await session_of(host, taken.session)
        counts = await host.mailboxes.run(session, Mailbox.counts)
        assert (counts.pending, counts.undelivered) == (0, 0)
        row = await host.mailboxes.run(session, lambda mailbox: mailbox.history(None, 1)[0])
        assert row.content["text"] == "waits"
        assert not channel.delivered


async def test_a_bad_archive_leaves_no_trace(tmp_path: Path) -> None:
    async with host_on(tmp_path / "one", "bubblewrap") as (host, channel):
        _, address = await add_chat(host, "chat")
        session = await session_of(host, await answered(host, channel, address, "m1"))
        folders = session_folders(host.home, session)
        await host.runner.kill(session.id)
        (folders.work / "file").write_text("x")
        await host.archivist.export(session, tmp_path / "session.zip")
    whole = (tmp_path / "session.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    async with host_on(tmp_path / "two", "bubblewrap") as (host, _):
        group, _ = await add_chat(host, "chat")
        with pytest.raises(BadInputError):
            await host.archivist.import_(tmp_path / "cut.zip", group, go_on=True)
        assert await host.store.read(sessions.count) == 0
        assert list(host.home.trash.iterdir()) == []
        assert list(host.home.sessions.iterdir()) == []


async def test_a_deleted_session_is_gone_with_its_container_and_a_new_message_begins_another(tmp_path: Path) -> None:
    async with host_on(tmp_path / "one", "bubblewrap") as (host, channel):
        _, address = await add_chat(host, "chat")
        session = await session_of(host, await answered(host, channel, address, "m1"))
        root = session_folders(host.home, session).root
        await host.archivist.delete(session)
        assert not root.exists()
        assert await host.engine.containers() == []
        assert list(host.home.trash.iterdir()) == []
        assert await answered(host, channel, address, "m2") != session.id


async def test_a_held_session_refuses_messages_over_a_restart_and_lives_on_when_released(tmp_path: Path) -> None:
    async with host_on(tmp_path / "one", "bubblewrap") as (host, channel):
        _, address = await add_chat(host, "chat")
        session = await session_of(host, await answered(host, channel, address, "m1"))
        token = await host.archivist.hold(session, "it is being moved")
        assert await host.engine.containers() == []
        with pytest.raises(StoreError, match="being moved"):
            await say(host, address, "m2", "refused")
    async with host_on(tmp_path / "one", "bubblewrap") as (host, channel):
        assert await host.archivist.hold(session, "again") == token
        with pytest.raises(StoreError, match="being moved"):
            await say(host, address, "m2", "refused")
        assert (await host.runner.wake(session)).kind == "waiting"
        assert await host.archivist.release(session)
        assert not await host.archivist.release(session)
        assert await answered(host, channel, address, "m2") == session.id


async def test_a_deletion_that_a_crash_interrupted_is_finished(tmp_path: Path) -> None:
    async with host_on(tmp_path / "one", "bubblewrap") as (host, channel):
        _, address = await add_chat(host, "chat")
        session = await session_of(host, await answered(host, channel, address, "m1"))
        home = host.home
    # As it is when the host dies between its two steps.
    session_folders(home, session).root.rename(home.trash / f"leaving-{session.id}")
    (home.trash / "coming-0123").mkdir()
    async with host_on(tmp_path / "one", "bubblewrap") as (host, channel):
        assert list(home.trash.iterdir()) == []
        assert await host.store.read(lambda connection: sessions.by_id(connection, session.id)) is None
        assert await answered(host, channel, address, "m2") != session.id


async def crab(home: Path, *words: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "hermitcrab.cli.main", "--home", str(home), *words]
    done = await anyio.to_thread.run_sync(lambda: subprocess.run(command, capture_output=True, text=True, check=False))
    return done.returncode, done.stdout + done.stderr


async def test_a_session_moves_from_one_home_to_another_and_its_conversation_goes_on_there(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    here, there = (HostProcess(tmp_path / name / "home", engine="bubblewrap") for name in ("one", "two"))
    try:
        await here.start()
        await there.start()
        async with attended(Person(here.home)) as person:
            await person.say("m1", "before")
            await person.wait_for("Echo: before")
        code, output = await crab(here.home.path, "sessions", "move", "main", "--to", str(tmp_path / "nobody"))
        assert code == 2
        assert "No host runs" in output
        async with attended(Person(there.home)) as person:
            code, output = await crab(here.home.path, "sessions", "move", "main", "--to", str(there.home.path))
            assert code == 0, output
            await person.say("m2", "after")
            await person.wait_for("Echo: after")
        code, output = await crab(there.home.path, "sessions", "list", "--json")
        assert [each["generation"] for each in json.loads(output)] == [2]
        code, output = await crab(here.home.path, "sessions", "list")
        assert "no session" in output
        code, output = await crab(there.home.path, "sessions", "check")
        assert (code, "1 of 1 sessions are sound" in output) == (0, True)
        assert (await here.stop(), await there.stop()) == (0, 0)
    finally:
        await here.kill()
        await there.kill()


async def test_a_move_that_is_refused_there_leaves_the_session_here_as_it_was(tmp_path: Path) -> None:
    homes = [HostProcess(tmp_path / name / "home", engine="bubblewrap") for name in ("one", "two")]
    for host in homes:
        host.home.path.parent.mkdir()
        await host.start()
    here, there = homes
    try:
        for host in homes:  # The same conversation has a session in both.
            async with attended(Person(host.home)) as person:
                await person.say("m1", "before")
                await person.wait_for("Echo: before")
        target = ("--to", str(there.home.path))
        for words, why in ((target, "has a session here already"), ((*target, "--group", "nobody"), "no group")):
            code, output = await crab(here.home.path, "sessions", "move", "main", *words)
            assert (code, why in output) == (1, True), output
        async with attended(Person(here.home)) as person:
            await person.say("m2", "after")
            await person.wait_for("Echo: after")

        # One that an earlier attempt had begun may be there already, so that it is not given back unasked.
        async with ControlClient.connect(here.home) as client:
            key = (await client.call("sessions.hold", session="main", why="it is being moved"))["session"]
        code, output = await crab(here.home.path, "sessions", "move", "main", *target)
        assert code == 1, output
        code, output = await crab(here.home.path, "sessions", "list", "--json")
        assert [each["phase"] for each in json.loads(output)] == ["held"]
        code, output = await crab(here.home.path, "sessions", "show", key)
        assert f"crab sessions move {key} --cancel" in output
    finally:
        for host in homes:
            await host.stop()


async def test_what_cannot_be_ended_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with host_on(tmp_path / "one", "bubblewrap") as (host, channel):
        _, address = await add_chat(host, "chat")
        session = await session_of(host, await answered(host, channel, address, "m1"))

        async def stuck(*_: object) -> None:
            raise ConflictError("the container does not end")

        with monkeypatch.context() as patched:
            patched.setattr(host.runner, "withhold", stuck)
            with pytest.raises(ConflictError, match="does not end"):
                await host.archivist.hold(session, "it is being moved")
        assert await host.store.read(moves.held) == []
        assert await answered(host, channel, address, "m2") == session.id


async def test_a_move_that_died_between_its_ends_is_not_done_twice(tmp_path: Path) -> None:
    async with host_on(tmp_path / "one", "bubblewrap") as (host, channel):
        _, address = await add_chat(host, "chat")
        session = await session_of(host, await answered(host, channel, address, "m1"))
        token = await host.archivist.hold(session, "it is being moved")
        await host.archivist.export(session, tmp_path / "session.zip")
    async with host_on(tmp_path / "two", "bubblewrap") as (other, channel):
        group, address = await add_chat(other, "chat")
        first = await other.archivist.import_(tmp_path / "session.zip", group, go_on=True, token=token)
        assert not first.was_here
        assert await answered(other, channel, address, "m2") == session.id
        again = await other.archivist.import_(tmp_path / "session.zip", group, go_on=True, token=token)
        assert again.was_here
        with pytest.raises(ConflictError):
            await other.archivist.import_(tmp_path / "session.zip", group, go_on=True, token="another")
        assert await answered(other, channel, address, "m3") == session.id


async def test_a_damaged_session_is_named_and_others_go_on(tmp_path: Path) -> None:
    async with host_on(tmp_path / "one", "bubblewrap") as (host, channel):
        _, one = await add_chat(host, "one")
        _, two = await add_chat(host, "two")
        damaged = await session_of(host, await answered(host, channel, one, "m1"))
        sound = await session_of(host, await answered(host, channel, two, "m1"))
        home = host.home
    path = session_folders(home, damaged).mailbox / "inbound.db"
    whole = path.read_bytes()
    data = bytearray(whole)
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(data)
    async with host_on(tmp_path / "one", "bubblewrap") as (host, channel):
        with pytest.raises(StoreError):
            await say(host, one, "m2", "refused, as it cannot be kept")
        assert (await host.archivist.check(damaged)).problems
        assert (await host.archivist.check(sound)).problems == ()
        assert await answered(host, channel, two, "m2") == sound.id
        assert [each["phase"] for each in await sessions_json(host, [damaged, sound])] == ["damaged", "ready"]
        # A sound one in its place is taken up where somebody says so, and what waited in it goes on.
        path.write_bytes(whole)
        assert (await host.archivist.check(damaged)).problems == ()
        assert await answered(host, channel, one, "m3") == damaged.id
