"""How much lies in an agent's folders: counted as the disk counts it, whatever was put there to deceive."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.containers.disk.measuring import measure
from hermitcrab.containers.disk.trees import DEPTH_AT_MOST
from hermitcrab.logic.workspace import (
    MEBIBYTE,
    Allowance,
    Free,
    Usage,
    excess,
    is_due,
)
from hermitcrab.testing.ordinary_user import ordinary_user

PLENTY = Allowance(bytes=1 << 40, files=1 << 30)


def fill(path: Path, mebibytes: int) -> None:
    path.write_bytes(os.urandom(mebibytes * MEBIBYTE))


def of(path: Path, allowance: Allowance = PLENTY) -> Usage:
    return measure([path], allowance)


def test_what_lies_there_is_counted_as_the_disk_counts_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    fill(tmp_path / "a" / "b" / "two", 2)
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(100 * 1024 * MEBIBYTE)
    found = of(tmp_path)
    assert 2 * MEBIBYTE <= found.bytes < 3 * MEBIBYTE, "a hole takes no place"
    assert found.files == 4
    assert list(found.parts) == [str(tmp_path)]


def test_a_file_with_many_names_takes_its_place_once_and_every_name_counts(tmp_path: Path) -> None:
    fill(tmp_path / "one", 1)
    for number in range(20):
        (tmp_path / f"other-{number}").hardlink_to(tmp_path / "one")
    found = of(tmp_path)
    assert found.bytes < 2 * MEBIBYTE
    assert found.files == 21


def test_no_link_leads_out_and_nothing_special_is_opened(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    fill(outside / "much", 4)
    (inside / "folder").symlink_to(outside)
    (inside / "file").symlink_to(outside / "much")
    (inside / "loop").symlink_to(inside)
    (inside / "proc").symlink_to("/proc/self/fd")
    os.mkfifo(inside / "pipe")
    found = of(inside)
    assert found.bytes < MEBIBYTE
    assert found.files == 5


def test_a_root_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(OSError, match="link"):
        of(tmp_path / "link")


def test_a_folder_that_is_not_there_yet_holds_nothing(tmp_path: Path) -> None:
    assert of(tmp_path / "none").files == 0


def test_it_goes_no_further_than_it_must(tmp_path: Path) -> None:
    for number in range(500):
        (tmp_path / str(number)).touch()
    found = of(tmp_path, Allowance(bytes=0, files=100))
    assert found.files == 101
    assert "100 files" in excess(found, Allowance(bytes=0, files=100))


def test_folders_without_end_are_too_much(tmp_path: Path, open_files: Callable[[], set[str]]) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(DEPTH_AT_MOST * 3):
        os.mkdir("deeper", dir_fd=here)
        inner = os.open("deeper", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    before = open_files()
    found = of(tmp_path)
    assert found.too_deep
    assert "deeper" in excess(found, PLENTY)
    assert open_files() <= before, "every descriptor is closed again"


@pytest.mark.parametrize("name", ["x" * 255, "a\nb", "-rf", "\udcff", "\u202egnp.exe", " "])
def test_any_name_is_counted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert of(tmp_path).files == 1


CLOSED = """
import os, sys
from pathlib import Path
from hermitcrab.containers.disk.measuring import measure
from hermitcrab.logic.workspace import Allowance

top = Path(sys.argv[1])
closed = top / "open" / "closed"
closed.mkdir(parents=True)
(closed / "much").write_bytes(os.urandom(3 << 20))
closed.chmod(0)
found = measure([top], Allowance(bytes=1 << 40, files=100))
assert found.bytes > 3 << 20, found
assert found.closed == 0, found
assert closed.stat().st_mode & 0o777 == 0
closed.chmod(0o700)
"""


def test_a_folder_that_was_closed_to_all_is_counted_and_stays_closed(tmp_path: Path) -> None:
    """By a host that is no superuser, to whom nothing is closed anyway."""
    if os.geteuid() == 0:
        with ordinary_user() as user:
            done = user.run(user.python, "-c", CLOSED, str(user.folder / "work"))
    else:
        done = subprocess.run(
            [sys.executable, "-c", CLOSED, str(tmp_path / "w")], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr


def test_what_moves_about_while_it_is_counted_leads_nowhere_else(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    fill(outside / "much", 8)
    for number in range(50):
        (inside / str(number) / "a").mkdir(parents=True)
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            number = (number + 1) % 50
            place, aside = inside / str(number), inside / "aside"
            place.rename(aside)
            place.symlink_to(outside)
            place.unlink()
            aside.rename(place)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(200):
            assert of(inside).bytes < 4 * MEBIBYTE
    finally:
        stop.set()
        swapping.join()


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        (Usage(parts={"/w": 10 * MEBIBYTE, "/g": 95 * MEBIBYTE}, files=1), "95 MiB were found in /g"),
        (Usage(parts={"/w": 0}, files=11), "10 files"),
        (Usage(parts={"/w": 100 * MEBIBYTE}, files=10), ""),
        (Usage(parts={}, files=0), ""),
    ],
)
def test_what_is_too_much_is_told_with_its_place(usage: Usage, told: str) -> None:
    text = excess(usage, Allowance(bytes=100 * MEBIBYTE, files=10))
    assert told in text
    assert bool(text) == bool(told)


@given(st.integers(0, 1 << 45), st.integers(0, 1 << 25))
def test_without_a_limit_nothing_is_too_much(size: int, files: int) -> None:
    nothing = Allowance(bytes=0, files=0)
    assert not nothing
    assert excess(Usage(parts={"/w": size}, files=files), nothing) == ""


FULL = Free(bytes=1 << 40, files=1 << 20)


@pytest.mark.parametrize(
    ("since_s", "took_s", "worked", "lost_bytes", "lost_files", "due"),
    [
        (11.0, 0.01, True, 0, 0, True),
        (11.0, 0.01, False, 0, 0, False),
        (11.0, 0.01, False, MEBIBYTE, 0, True),
        (11.0, 0.01, False, MEBIBYTE - 1, 99, False),
        (11.0, 0.01, False, -MEBIBYTE, -100, False),
        (11.0, 0.01, False, 0, 100, True),
        (9.0, 0.01, True, MEBIBYTE, 0, False),
        (11.0, 2.0, True, MEBIBYTE, 0, False),
        (41.0, 2.0, True, 0, 0, True),
        (59.0, 0.01, False, -MEBIBYTE, 0, False),
        (60.0, 0.01, False, -MEBIBYTE, 0, True),
    ],
)
def test_who_works_is_measured_and_who_does_not_only_when_the_disk_shrinks(
    *, since_s: float, took_s: float, worked: bool, lost_bytes: int, lost_files: int, due: bool
) -> None:
    now = Free(bytes=FULL.bytes - lost_bytes, files=FULL.files - lost_files)
    allowed = Allowance(bytes=32 * MEBIBYTE, files=3200)
    assert is_due(allowed, since_s=since_s, every_s=10, took_s=took_s, worked=worked, then=FULL, now=now) == due
