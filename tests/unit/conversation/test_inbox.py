"""Files that people send: laid in whole, under names of the host's own, and bounded."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermitcrab.conversation import inbox
from hermitcrab.conversation.inbox import Inbox, folder_of
from hermitcrab.errors import BadInputError, HermitcrabError
from hermitcrab.model.messages import InFile
from hermitcrab_wire.limits import MAX_FILE_BYTES


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


def given_file(spool: Path, name: str = "report.PDF", data: bytes = b"data", **changes: Any) -> InFile:
    path = spool / f"part-{len(list(spool.iterdir()))}"
    path.write_bytes(data)
    return InFile(**{"name": name, "path": path, "bytes": len(data), **changes})


def test_files_are_laid_in_under_names_that_nobody_chose(tmp_path: Path, spool: Path) -> None:
    folder = tmp_path / "session" / "inbox"
    files = [given_file(spool), given_file(spool, "../../etc/passwd", b"x"), given_file(spool, "a.tar.!!", b"")]
    listed = Inbox(folder).stage("m1", files, unanswered=())
    place = folder_of("m1")
    assert listed == [
        {"type": "file", "name": "report.PDF", "localPath": f"inbox/{place}/1.pdf", "bytes": 4},
        {"type": "file", "name": "passwd", "localPath": f"inbox/{place}/2", "bytes": 1},
        {"type": "file", "name": "a.tar.!!", "localPath": f"inbox/{place}/3", "bytes": 0},
    ]
    assert sorted(each.name for each in folder.rglob("*")) == sorted([place, "1.pdf", "2", "3"])
    assert (folder / place / "1.pdf").read_bytes() == b"data"
    # Any user of a container can read them, whatever the host's umask.
    assert stat.S_IMODE((folder / place).stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / place / "1.pdf").stat().st_mode) == 0o644


def test_the_same_message_again_changes_nothing(tmp_path: Path, spool: Path) -> None:
    first = Inbox(tmp_path / "inbox").stage("m1", [given_file(spool)], unanswered=())
    again = Inbox(tmp_path / "inbox").stage("m1", [given_file(spool, data=b"else")], unanswered=())
    assert first == again
    assert (tmp_path / first[0]["localPath"]).read_bytes() == b"data"


def test_what_a_host_left_half_way_is_made_anew(tmp_path: Path, spool: Path) -> None:
    part = tmp_path / "inbox" / f"{folder_of('m1')}.part"
    part.mkdir(parents=True)
    (part / "1.pdf").write_bytes(b"half of it")
    Inbox(tmp_path / "inbox").stage("m1", [given_file(spool)], unanswered=())
    assert [each.name for each in (tmp_path / "inbox").iterdir()] == [folder_of("m1")]


def test_old_files_make_room_and_those_of_unanswered_messages_do_not(tmp_path: Path, spool: Path) -> None:
    place = Inbox(tmp_path / "inbox", bytes_at_most=10)
    for number, key in enumerate(("old", "waiting", "newer")):
        place.stage(key, [given_file(spool, data=b"123")], unanswered=())
        os.utime(tmp_path / "inbox" / folder_of(key), ns=(number, number))
    place.stage("new", [given_file(spool, data=b"1234")], unanswered=["old"])
    assert {each.name for each in (tmp_path / "inbox").iterdir()} == {folder_of(key) for key in ("old", "newer", "new")}
    with pytest.raises(BadInputError, match="fill the inbox"):
        place.stage("large", [given_file(spool, data=b"12345678")], unanswered=["old"])


def test_a_file_that_is_not_what_was_announced_is_refused_whole(tmp_path: Path, spool: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's own")
    link = spool / "link"
    link.symlink_to(secret)
    os.mkfifo(spool / "pipe")
    place = Inbox(tmp_path / "inbox")
    for wrong in (
        given_file(spool, bytes=3),
        given_file(spool, bytes=5),
        given_file(spool, path=link, bytes=14),
        given_file(spool, path=spool / "pipe", bytes=0),
        given_file(spool, path=spool / "nothing"),
    ):
        with pytest.raises(HermitcrabError):
            place.stage("m1", [given_file(spool), wrong], unanswered=())
        assert not (tmp_path / "inbox" / folder_of("m1")).exists()


def test_more_than_a_message_may_have_is_refused(spool: Path) -> None:
    file = given_file(spool)
    with pytest.raises(BadInputError, match="2 files"):
        inbox.check([file] * 3, files_at_most=2)
    with pytest.raises(BadInputError, match="bytes"):
        inbox.check([given_file(spool, bytes=MAX_FILE_BYTES + 1)], files_at_most=2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.text(max_size=200), st.text(max_size=300))
def test_whatever_ids_and_names_are_given_nothing_is_made_outside(tmp_path: Path, key: str, name: str) -> None:
    spool = tmp_path / "spool"
    spool.mkdir(exist_ok=True)
    path = spool / "file"
    path.write_bytes(b"x")
    # The same id may be given twice, with names that end otherwise: its folder would be the first one's.
    shutil.rmtree(tmp_path / "inbox", ignore_errors=True)
    (attachment,) = Inbox(tmp_path / "inbox").stage(key, [InFile(name=name, path=path, bytes=1)], unanswered=())
    assert {each.name for each in tmp_path.iterdir()} == {"inbox", "spool"}
    made = tmp_path / attachment["localPath"]
    assert made.resolve().parent.parent == (tmp_path / "inbox").resolve()
    assert made.read_bytes() == b"x"
