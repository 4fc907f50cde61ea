"""Migrations: applied once, in order, whole or not at all, and never to a file that is not ours to change."""

from __future__ import annotations

import hashlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from hermitcrab.errors import StoreDamagedError, StoreError, StoreTooNewError
from hermitcrab.store import schema
from hermitcrab.store.database import migrations
from hermitcrab.store.schema import Migration
from hermitcrab.store.sqlite import connect

FIRST = Migration(1, "first", "CREATE TABLE a (x TEXT) STRICT;\nINSERT INTO a VALUES ('semi;colon');\n")
SECOND = Migration(2, "second", "-- why\nALTER TABLE a ADD COLUMN y TEXT;\n")
BROKEN = Migration(2, "broken", "ALTER TABLE a ADD COLUMN y TEXT;\nALTER TABLE nowhere ADD COLUMN z;\n")


def bring_up(path: Path, *steps: Migration) -> int:
    schema.check(path, steps)
    connection = connect(path)
    try:
        return schema.migrate(connection, path, steps)
    finally:
        connection.close()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def columns(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return [row[1] for row in connection.execute("PRAGMA table_info(a)")]
    finally:
        connection.close()


def test_a_new_file_gets_everything_and_no_backup(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    assert bring_up(path, FIRST, SECOND) == 0
    assert columns(path) == ["x", "y"]
    assert schema.look(path).version == 2
    assert [each.name for each in tmp_path.iterdir()] == ["x.db"]


def test_those_who_open_a_new_file_at_once_all_find_it_whole(tmp_path: Path) -> None:
    at_once = 4
    for number in range(10):
        path, together = tmp_path / f"{number}.db", Barrier(at_once)

        def open_it(path: Path = path, together: Barrier = together) -> int:
            together.wait()
            return bring_up(path, FIRST, SECOND)

        with ThreadPoolExecutor(at_once) as threads:
            for opened in [threads.submit(open_it) for _ in range(at_once)]:
                assert opened.result() in {0, 1, 2}
        assert columns(path) == ["x", "y"]
        assert schema.look(path).version == 2


def test_an_older_file_is_copied_first_and_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    bring_up(path, FIRST)
    assert bring_up(path, FIRST, SECOND) == 1
    assert columns(path) == ["x", "y"]
    assert columns(tmp_path / "x.db.backup-1") == ["x"]
    backup = sqlite3.connect(tmp_path / "x.db.backup-1")
    assert backup.execute("SELECT x FROM a").fetchall() == [("semi;colon",)]
    backup.close()
    assert (tmp_path / "x.db.backup-1").stat().st_mode & 0o777 == 0o600


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    bring_up(path, FIRST, SECOND)
    before = digest(path)
    assert bring_up(path, FIRST, SECOND) == 2
    assert digest(path) == before


def test_a_migration_that_fails_leaves_the_schema_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    bring_up(path, FIRST)
    with pytest.raises(StoreError, match="nowhere"):
        bring_up(path, FIRST, BROKEN)
    assert columns(path) == ["x"]
    assert schema.look(path).version == 1
    assert bring_up(path, FIRST, SECOND) == 1


def test_an_applied_migration_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    bring_up(path, FIRST)
    edited = Migration(1, "first", FIRST.sql.replace("semi", "demi"))
    with pytest.raises(StoreError, match="0001_first was changed"):
        bring_up(path, edited, SECOND)
    assert columns(path) == ["x"]


def test_a_newer_file_is_refused_and_stays_as_it_is_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    bring_up(path, FIRST, SECOND)
    before = digest(path)
    with pytest.raises(StoreTooNewError, match=r"schema 2; this one knows 1") as caught:
        bring_up(path, FIRST)
    assert caught.value.hint
    assert digest(path) == before
    assert [each.name for each in tmp_path.iterdir()] == ["x.db"]


def test_a_newer_file_with_its_changes_still_in_the_log_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    connection = connect(path)
    schema.migrate(connection, path, (FIRST, SECOND))
    before = digest(path), digest(path.with_name("x.db-wal"))
    with pytest.raises(StoreTooNewError):
        schema.check(path, (FIRST,))
    assert (digest(path), digest(path.with_name("x.db-wal"))) == before
    connection.close()


@pytest.mark.parametrize("version", [0, 1])
def test_a_database_of_another_make_is_refused_and_stays_as_it_is(tmp_path: Path, version: int) -> None:
    path = tmp_path / "x.db"
    other = sqlite3.connect(path)
    other.executescript(f"CREATE TABLE theirs (x); PRAGMA user_version = {version};")
    other.close()
    before = digest(path)
    with pytest.raises(StoreDamagedError, match="no database of Hermitcrab"):
        bring_up(path, FIRST, SECOND)
    assert digest(path) == before


@pytest.mark.parametrize(
    "content", [b"hello, this is a letter and not a database" * 50, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_file_that_is_no_database_is_refused_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"x\.db") as caught:
        bring_up(path, FIRST)
    assert caught.value.hint
    assert path.read_bytes() == content


def test_an_empty_file_is_a_new_database(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.touch()
    assert bring_up(path, FIRST) == 0


def test_a_statement_that_does_not_end_is_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="within a statement"):
        bring_up(tmp_path / "x.db", Migration(1, "cut", "CREATE TABLE a (x);\nCREATE TABLE b (x"))


def test_the_central_schema_is_strict_throughout(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    bring_up(path, *migrations())
    connection = sqlite3.connect(path)
    loose = connection.execute(
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND NOT strict AND name NOT LIKE 'sqlite_%'"
    )
    assert loose.fetchall() == []
    connection.close()
