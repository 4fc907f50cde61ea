"""The file that a session is exported to."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermitcrab.containers.disk.trees import Entry
from hermitcrab.conversation.archive import About, ArchiveReader, ArchiveWriter
from hermitcrab.errors import BadInputError, ConflictError

ABOUT = About(
    session="sess-1-abc",
    group="main",
    provider=None,
    generation=3,
    created_at="2026-01-01T00:00:00Z",
    thread=None,
    channel_type="terminal",
    platform_id="main",
    exported_at="2026-01-02T00:00:00Z",
    version="0",
)


def written(path: Path) -> Path:
    with ArchiveWriter(path) as writer:
        writer.lines("inbound", [b"{}\n", b'{"a": 1}\n'])
        writer.tree(
            "work",
            [
                (Entry(path=("folder",), kind="folder", mode=0o755), None),
                (Entry(path=("folder", "file"), kind="file", size=3), BytesIO(b"abc")),
                (Entry(path=("link",), kind="link", target="/etc"), None),
            ],
        )
        writer.finish(ABOUT)
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The archive with other members, as somebody would make it who has only zip."""
    found = members(path)
    change(found)
    target = path.with_name("changed.zip")
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in found.items():
            archive.writestr(name, data)
    return target


def test_what_was_written_is_read(tmp_path: Path) -> None:
    with ArchiveReader(written(tmp_path / "a.zip")) as reader:
        reader.verify()
        assert reader.about == ABOUT
        assert list(reader.lines("inbound")) == [b"{}\n", b'{"a": 1}\n']
        assert list(reader.lines("outbound")) == []
        read = [(entry, content.read(100) if content else None) for entry, content in reader.tree("work")]
    assert [(entry.path, entry.kind, content) for entry, content in read] == [
        (("folder",), "folder", None),
        (("folder", "file"), "file", b"abc"),
        (("link",), "link", None),
    ]
    assert (tmp_path / "a.zip").stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["a.zip"]


def test_a_file_that_is_there_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_text("mine")
    with pytest.raises(ConflictError), ArchiveWriter(path) as writer:
        writer.finish(ABOUT)
    assert path.read_text() == "mine"
    with ArchiveWriter(path, replace=True) as writer:
        writer.finish(ABOUT)
    with ArchiveReader(path) as reader:
        reader.verify()


def test_a_session_that_is_too_large_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInputError, match="100 bytes"),
        ArchiveWriter(tmp_path / "a.zip", bytes_at_most=100) as writer,
    ):
        writer.lines("inbound", [b"x" * 101])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be written"), ArchiveWriter(tmp_path / "no/a.zip"):
        pass


def _drop(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda found: found.__delitem__(name)


def _set(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda found: found.__setitem__(name, data)


def _manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(found: dict[str, bytes]) -> None:
        manifest = json.loads(found["manifest.json"])
        change(manifest)
        found["manifest.json"] = json.dumps(manifest).encode()

    return apply


@pytest.mark.parametrize(
    "change",
    [
        _drop("manifest.json"),
        _drop("data/1"),
        _set("data/1", b"abd"),
        _set("data/1", b"abcd"),
        _set("inbound.jsonl", b"{}\n"),
        _set("extra", b"x"),
        _set("manifest.json", b"{"),
        _set("manifest.json", b"[" * 100_000),
        _manifest(lambda manifest: manifest.update(format=2)),
        _manifest(lambda manifest: manifest["about"].pop("session")),
        _manifest(lambda manifest: manifest["about"].update(more=1)),
        _manifest(lambda manifest: manifest["about"].update(session=None)),
        _manifest(lambda manifest: manifest["about"].update(generation=-1)),
        _manifest(lambda manifest: manifest["about"].update(generation=True)),
        _manifest(lambda manifest: manifest["about"].update(thread=["x"])),
        _manifest(lambda manifest: manifest["members"].update({"data/1": {"sha256": "", "size": -1}})),
        _manifest(lambda manifest: manifest["members"].update({"data/1": {"sha256": "", "size": 1 << 60}})),
        _manifest(lambda manifest: manifest["members"].update({"data/1": "x"})),
    ],
)
def test_a_changed_archive_is_refused(tmp_path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    path = rewritten(written(tmp_path / "a.zip"), change)
    with pytest.raises(BadInputError, match=r"changed\.zip"), ArchiveReader(path) as reader:
        reader.verify()


@pytest.mark.parametrize(
    "told",
    [
        {"path": ["..", "x"], "kind": "folder"},
        {"path": ["/etc"], "kind": "folder"},
        {"path": ["a\0b"], "kind": "folder"},
        {"path": [], "kind": "folder"},
        {"path": ["x"] * 500, "kind": "folder"},
        {"path": ["x"], "kind": "device"},
        {"path": ["x"], "kind": "folder", "mode": 0o4755},
        {"path": ["x"], "kind": "link", "target": ""},
        {"path": ["x"], "kind": "file"},
        {"path": ["x"], "kind": "file", "member": "manifest.json"},
        {"path": ["x"], "kind": "folder", "member": "data/1"},
        {"path": [1], "kind": "folder"},
        {"path": ["x"], "kind": "folder", "surprise": 1},
        {"path": None, "kind": "folder"},
        [],
        {"path": ["x"], "kind": ["folder"]},
    ],
)
def test_an_entry_that_no_walk_gives_is_refused(tmp_path: Path, told: object) -> None:
    with ArchiveWriter(tmp_path / "a.zip") as writer:
        writer.lines("work", [json.dumps(told).encode() + b"\n"])
        writer.finish(ABOUT)
    with ArchiveReader(tmp_path / "a.zip") as reader:
        reader.verify()
        with pytest.raises(BadInputError, match="work line 1"):
            list(reader.tree("work"))


def test_what_is_no_archive_is_said_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    os.mkfifo(tmp_path / "pipe")
    for name in ("text", "pipe", "missing", "."):
        with pytest.raises(BadInputError), ArchiveReader(tmp_path / name):
            pass


def test_a_bomb_is_cut_off_where_its_manifest_says_that_it_ends(tmp_path: Path) -> None:
    target = tmp_path / "bomb.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/1", b"\0" * 50_000_000)
        manifest = {"format": 1, "about": asdict(ABOUT), "members": {"data/1": {"sha256": "0" * 64, "size": 10}}}
        archive.writestr("manifest.json", json.dumps(manifest))
    with ArchiveReader(target) as reader, pytest.raises(BadInputError, match="not as long as the manifest says"):
        reader.verify()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_noticed_or_changes_nothing(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.zip"
    whole = (path if path.exists() else written(path)).read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    (tmp_path / "damaged.zip").write_bytes(damaged)
    try:
        with ArchiveReader(tmp_path / "damaged.zip") as reader:
            reader.verify()
            assert reader.about.session == ABOUT.session
            entries = [(entry, content.read(10) if content else None) for entry, content in reader.tree("work")]
            assert entries[1][1] == b"abc"
    except BadInputError:
        pass
