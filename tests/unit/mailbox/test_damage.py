"""Files that are damaged, half there, of another make, or on a disk that is full."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hermitcrab.errors import DiskFullError, StoreDamagedError, StoreTooNewError
from hermitcrab.mailbox import inbound as queries
from hermitcrab.mailbox.files import inbound_migrations, outbound_migrations
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import Generation, MessageId
from hermitcrab.model.messages import InboundRow, OutboundRow
from hermitcrab.store.schema import seems_current

In = Callable[..., InboundRow]
Out = Callable[..., OutboundRow]


def filled(folder: Path, inbound: In, outbound: Out) -> None:
    with Mailbox.open(folder) as mailbox:
        mailbox.accept(inbound("m1"))
        mailbox.accept(inbound("m2"))
        mailbox.finish("t", [MessageId("m1")], [outbound("o1")], None)


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


@pytest.mark.parametrize("name", ["inbound.db", "outbound.db"])
@pytest.mark.parametrize("how", ["missing", "empty", "garbage"])
def test_half_a_mailbox_is_refused_and_left_as_it_is(
    tmp_path: Path, inbound: In, outbound: Out, name: str, how: str
) -> None:
    filled(tmp_path, inbound, outbound)
    match how:
        case "missing":
            (tmp_path / name).unlink()
        case "empty":
            (tmp_path / name).write_bytes(b"")
        case _:
            (tmp_path / name).write_bytes(b"not a database" * 1000)
    before = contents(tmp_path)
    with pytest.raises(StoreDamagedError, match=name) as caught:
        Mailbox.open(tmp_path)
    assert caught.value.hint
    assert contents(tmp_path) == before


def test_a_crash_while_a_mailbox_is_made_leaves_one_that_can_be_made_again(tmp_path: Path, inbound: In) -> None:
    Mailbox.open(tmp_path).close()
    (tmp_path / "inbound.db").unlink()
    with Mailbox.open(tmp_path) as mailbox:
        assert mailbox.accept(inbound("m")) is not None
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "outbound.db").touch()
    with Mailbox.open(tmp_path / "half") as mailbox:
        assert mailbox.accept(inbound("m")) is not None


def test_damage_that_is_found_later_is_named(tmp_path: Path, inbound: In, outbound: Out) -> None:
    filled(tmp_path, inbound, outbound)
    with (tmp_path / "inbound.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xba\xad" * 30_000)
    with pytest.raises(StoreDamagedError, match=r"inbound\.db"), Mailbox.open(tmp_path) as mailbox:
        mailbox.pending(limit=10)


def test_a_newer_mailbox_is_refused_and_left_as_it_is(tmp_path: Path, inbound: In, outbound: Out) -> None:
    filled(tmp_path, inbound, outbound)
    connection = sqlite3.connect(tmp_path / "outbound.db")
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    before = contents(tmp_path)
    with pytest.raises(StoreTooNewError, match=r"outbound\.db"):
        Mailbox.open(tmp_path)
    assert contents(tmp_path) == before


def test_a_newer_mailbox_whose_log_alone_says_so_is_refused_and_left_as_it_is(
    tmp_path: Path, inbound: In, outbound: Out
) -> None:
    filled(tmp_path / "one", inbound, outbound)
    newer = sqlite3.connect(tmp_path / "one" / "outbound.db")
    newer.execute("PRAGMA user_version = 999")
    shutil.copytree(tmp_path / "one", tmp_path / "killed")  # as its host leaves it that is killed now
    newer.close()
    assert (tmp_path / "killed" / "outbound.db-wal").stat().st_size > 0
    before = contents(tmp_path / "killed")
    with pytest.raises(StoreTooNewError, match=r"outbound\.db"):
        Mailbox.open(tmp_path / "killed")
    after = contents(tmp_path / "killed")
    for name in ("inbound.db", "outbound.db", "outbound.db-wal"):
        assert after[name] == before[name]


@pytest.mark.parametrize("name", ["inbound.db", "outbound.db"])
def test_a_database_of_another_make_is_refused_and_left_as_it_is_whatever_version_it_claims(
    tmp_path: Path, inbound: In, outbound: Out, name: str
) -> None:
    filled(tmp_path, inbound, outbound)
    with closing(sqlite3.connect(tmp_path / name)) as ours:
        version = ours.execute("PRAGMA user_version").fetchone()[0]
    (tmp_path / name).unlink()
    foreign = sqlite3.connect(tmp_path / name)
    foreign.executescript(f"PRAGMA journal_mode = WAL; CREATE TABLE own (x); PRAGMA user_version = {version}")
    foreign.close()
    before = contents(tmp_path)
    with pytest.raises(StoreDamagedError, match=name):
        Mailbox.open(tmp_path)
    assert contents(tmp_path) == before


def test_a_mailbox_whose_host_was_killed_right_after_making_it_opens(tmp_path: Path, inbound: In) -> None:
    with Mailbox.open(tmp_path / "one") as mailbox:
        mailbox.accept(inbound("m"))
        shutil.copytree(tmp_path / "one", tmp_path / "killed")
    assert seems_current(tmp_path / "killed" / "inbound.db", inbound_migrations())
    assert seems_current(tmp_path / "killed" / "outbound.db", outbound_migrations())
    with Mailbox.open(tmp_path / "killed") as mailbox:
        assert [row.id for row in mailbox.pending(limit=9)] == ["m"]


def test_a_session_folder_of_the_reference_is_taken_over(tmp_path: Path, inbound: In) -> None:
    incoming = sqlite3.connect(tmp_path / "inbound.db")
    incoming.executescript(
        """
        CREATE TABLE messages_in (id TEXT PRIMARY KEY, seq INTEGER UNIQUE, kind TEXT NOT NULL, timestamp TEXT NOT NULL,
          status TEXT DEFAULT 'pending', process_after TEXT, recurrence TEXT, series_id TEXT, tries INTEGER DEFAULT 0,
          trigger INTEGER NOT NULL DEFAULT 1, platform_id TEXT, channel_type TEXT, thread_id TEXT, content TEXT NOT NULL,
          source_session_id TEXT, on_wake INTEGER NOT NULL DEFAULT 0);
        CREATE TABLE delivered (message_out_id TEXT PRIMARY KEY, platform_message_id TEXT,
          status TEXT NOT NULL DEFAULT 'delivered', delivered_at TEXT NOT NULL);
        INSERT INTO messages_in (id, seq, kind, timestamp, content) VALUES
          ('a', 2, 'chat', '2026-01-01 00:00:00', '{"text":"one"}'), ('b', 4, 'chat', '2026-01-01 00:00:01', '"bare"'),
          ('c', 6, 'chat', '2026-01-01 00:00:02', '{"text":"three"}');
        """
    )
    incoming.close()
    outgoing = sqlite3.connect(tmp_path / "outbound.db")
    outgoing.executescript(
        """
        CREATE TABLE messages_out (id TEXT PRIMARY KEY, seq INTEGER UNIQUE, in_reply_to TEXT, timestamp TEXT NOT NULL,
          deliver_after TEXT, recurrence TEXT, kind TEXT NOT NULL, platform_id TEXT, channel_type TEXT, thread_id TEXT,
          content TEXT NOT NULL);
        CREATE TABLE processing_ack (message_id TEXT PRIMARY KEY, status TEXT NOT NULL, status_changed TEXT NOT NULL);
        INSERT INTO messages_out (id, seq, timestamp, kind, content) VALUES ('o', 7, '2026-01-01 00:00:03', 'chat', '{}');
        INSERT INTO processing_ack VALUES ('a', 'completed', '2026-01-01 00:00:03'), ('b', 'processing', '2026-01-01 00:00:03');
        """
    )
    outgoing.close()
    with Mailbox.open(tmp_path) as mailbox:
        assert [(row.id, row.content) for row in mailbox.pending(limit=10)] == [
            ("b", {"text": "bare"}),
            ("c", {"text": "three"}),
        ]
        assert mailbox.release_claims(Generation(1)) == ["b"]
        assert mailbox.undelivered(10) == []
        said = mailbox.outbound("o")
        assert said is not None
        assert (said.delivery, said.reason) == ("unknown-after-crash", "imported")
        accepted = mailbox.accept(inbound("d"))
        assert accepted is not None
        assert accepted.seq == 8
    assert (tmp_path / "outbound.db.backup-0").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"this machine mounts nothing for us: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return ballast


def test_a_full_disk_refuses_what_is_new_and_loses_nothing(small_disk: Path, inbound: In, outbound: Out) -> None:
    accepted: list[str] = []
    mailbox = Mailbox.open(small_disk / "mailbox")

    def accept_without_end() -> None:
        for number in range(1000):
            mailbox.accept(inbound(f"m{number}", content={"text": "x" * 8000}))
            accepted.append(f"m{number}")

    with pytest.raises(DiskFullError, match="disk is full") as caught:
        accept_without_end()
    assert caught.value.hint
    assert 10 < len(accepted) < 1000

    def waiting() -> list[str]:
        return [row.id for row in mailbox.pending(limit=1000)]

    assert waiting() == accepted
    with pytest.raises(DiskFullError):
        mailbox.finish("t", [MessageId("m0")], [outbound("o", content={"text": "x" * 200_000})], None)
    assert waiting() == accepted
    mailbox.close()
    shutil.copytree(small_disk / "mailbox", small_disk.parent / "roomy")
    with Mailbox.open(small_disk.parent / "roomy") as mailbox:
        assert waiting() == accepted
        assert len(mailbox.finish("t", [MessageId("m0")], [outbound("o")], None)) == 1
        assert mailbox.accept(inbound("after")) is not None
        assert waiting() == [*accepted[1:], "after"]


def test_what_could_not_be_repeated_in_inbound_is_finished_all_the_same(
    tmp_path: Path, inbound: In, outbound: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise DiskFullError("the disk is full")

    with Mailbox.open(tmp_path) as mailbox:
        for key in ("m1", "m2", "m3"):
            mailbox.accept(inbound(key))
        with monkeypatch.context() as patch:
            patch.setattr(queries, "set_status", full)
            assert len(mailbox.finish("t", [MessageId("m1")], [outbound("o")], None)) == 1
        assert [row.id for row in mailbox.pending(limit=9)] == ["m2", "m3"]
        assert mailbox.counts().pending == 2
        row = mailbox.inbound("m1")
        assert row is not None
        assert row.status == "completed"
        mailbox.finish("t", [MessageId("m2")], [], None)
        assert [row.id for row in mailbox.pending(limit=9)] == ["m3"]
    incoming = sqlite3.connect(tmp_path / "inbound.db")
    assert incoming.execute("SELECT id FROM messages_in WHERE status = 'completed'").fetchall() == [("m1",), ("m2",)]
    incoming.close()


def test_once_there_is_space_again_the_open_mailbox_goes_on(small_disk: Path, inbound: In, outbound: Out) -> None:
    with Mailbox.open(small_disk / "mailbox") as mailbox:
        mailbox.accept(inbound("m1"))
        # More than what the logs have had space for since the mailbox was made.
        huge = "x" * 400_000
        ballast = fill(small_disk)
        with pytest.raises(DiskFullError):
            mailbox.accept(inbound("big", content={"text": huge}))
        with pytest.raises(DiskFullError):
            mailbox.finish("t", [MessageId("m1")], [outbound("o", content={"text": huge})], None)
        assert mailbox.pending(limit=1)[0].id == "m1"
        ballast.unlink()
        assert len(mailbox.finish("t", [MessageId("m1")], [outbound("o", content={"text": huge})], None)) == 1
        assert mailbox.pending(limit=1) == []
        assert mailbox.accept(inbound("m2")) is not None


def test_a_mailbox_cannot_be_made_on_a_full_disk_and_can_be_made_later(small_disk: Path, inbound: In) -> None:
    ballast = fill(small_disk)
    with pytest.raises(DiskFullError):
        Mailbox.open(small_disk / "mailbox")
    ballast.unlink()
    with Mailbox.open(small_disk / "mailbox") as mailbox:
        assert mailbox.accept(inbound("m")) is not None
