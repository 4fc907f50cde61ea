"""An agent that sends files in every wrong way: it costs its own upload or link, and nothing of anybody else's."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from hermitcrab.containers.link.exchange import Exchange, Outward, Surroundings
from hermitcrab.containers.link.uploads import STORED_FILES_AT_MOST, Uploads
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import AgentGroupId, Generation, SessionId
from hermitcrab.model.messages import Address
from hermitcrab.model.sessions import Session
from hermitcrab.settings.sockets import connect_unix
from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab.testing.links import serving
from hermitcrab_wire import codec, frames
from hermitcrab_wire.codec import LineBuffer, WireError
from hermitcrab_wire.limits import FILE_CHUNK_BYTES, MAX_FILE_BYTES, MAX_NESTING, MIN_FILE_CHUNK_BYTES
from hermitcrab_wire.parsing import parse

G1 = Generation(1)
DATA = bytes(range(256)) * 1200  # more than two chunks


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "outbox", G1)


def chunk(key: str, offset: int, data: bytes) -> frames.FileChunk:
    return frames.FileChunk(id=key, offset=offset, data=base64.b64encode(data).decode())


def chunks(key: str, data: bytes, begin: int = 0) -> Iterator[frames.FileChunk]:
    for offset in range(begin, len(data), FILE_CHUNK_BYTES):
        yield chunk(key, offset, data[offset : offset + FILE_CHUNK_BYTES])


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(uploads: Uploads, key: str, data: bytes = DATA) -> frames.Frame | None:
    ready = uploads.handle(frames.FileBegin(id=key, bytes=len(data)))
    if not isinstance(ready, frames.FileReady):
        return ready
    for each in chunks(key, data, ready.offset):
        uploads.handle(each)
    return uploads.handle(frames.FileEnd(id=key, sha256=sha(data)))


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []


def test_a_file_arrives_whole_under_a_name_of_the_hosts(uploads: Uploads, tmp_path: Path) -> None:
    for data in (DATA, b"", b"x", DATA[:FILE_CHUNK_BYTES]):
        key = f"file-{len(data)}"
        assert put(uploads, key, data) == frames.FileStored(id=key)
        found = uploads.take([key], ["a/../report.pdf"])
        assert found is not None
        (file,) = found
        assert (file.name, file.bytes, file.sha256) == ("report.pdf", len(data), sha(data))
        assert (tmp_path / "outbox" / file.handle).read_bytes() == data
        assert (tmp_path / "outbox" / file.handle).stat().st_mode & 0o777 == 0o600
    assert uploads.take(["never"], ["x"]) is None


def test_a_broken_link_or_another_host_goes_on_where_it_was(uploads: Uploads, tmp_path: Path) -> None:
    uploads.handle(frames.FileBegin(id="f", bytes=len(DATA)))
    uploads.handle(chunk("f", 0, DATA[:FILE_CHUNK_BYTES]))
    again = Uploads(tmp_path / "outbox", G1)
    assert again.handle(frames.FileBegin(id="f", bytes=len(DATA))) == frames.FileReady(id="f", offset=FILE_CHUNK_BYTES)
    # What was under way on the old link comes twice, and is answered with what is here.
    assert again.handle(chunk("f", 0, DATA[:FILE_CHUNK_BYTES])) == frames.FileReady(id="f", offset=FILE_CHUNK_BYTES)
    for each in chunks("f", DATA, FILE_CHUNK_BYTES):
        again.handle(each)
    assert again.handle(frames.FileEnd(id="f", sha256=sha(DATA))) == frames.FileStored(id="f")
    third = Uploads(tmp_path / "outbox", G1)
    assert third.handle(frames.FileBegin(id="f", bytes=len(DATA))) == frames.FileStored(id="f")
    assert third.handle(frames.FileEnd(id="f", sha256=sha(DATA))) == frames.FileStored(id="f")
    assert third.take(["f"], ["x"]) is not None


@pytest.mark.parametrize(
    "key", ["../../x", "..", "/etc/passwd", "a\0b", "x" * 200, "\u202ecod.exe", "a/b", "-rf", "1-" + "0" * 32 + ".part"]
)
def test_no_name_of_an_agents_becomes_a_path(uploads: Uploads, tmp_path: Path, key: str) -> None:
    before = names_in(tmp_path)
    assert put(uploads, key) == frames.FileStored(id=key)
    (name,) = names_in(tmp_path / "outbox")
    assert name.startswith("1-")
    assert len(name) == 34
    assert set(names_in(tmp_path)) == {*before, "outbox"}


def refusal(found: frames.Frame | None) -> str:
    assert isinstance(found, frames.Refused)
    return found.code


def test_a_file_that_is_not_what_it_was_said_to_be_leaves_nothing(uploads: Uploads, tmp_path: Path) -> None:
    uploads.handle(frames.FileBegin(id="f", bytes=len(DATA)))
    for each in chunks("f", DATA):
        uploads.handle(each)
    assert refusal(uploads.handle(frames.FileEnd(id="f", sha256=sha(b"other")))) == "wrong-hash"
    assert names_in(tmp_path / "outbox") == []
    uploads.handle(frames.FileBegin(id="f", bytes=len(DATA)))
    uploads.handle(chunk("f", 0, DATA[:FILE_CHUNK_BYTES]))
    assert refusal(uploads.handle(frames.FileEnd(id="f", sha256=sha(DATA)))) == "truncated"
    assert names_in(tmp_path / "outbox") == []
    assert put(uploads, "f") == frames.FileStored(id="f")


def test_huge_endless_and_crumbled_files_are_refused(uploads: Uploads, tmp_path: Path) -> None:
    assert refusal(uploads.handle(frames.FileBegin(id="huge", bytes=MAX_FILE_BYTES + 1))) == "too-large"
    with pytest.raises(WireError):
        uploads.handle(frames.FileBegin(id="negative", bytes=-1))
    uploads.handle(frames.FileBegin(id="endless", bytes=MIN_FILE_CHUNK_BYTES))
    with pytest.raises(WireError, match="more of a file"):
        uploads.handle(chunk("endless", 0, b"x" * (MIN_FILE_CHUNK_BYTES + 1)))
    uploads.handle(frames.FileBegin(id="crumbs", bytes=100_000))
    # So that no file is a hundred thousand frames.
    for size in (0, 1, MIN_FILE_CHUNK_BYTES - 1, FILE_CHUNK_BYTES + 1):
        with pytest.raises(WireError, match="a chunk of"):
            uploads.handle(chunk("crumbs", 0, b"x" * size))
    for data in ("no base64!", "AAA", "é", "A" * 5):
        with pytest.raises(WireError, match="no Base64"):
            uploads.handle(frames.FileChunk(id="crumbs", offset=0, data=data))
    assert uploads.handle(chunk("crumbs", 50_000, b"x" * 5000)) == frames.FileReady(id="crumbs", offset=0)
    assert sum((tmp_path / "outbox" / each).stat().st_size for each in names_in(tmp_path / "outbox")) == 0
    for _ in range(100_000 // 1000):
        assert uploads.handle(chunk("never begun", 0, b"x" * 5000)) is None


def test_many_files_are_refused_before_they_fill_the_disk(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "outbox", G1, bytes_at_most=1_000_000)
    for number in range(4):
        uploads.handle(frames.FileBegin(id=f"open-{number}", bytes=200_000))
    assert refusal(uploads.handle(frames.FileBegin(id="open-5", bytes=1))) == "too-many"
    uploads = Uploads(tmp_path / "outbox", G1, bytes_at_most=1_000_000)
    assert put(uploads, "a") == frames.FileStored(id="a")
    assert put(uploads, "b") == frames.FileStored(id="b")
    assert put(uploads, "c") == frames.FileStored(id="c")
    assert refusal(put(uploads, "d")) == "quota"
    small = Uploads(tmp_path / "small", G1)
    for number in range(STORED_FILES_AT_MOST):
        assert put(small, f"empty-{number}", b"") == frames.FileStored(id=f"empty-{number}")
    assert refusal(put(small, "one more", b"")) == "quota"


def test_a_full_disk_costs_the_file_and_nothing_else(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads.handle(frames.FileBegin(id="f", bytes=len(DATA)))

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert refusal(uploads.handle(chunk("f", 0, DATA[:FILE_CHUNK_BYTES]))) == "disk-full"
    assert names_in(tmp_path / "outbox") == []
    assert put(uploads, "f") == frames.FileStored(id="f")


def test_what_no_message_waits_for_is_swept_by_the_next_generation(uploads: Uploads, tmp_path: Path) -> None:
    for key in ("kept", "left"):
        put(uploads, key)
    uploads.handle(frames.FileBegin(id="part", bytes=10))
    kept = uploads.take(["kept"], ["x"])
    assert kept is not None
    later = Uploads(tmp_path / "outbox", Generation(2))
    put(later, "own")
    assert later.sweep({kept[0].handle}) == 2
    assert len(names_in(tmp_path / "outbox")) == 2


# Over a real link.

CHAT = Address(channel_type="fake", platform_id="a")


@asynccontextmanager
async def sessions_with_links(
    folder: Path, *names: str
) -> AsyncIterator[tuple[Mailboxes, dict[str, Session], list[str]]]:
    offences: list[str] = []

    async def surroundings() -> Surroundings:
        return Surroundings(config={}, destinations=[], home_address=CHAT)

    made = {
        each: Session(id=SessionId(each), agent_group_id=AgentGroupId("ag"), messaging_group_id=None) for each in names
    }
    async with Mailboxes(lambda session: folder / session.id / "mailbox") as mailboxes, AsyncExitStack() as stack:
        for name, session in made.items():
            exchange = Exchange(
                session,
                G1,
                mailboxes=mailboxes,
                outbox=folder / name / "outbox",
                surroundings=surroundings,
                outward=Outward(
                    ready=lambda _: None,
                    said=lambda _rows: None,
                    working=lambda: None,
                    farewell=lambda _: None,
                    offended=lambda text, name=name: offences.append(f"{name}: {text}"),
                    gone=lambda: None,
                ),
            )
            (folder / name).mkdir()
            await stack.enter_async_context(serving(folder / name, exchange))
        yield mailboxes, made, offences


class Runner:
    """A bare runner. Blocks; use it in a thread."""

    def __init__(self, folder: Path) -> None:
        self._socket = connect_unix(folder / "link.sock")
        self._socket.settimeout(DEADLINE_S)
        self._buffer, self._lines = LineBuffer(), []  # type: tuple[LineBuffer, list[bytes]]
        self.send(frames.Hello(protocol=1, generation=1, provider="echo", version="test"))
        assert isinstance(self.next(), frames.Welcome)

    def send(self, *said: frames.Frame) -> None:
        for each in said:
            self._socket.sendall(codec.encode(each.to_json()))

    def next(self) -> frames.Frame | None:
        while not self._lines:
            data = self._socket.recv(65536)
            if not data:
                return None
            self._lines += self._buffer.feed(data)
        return parse(codec.decode(self._lines.pop(0)), frames.FROM_HOST)

    def until(self, kind: type[frames.Frame]) -> frames.Frame:
        while True:
            found = self.next()
            assert found is not None
            if isinstance(found, (kind, frames.Refused)):
                return found

    def put(self, key: str, data: bytes) -> frames.Frame:
        self.send(frames.FileBegin(id=key, bytes=len(data)))
        ready = self.until(frames.FileReady)
        if isinstance(ready, frames.FileReady):
            self.send(*chunks(key, data, ready.offset), frames.FileEnd(id=key, sha256=sha(data)))
            return self.until(frames.FileStored)
        return ready

    def close(self) -> None:
        self._socket.close()


def out(key: str, *files: str, names: list[str] | None = None, **changes: Any) -> frames.Out:
    content = {"text": "here", "files": names if names is not None else [f"{each}.pdf" for each in files]}
    return frames.Out(id=key, kind="chat", content=content, files=list(files), **changes)


async def test_a_message_with_files_is_kept_with_them_and_a_repeat_changes_nothing(tmp_path: Path) -> None:
    def talk() -> list[frames.Frame]:
        with closing(Runner(tmp_path / "s")) as runner:
            said = [runner.put("f1", DATA), runner.put("f2", b"x")]
            for _ in range(2):
                runner.send(out("o", "f1", "f2", names=["../../x.pdf", "b\0.txt"]))
                said.append(runner.until(frames.Committed))
            return said

    async with sessions_with_links(tmp_path, "s") as (mailboxes, sessions, offences):
        said = await to_thread.run_sync(talk)
        assert [each.type for each in said] == ["file-stored", "file-stored", "committed", "committed"]
        row = await mailboxes.run(sessions["s"], lambda mailbox: mailbox.begin_in_lane("fake\x1fa\x1f"))
        assert row is not None
        assert [(each.name, each.bytes) for each in row.files] == [("x.pdf", len(DATA)), ("b.txt", 1)]
        # Its files may be gone by the time that the runner repeats it.
        for each in row.files:
            (tmp_path / "s" / "outbox" / each.handle).unlink()
        assert offences == []


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (out("o", "never"), "unknown-file"),
        (out("o", "f", names=[]), "unknown-file"),
        (out("o", "f", names=["a", "b"]), "unknown-file"),
        (out("o", names=["a"]), "unknown-file"),
        (out("o", "f", names=["a"], deliver_after="tomorrow"), "bad-time"),
        (out("o", "f", names=["a"], deliver_after="2026-01-01T00:00:00"), "bad-time"),
        (out("o", "f", names=["a"], deliver_after="9999-12-31T23:59:59-23:59"), "bad-time"),
        (frames.Out(id="o", kind="chat", content={"operation": "edit", "seq": 99, "text": "x"}), "unknown-message"),
        (frames.Out(id="o", kind="chat", content={"operation": "burn"}), "not-accepted"),
        (frames.Out(id="o", kind="system", content={"action": "x"}), "unknown-kind"),
        (
            frames.Out(
                id="o", kind="chat", content={"text": "x", "more": json.loads("[" * MAX_NESTING + "]" * MAX_NESTING)}
            ),
            "too-deep",
        ),
    ],
)
async def test_what_cannot_be_sent_so_is_refused_by_name_and_the_link_goes_on(
    tmp_path: Path, said: frames.Out, code: str
) -> None:
    def talk() -> tuple[frames.Frame, frames.Frame]:
        with closing(Runner(tmp_path / "s")) as runner:
            runner.put("f", b"x")
            runner.send(said)
            refused = runner.until(frames.Committed)
            runner.send(out("fine", "f"))
            return refused, runner.until(frames.Committed)

    async with sessions_with_links(tmp_path, "s") as (_, _, offences):
        refused, fine = await to_thread.run_sync(talk)
        assert refusal(refused) == code
        assert isinstance(fine, frames.Committed)
        assert offences == []


async def test_one_sessions_flood_of_chunks_ends_its_link_and_disturbs_no_other(tmp_path: Path) -> None:
    def attack() -> None:
        with closing(Runner(tmp_path / "bad")) as runner:
            runner.send(frames.FileBegin(id="f", bytes=MAX_FILE_BYTES))
            runner.until(frames.FileReady)
            try:
                for offset in range(100_000):
                    runner.send(chunk("f", offset, b"x"))
            except (BrokenPipeError, ConnectionResetError):
                return

    def honest() -> frames.Frame:
        with closing(Runner(tmp_path / "good")) as runner:
            return runner.put("f", DATA * 10)

    async with sessions_with_links(tmp_path, "bad", "good") as (_, _, offences):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, attack)
            stored = await to_thread.run_sync(honest)
        assert isinstance(stored, frames.FileStored)
        assert offences == ["bad: malformed: a chunk of 1 bytes"]
        assert len(names_in(tmp_path / "good" / "outbox")) == 1


async def test_a_file_goes_on_after_a_broken_link(tmp_path: Path) -> None:
    def talk() -> frames.Frame:
        with closing(Runner(tmp_path / "s")) as runner:
            runner.send(frames.FileBegin(id="f", bytes=len(DATA)))
            runner.until(frames.FileReady)
            runner.send(next(chunks("f", DATA)))
            runner.until(frames.FileReady)
        with closing(Runner(tmp_path / "s")) as runner:
            runner.send(frames.FileBegin(id="f", bytes=len(DATA)))
            ready = runner.until(frames.FileReady)
            assert isinstance(ready, frames.FileReady)
            assert ready.offset == FILE_CHUNK_BYTES
            return runner.put("f", DATA)

    async with sessions_with_links(tmp_path, "s"):
        assert isinstance(await to_thread.run_sync(talk), frames.FileStored)
