"""Trees that an agent wrote: copied and removed without following or opening what they should not."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.containers.disk.trees import DEPTH_AT_MOST, Entry, Filler, problem_of, remove, walk
from hermitcrab.errors import BadInputError


def copied(source: Path, target: Path, *, without: tuple[str, ...] = ()) -> list[Entry]:
    target.mkdir()
    found = []
    with Filler(target, uid=os.geteuid(), gid=os.getegid()) as filler:
        for entry, content in walk(source, without=without):
            found.append(entry)
            filler.add(entry, content)
    return found


def test_a_copy_has_the_same_files_folders_links_modes_and_times(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "file").write_bytes(b"x" * 3_000_000)
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    os.utime(source / "run.sh", ns=(1_000_000_000, 1_234_567_890))
    (source / "away").symlink_to("/etc/shadow")
    (source / os.fsdecode(b"not-utf8-\xff")).write_text("odd")
    copied(source, tmp_path / "target")
    target = tmp_path / "target"
    assert (target / "deep/er/file").read_bytes() == b"x" * 3_000_000
    assert (target / "run.sh").stat().st_mode & 0o7777 == 0o755
    assert (target / "run.sh").stat().st_mtime_ns == 1_234_567_890
    assert (target / "away").readlink() == Path("/etc/shadow")
    assert (target / os.fsdecode(b"not-utf8-\xff")).read_text() == "odd"


def test_what_gives_rights_or_is_no_file_stays_behind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "setuid").write_text("x")
    (source / "setuid").chmod(0o4755)
    os.mkfifo(source / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
        found = copied(source, tmp_path / "target")
    assert [each.path for each in found] == [("setuid",)]
    assert (tmp_path / "target/setuid").stat().st_mode & 0o7777 == 0o755


def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").write_text("secret")
    source = tmp_path / "source"
    source.mkdir()
    (source / "inner").symlink_to(tmp_path / "elsewhere")
    assert [each.kind for each, _ in walk(source)] == ["link"]
    (tmp_path / "planted").symlink_to(source)
    with pytest.raises(OSError, match="planted"):
        list(walk(tmp_path / "planted"))


def test_nothing_is_written_through_a_link_that_came_before(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    with Filler(target, uid=0, gid=0) as filler:
        filler.add(Entry(path=("door",), kind="link", target=str(outside)))
        with pytest.raises(OSError, match="door"):
            filler.add(Entry(path=("door", "file"), kind="file"))
        with pytest.raises(FileExistsError):
            filler.add(Entry(path=("door",), kind="file"))
    assert list(outside.iterdir()) == []


def test_names_of_the_hosts_own_are_passed_over(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "agent" / "x").mkdir(parents=True)
    (source / "kept" / "agent").mkdir(parents=True)
    assert [each.path for each, _ in walk(source, without={"agent"})] == [("kept",), ("kept", "agent")]


def test_a_tree_that_is_nested_too_deeply_is_refused_and_can_still_be_removed(
    tmp_path: Path, open_files: Callable[[], set[str]]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    before = open_files()
    here = os.open(source, os.O_RDONLY)
    for _ in range(3 * DEPTH_AT_MOST):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(BadInputError, match="folders in each other"):
        list(walk(source))
    remove(source)
    assert not source.exists()
    assert open_files() <= before


def test_removal_follows_no_link_and_takes_folders_without_rights(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").write_text("kept")
    source = tmp_path / "source"
    (source / "a/b/c").mkdir(parents=True)
    (source / "a/b/link").symlink_to(tmp_path / "elsewhere")
    (source / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(source / "a/pipe")
    (source / "a/b/c/file").write_text("x")
    for each in ("a/b/c", "a/b", "a"):
        (source / each).chmod(0)
    remove(source)
    remove(source)
    assert not source.exists()
    assert (tmp_path / "elsewhere/kept").read_text() == "kept"


@given(
    st.builds(
        Entry,
        path=st.lists(st.text(max_size=300), max_size=5).map(tuple),
        kind=st.sampled_from(["folder", "file", "link"]),
        mode=st.integers(-1, 0o7777),
        modified_ns=st.integers(-1, 1 << 65),
        size=st.integers(-1, 10),
        target=st.text(max_size=10),
    )
)
def test_an_entry_without_a_problem_can_only_be_below_the_root(entry: Entry) -> None:
    if not problem_of(entry):
        assert os.path.normpath("/root/" + "/".join(entry.path)) == "/root/" + "/".join(entry.path)
        assert entry.mode & ~0o777 == 0
