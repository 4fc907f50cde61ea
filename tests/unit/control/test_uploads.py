"""Files on their way over the control socket: resumed where they stopped, bounded, and never taken for whole."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from hermitcrab.control.uploads import UPLOADS_AT_MOST, Uploads
from hermitcrab.errors import BadInputError, HermitcrabError, NotFoundError
from hermitcrab_wire.limits import FILE_CHUNK_BYTES, MAX_FILE_BYTES


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_file_comes_in_parts_and_goes_on_where_the_host_says(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "incoming")
    assert uploads.add("a", 6, 0, coded(b"123")) == 3
    assert uploads.add("a", 6, 0, coded(b"123")) == 3, "a repeat"
    assert uploads.add("a", 6, 5, coded(b"6")) == 3, "a gap"
    assert uploads.add("a", 6, 3, coded(b"4567")) == 3, "more than was announced"
    assert uploads.add("a", 6, 3, coded(b"456")) == 6
    file = uploads.whole("a", "name", hashlib.sha256(b"123456").hexdigest())
    assert (file.name, file.bytes, file.path.read_bytes()) == ("name", 6, b"123456")
    uploads.drop(["a"])
    assert list((tmp_path / "incoming").iterdir()) == []


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    assert uploads.add("a", 0, 0, "") == 0
    assert uploads.whole("a", "name", hashlib.sha256().hexdigest()).bytes == 0


def test_what_is_not_whole_or_not_known_is_to_be_sent_again(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    uploads.add("half", 6, 0, coded(b"123"))
    uploads.add("wrong", 3, 0, coded(b"123"))
    for key in ("half", "wrong", "never"):
        with pytest.raises(NotFoundError):
            uploads.whole(key, "name", hashlib.sha256(b"else").hexdigest())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "data"),
    [(MAX_FILE_BYTES + 1, ""), (-1, ""), (9, "???"), (9, "a"), (10**6, coded(bytes(FILE_CHUNK_BYTES + 1)))],
)
def test_what_no_file_may_be_is_refused(tmp_path: Path, size: int, data: str) -> None:
    with pytest.raises(BadInputError):
        Uploads(tmp_path).add("a", size, 0, data)
    assert list(tmp_path.iterdir()) == []


def test_ids_are_no_paths_and_links_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    uploads = Uploads(folder)
    for key in ("../../x", "/etc/x", "a\0b", "\ud800", "x" * 10_000):
        uploads.add(key, 1, 0, coded(b"x"))
    assert {each.name for each in tmp_path.iterdir()} == {"incoming"}
    path = next(folder.iterdir())
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for each in folder.iterdir():
        each.unlink()
    path.symlink_to(victim)
    for key in ("../../x", "/etc/x", "a\0b", "\ud800", "x" * 10_000):
        with contextlib.suppress(HermitcrabError):
            uploads.add(key, 1, 0, coded(b"x"))
    assert victim.read_text() == "mine"
    os.unlink(path)  # noqa: PTH108


def test_the_one_that_nobody_goes_on_with_makes_room(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    for number in range(UPLOADS_AT_MOST):
        uploads.add(f"u{number}", 2, 0, coded(b"x"))
    uploads.add("u0", 2, 1, coded(b"x"))
    uploads.add("new", 1, 0, coded(b"x"))
    assert len(list(tmp_path.iterdir())) == UPLOADS_AT_MOST
    assert uploads.whole("u0", "name", hashlib.sha256(b"xx").hexdigest())
    with pytest.raises(NotFoundError):
        uploads.whole("u1", "name", hashlib.sha256(b"xx").hexdigest())
