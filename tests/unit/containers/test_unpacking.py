"""Unpacking an archive that was made to do harm."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.containers.images.unpacking import Unpacked, unpack
from hermitcrab.errors import EngineError, Failure

ENOUGH = 10 * 1024**2


def entry(name: str, content: bytes = b"", **about: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    for key, value in about.items():
        setattr(info, key, value)
    return info, content


def folder(name: str, **about: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **about})


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=kind, linkname=to)


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    content.seek(0)
    return content


def unpacked(path: Path, *entries: tuple[tarfile.TarInfo, bytes], **limits: int) -> Unpacked:
    root = path / "root"
    root.mkdir()
    return unpack(archive(*entries), root, **{"bytes_at_most": ENOUGH, **limits})


def names(path: Path) -> set[str]:
    return {str(each.relative_to(path)) for each in path.rglob("*")}


def test_folders_files_and_links_are_there_with_their_modes(tmp_path: Path) -> None:
    found = unpacked(
        tmp_path,
        folder("./usr", mode=0o555),
        entry("usr/tool", b"#!", mode=0o755),
        link("bin", "usr"),
        link("usr/same", "usr/tool", tarfile.LNKTYPE),
        entry("etc/deep/file", b"x"),
    )
    root = tmp_path / "root"
    assert names(root) == {"usr", "usr/tool", "usr/same", "bin", "etc", "etc/deep", "etc/deep/file"}
    assert (root / "usr/tool").read_bytes() == b"#!"
    assert (root / "usr/tool").samefile(root / "usr/same")
    assert str((root / "bin").readlink()) == "usr"
    assert stat.S_IMODE((root / "usr/tool").stat().st_mode) == 0o755
    assert found == Unpacked(5, 3, ())


def test_nothing_lands_outside_whatever_the_names_say(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    found = unpacked(
        tmp_path,
        entry("../outside/file", b"bad"),
        entry(str(outside / "absolute"), b"bad"),
        entry("usr/../../outside/up", b"bad"),
        link("door", str(outside)),
        entry("door/through", b"bad"),
        folder("door"),
        link("relative", "../outside"),
        entry("relative/file", b"bad"),
        link("stolen", "../outside/file", tarfile.LNKTYPE),
        link("by-door", "door/file", tarfile.LNKTYPE),
        link("of-link", "door", tarfile.LNKTYPE),
        entry("usr/fine", b"good"),
    )
    assert names(outside) == {"file"}
    assert (outside / "file").read_text() == "kept"
    assert (outside / "file").stat().st_nlink == 1
    assert names(tmp_path / "root") == {"door", "relative", "usr", "usr/fine"}
    assert len(found.left_out) == 9


def test_no_right_and_no_device_comes_out_of_an_archive(tmp_path: Path) -> None:
    found = unpacked(
        tmp_path,
        entry("su", b"x", mode=0o6755),
        folder("shared", mode=0o7777),
        entry("disk", type=tarfile.BLKTYPE, devmajor=8),
        entry("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("pipe", type=tarfile.FIFOTYPE),
    )
    root = tmp_path / "root"
    assert stat.S_IMODE((root / "su").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "shared").stat().st_mode) == 0o1777
    assert names(root) == {"su", "shared", "dev"}
    assert found.left_out == ("disk", "pipe")


def test_a_name_that_comes_twice_is_made_once(tmp_path: Path) -> None:
    unpacked(tmp_path, entry("a", b"one"), entry("a", b"two"), folder("a"), folder("b"), folder("b"), link("b", "/"))
    assert (tmp_path / "root/a").read_bytes() == b"one"
    assert (tmp_path / "root/b").is_dir()
    assert not (tmp_path / "root/b").is_symlink()


def test_a_folder_that_nobody_may_write_is_filled_all_the_same(tmp_path: Path) -> None:
    unpacked(tmp_path, folder("closed", mode=0o000), entry("closed/in", b"x"))
    assert (tmp_path / "root/closed/in").read_bytes() == b"x"
    assert stat.S_IMODE((tmp_path / "root/closed").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("entries", "limits"),
    [
        ([entry("big", b"x" * 2000)], {"bytes_at_most": 1000}),
        ([entry(f"f{number}", b"x" * 300) for number in range(5)], {"bytes_at_most": 1000}),
        ([entry(f"f{number}") for number in range(50)], {"entries_at_most": 20}),
    ],
    ids=["one large file", "many files", "many entries"],
)
def test_an_archive_without_bounds_is_refused(
    tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], limits: dict[str, int]
) -> None:
    with pytest.raises(EngineError) as raised:
        unpacked(tmp_path, *entries, **limits)
    assert raised.value.failure is Failure.RESOURCES_EXHAUSTED


@pytest.mark.parametrize("content", [b"", b"no archive" * 100, archive(entry("a", b"x" * 5000)).getvalue()[:2000]])
def test_a_damaged_archive_is_said_to_be_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(EngineError, match="damaged"):
        unpack(io.BytesIO(content), tmp_path / "root", bytes_at_most=ENOUGH)


parts = st.sampled_from(["a", "b", "..", ".", "", "usr", "door", "x" * 300, "\x01", "é"])
paths = st.lists(parts, min_size=1, max_size=5).map("/".join) | st.sampled_from(["/", "//", "/etc/passwd", "a/" * 200])
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(paths, paths, kinds, st.integers(0, 0o7777)), max_size=12))
def test_any_archive_stays_inside(entries: Iterable[tuple[str, str, bytes, int]]) -> None:
    made = [entry(name, type=kind, linkname=to, mode=mode) for name, to, kind, mode in entries]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch)
        (path / "secret").write_text("kept")
        unpacked(path, link("door", "../secret"), link("up", ".."), *made)
        assert {each.name for each in path.iterdir()} == {"secret", "root"}
        assert ((path / "secret").read_text(), (path / "secret").stat().st_nlink) == ("kept", 1)
        for place, folders, files in os.walk(path / "root"):
            for name in (*folders, *files):
                mode = os.lstat(Path(place, name)).st_mode
                assert stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISLNK(mode)
                assert stat.S_ISLNK(mode) or not mode & (stat.S_ISUID | stat.S_ISGID)
