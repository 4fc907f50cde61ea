"""Host-written files in folders that are named after what they hold."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermitcrab.containers.materials.generated import KEPT, UNUSED_FOR_S, publish
from hermitcrab.model.documents import Document, text_document

DOCUMENTS = {
    "CLAUDE.md": text_document("hello"),
    "skills/a/run.sh": Document(b"#!/bin/sh\n", executable=True),
    "empty.md": text_document(""),
}


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(each.relative_to(folder)): (
            stat.S_IMODE(each.stat().st_mode),
            each.read_bytes() if each.is_file() else b"",
        )
        for each in sorted(folder.rglob("*"))
    }


def test_documents_and_folders_lie_there_for_everybody_to_read(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        made = publish(tmp_path / "g", DOCUMENTS, folders=["nothing", "skills"])
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o755
    assert everything(made) == {
        "CLAUDE.md": (0o644, b"hello"),
        "empty.md": (0o644, b""),
        "nothing": (0o755, b""),
        "skills": (0o755, b""),
        "skills/a": (0o755, b""),
        "skills/a/run.sh": (0o755, b"#!/bin/sh\n"),
    }
    assert list((tmp_path / "g").iterdir()) == [made], "nothing is left of the making"


def test_the_same_again_is_the_same_folder_and_anything_else_another(tmp_path: Path) -> None:
    made = publish(tmp_path, DOCUMENTS)
    inode = (made / "CLAUDE.md").stat().st_ino
    assert publish(tmp_path, dict(reversed(DOCUMENTS.items()))) == made
    assert (made / "CLAUDE.md").stat().st_ino == inode, "what containers have mounted is not touched"
    others = [
        publish(tmp_path, DOCUMENTS | {"CLAUDE.md": text_document("hellO")}),
        publish(tmp_path, DOCUMENTS | {"skills/a/run.sh": Document(b"#!/bin/sh\n")}),
        publish(tmp_path, DOCUMENTS, folders=["more"]),
    ]
    assert len({made, *others}) == 4
    assert (made / "CLAUDE.md").read_text() == "hello"


@pytest.mark.parametrize("damage", ["short", "missing", "missing folder"])
def test_what_a_crash_of_the_machine_left_damaged_is_made_anew(tmp_path: Path, damage: str) -> None:
    made = publish(tmp_path, DOCUMENTS, folders=["nothing"])
    before = everything(made)
    match damage:
        case "short":
            (made / "CLAUDE.md").write_text("")
        case "missing":
            (made / "CLAUDE.md").unlink()
        case _:
            (made / "nothing").rmdir()
    assert publish(tmp_path, DOCUMENTS, folders=["nothing"]) == made
    assert everything(made) == before
    assert list(tmp_path.iterdir()) == [made]


def test_sessions_that_start_at_once_share_one(tmp_path: Path) -> None:
    ready = threading.Barrier(8)
    found: list[Path] = []

    def start() -> None:
        ready.wait()
        found.append(publish(tmp_path, DOCUMENTS))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 8
    assert set(found) == set(tmp_path.iterdir())
    assert len(set(found)) == 1


def test_what_nobody_used_for_long_goes_when_there_are_many(tmp_path: Path) -> None:
    made = [publish(tmp_path, {"x": text_document(str(number))}) for number in range(KEPT + 4)]
    (tmp_path / ".new-crashed").mkdir()
    now = made[-1].stat().st_mtime
    for number, each in enumerate([tmp_path / ".new-crashed", *made]):
        age = UNUSED_FOR_S + 100 - number if number < 4 else 60 - number
        os.utime(each, (now - age, now - age))
    publish(tmp_path, {"x": text_document("2")})  # Used again: it stays.
    publish(tmp_path, {"x": text_document("the newest")})
    left = set(tmp_path.iterdir())
    assert not {tmp_path / ".new-crashed", made[0], made[1]} & left
    assert set(made[2:]) <= left


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}\.md)?", fullmatch=True),
        st.binary(max_size=64),
        max_size=5,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_whatever_is_published_is_read_back(tmp_path: Path, contents: dict[str, bytes]) -> None:
    # A name cannot be a file and a folder.
    contents = {
        name: content for name, content in contents.items() if not any(o.startswith(f"{name}/") for o in contents)
    }
    made = publish(tmp_path, {name: Document(content) for name, content in contents.items()})
    assert {name: (made / name).read_bytes() for name in contents} == contents
