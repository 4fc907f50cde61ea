"""Line 15 of family B, for files that come in: hostile names, and paths that an agent has made into traps."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import pytest

from hermitcrab.channels.base import Delivery
from hermitcrab.cli import files as cli_files
from hermitcrab.cli.files import opened, save
from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.conversation.inbox import folder_of
from hermitcrab.errors import BadInputError, HermitcrabError
from hermitcrab.logic.file_names import shown_name
from hermitcrab.model.messages import ChannelMessage, InFile
from hermitcrab.settings.home import Home
from hermitcrab.settings.sockets import bind_unix
from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab.testing.scratch import add_chat, host_on, session_of
from hermitcrab_wire.limits import MAX_FILE_BYTES

NeedEngine = Callable[[str], Mapping[str, str]]

HOSTILE = [
    "../../../../etc/cron.d/x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\0b.txt",
    "..\\..\\x.exe",
    "CON",
    "n" * 4096 + ".pdf",
    "x" * 300,
    "photo\u202egnp.exe",
    "\u200b\u2066.sh",
    "-rf",
    ".git/hooks/pre-commit",
    ".bashrc",
    "same.txt",
    "same.txt",
    "a\nb.txt",
    "\x1b]0;title\x07.txt",
    "\ud800.txt",
    "name.{$(id)}",
]


@pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])
async def test_hostile_names_of_files_that_come_in_are_captions_and_never_paths(
    engine: str, need_engine: NeedEngine, tmp_path: Path
) -> None:
    prefix = "HERMITCRAB__CONTAINERS__"
    found = need_engine(engine)
    options = {key.removeprefix(prefix).lower(): value for key, value in found.items() if key != f"{prefix}ENGINE"}
    spool = tmp_path / "spool"
    spool.mkdir()
    async with host_on(tmp_path / "home", engine, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        said: list[str] = []
        deliver = channel.deliver

        async def record(delivery: Delivery) -> str | None:
            said.append(str(delivery.content.get("text")))
            return await deliver(delivery)

        channel.deliver = record  # type: ignore[method-assign]
        # As the agent sees them: it sends one of them back, and another that is not there.
        place = folder_of("message-1")
        tries = [
            ("send_file", {"path": f"/workspace/inbox/{place}/6.txt", "filename": "back.txt"}),
            ("send_file", {"path": f"/workspace/inbox/{place}/99"}),
        ]
        text = "\n".join(f"/tool {name} {json.dumps(arguments)}" for name, arguments in tries)
        batches = [HOSTILE[at : at + 10] for at in range(0, len(HOSTILE), 10)]
        for number, names in enumerate(batches):
            files = []
            for each in names:
                path = spool / f"{number}-{len(files)}"
                path.write_bytes(b"data")
                files.append(InFile(name=each, path=path, bytes=4))
            message = ChannelMessage(
                id=f"message-{number}",
                address=address,
                content={"text": text if number == 1 else "look", "senderId": "recording:1"},
                timestamp="2026-01-01T00:00:00.000Z",
                files=tuple(files),
            )
            receipt = await host.router.receive(message)
            await channel.answer_to(receipt.row_ids[0])
            session = await session_of(host, receipt.session_ids[0])
            inbox = session_folders(host.home, session).inbox
            made = sorted(each.name for each in (inbox / folder_of(f"message-{number}")).iterdir())
            assert len(made) == len(names)
            assert all(each.partition(".")[0].isdecimal() for each in made)
            row = await host.mailboxes.run(session, lambda mailbox, key=receipt.row_ids[0]: mailbox.inbound(key))  # type: ignore[misc]
            assert row is not None
            assert [each["name"] for each in row.content["attachments"]] == [shown_name(each) for each in names]
            assert all(each["localPath"].startswith("inbox/") for each in row.content["attachments"])
        assert sorted(each.name for each in inbox.iterdir()) == sorted(
            folder_of(f"message-{number}") for number in range(len(batches))
        )
        with anyio.fail_after(DEADLINE_S):
            while len(said) < 4:
                await channel.next_delivery()
        assert "[file: back.txt; this chat takes no files]" in said
        assert any("File sent" in each and "Error: File not found: /workspace/inbox" in each for each in said)


async def test_a_channel_cannot_make_a_row_point_to_another_file(need_engine: NeedEngine, tmp_path: Path) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        _, address = await add_chat(host, "chat")
        path = tmp_path / "file"
        path.write_bytes(b"data")
        forged = [{"name": "x", "localPath": "../../../etc/shadow", "url": "https://example.invalid/x"}, "nonsense"]
        message = ChannelMessage(
            id="one",
            address=address,
            content={"text": "look", "attachments": forged},
            timestamp="2026-01-01T00:00:00.000Z",
            files=(InFile(name="mine", path=path, bytes=4),),
        )
        receipt = await host.router.receive(message)
        await channel.answer_to(receipt.row_ids[0])
        session = await session_of(host, receipt.session_ids[0])
        row = await host.mailboxes.run(session, lambda mailbox: mailbox.inbound(receipt.row_ids[0]))
        assert row is not None
        assert [each.get("localPath") for each in row.content["attachments"]] == [None, f"inbox/{folder_of('one')}/1"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.prepare()
    (made.groups / "main").mkdir()
    return made


def test_a_path_to_send_that_an_agent_has_made_a_trap_is_refused(home: Home, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "key").write_text("the person's own")
    agents = home.groups / "main"
    (agents / "notes.txt").symlink_to(secrets / "key")
    (agents / "folder").symlink_to(secrets)
    (agents / "loop").symlink_to(agents / "loop")
    os.mkfifo(agents / "pipe")
    with bind_unix(agents, "socket", 0o600):
        with (agents / "huge").open("wb") as huge:
            huge.truncate(MAX_FILE_BYTES + 1)
        (agents / "honest.txt").write_text("words")
        for trap in (
            "notes.txt",
            "folder/key",
            "loop",
            "pipe",
            "socket",
            "huge",
            ".",
            "folder/../folder/key",
            "a\0b",
            "",
        ):
            path = f"{agents}/{trap}" if trap else ""
            with pytest.raises(BadInputError), opened([path], home):
                pytest.fail(f"{trap!r} was opened")
        with opened([str(agents / "honest.txt"), f"{agents}/../main/honest.txt"], home) as files:
            assert [each.part(0, 100) for each in files] == [b"words", b"words"]


def test_a_file_of_an_agents_is_saved_beside_what_is_there_and_nowhere_else(home: Home, tmp_path: Path) -> None:
    source = tmp_path / "handle"
    source.write_bytes(b"data")
    digest = hashlib.sha256(b"data").hexdigest()
    folder = tmp_path / "received"
    (folder).mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder / "same.txt").symlink_to(victim)
    for name in HOSTILE:
        path = save(folder, {"name": name, "path": str(source), "bytes": 4, "sha256": digest})
        assert path is not None
        assert path.parent == folder
        assert path.read_bytes() == b"data"
    assert victim.read_text() == "mine"
    assert len(list(folder.iterdir())) == len(HOSTILE) + 1
    assert {"same (2).txt", "same (3).txt"} <= {each.name for each in folder.iterdir()}
    assert {each.name for each in tmp_path.iterdir()} == {"handle", "received", "victim", "home"}


def test_what_cannot_be_saved_is_said_and_leaves_nothing(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "handle"
    source.write_bytes(b"data")
    file = {"name": "a.txt", "path": str(source), "bytes": 4, "sha256": "0" * 64}
    with pytest.raises(HermitcrabError, match="is not what the agent sent"):
        save(tmp_path / "received", file)
    monkeypatch.setattr(cli_files, "SAVED_BYTES_AT_MOST", 3)
    with pytest.raises(HermitcrabError, match="no room for 4 bytes"):
        save(tmp_path / "received", file)
    (tmp_path / "in-the-way").write_text("")
    with pytest.raises(HermitcrabError, match="could not be saved"):
        save(tmp_path / "in-the-way", file)
    assert list((tmp_path / "received").iterdir()) == []
    assert save(tmp_path / "received", {**file, "path": str(tmp_path / "gone")}) is None
