"""The index of the newest ends of containers."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.store import deaths, schema
from hermitcrab.store.database import migrations
from hermitcrab.store.deaths import Death
from hermitcrab.store.sqlite import connect


def death(session: str, generation: int, cause: str = "exited") -> Death:
    return Death(
        session=SessionId(session),
        generation=Generation(generation),
        cause=cause,
        text="It ended.",
        ended_at="2026-01-01T00:00:00+00:00",
        duration_s=1.5,
        exit_code=None,
        rows_returned=2,
    )


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = connect(tmp_path / "x.db")
    schema.migrate(opened, tmp_path / "x.db", migrations())
    yield opened
    opened.close()


def test_deaths_of_all_sessions_come_newest_first_as_they_were_noted(connection: sqlite3.Connection) -> None:
    noted = [death("s1", 1), death("s2", 1, "hung"), death("s1", 2, "quiet")]
    for each in noted:
        deaths.insert(connection, each)
    assert deaths.newest(connection, limit=10) == noted[::-1]
    assert deaths.newest(connection, limit=1) == [noted[2]]


def test_a_generation_ends_once_and_the_first_certificate_stays(connection: sqlite3.Connection) -> None:
    deaths.insert(connection, death("s1", 1, "out-of-memory"))
    deaths.insert(connection, death("s1", 1, "vanished"))
    assert [each.cause for each in deaths.newest(connection, limit=10)] == ["out-of-memory"]


def test_only_the_newest_are_kept(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "KEPT", 3)
    for generation in range(1, 8):
        deaths.insert(connection, death("s1", generation))
        deaths.insert(connection, death("s1", generation))
    assert [each.generation for each in deaths.newest(connection, limit=10)] == [7, 6, 5]
