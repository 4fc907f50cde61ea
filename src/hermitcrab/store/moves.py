"""Queries for sessions that leave for another home, or came from one."""

from __future__ import annotations

from dataclasses import dataclass
from sqlite3 import Connection

from hermitcrab.model.ids import SessionId
from hermitcrab.store.clock import timestamp


@dataclass(frozen=True, slots=True)
class Hold:
    session: SessionId
    token: str
    """The move that it is held for."""
    why: str
    since: str


def hold(connection: Connection, session_id: SessionId, token: str, why: str) -> Hold:
    """Hold the session; if it is held already, as it is held."""
    connection.execute(
        "INSERT INTO held_sessions (session_id, token, why, since) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (session_id, token, why, timestamp()),
    )
    return Hold(*_one(connection, session_id))


def held(connection: Connection) -> list[Hold]:
    """Every hold, the oldest first. There are as many as moves under way."""
    return [
        Hold(SessionId(key), token, why, since)
        for key, token, why, since in connection.execute(
            "SELECT session_id, token, why, since FROM held_sessions ORDER BY since"
        )
    ]


def release(connection: Connection, session_id: SessionId) -> bool:
    """False: it was not held."""
    return connection.execute("DELETE FROM held_sessions WHERE session_id = ?", (session_id,)).rowcount == 1


def note_import(connection: Connection, session_id: SessionId, token: str) -> None:
    connection.execute(
        "INSERT INTO imported_sessions (session_id, token, at) VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET token = excluded.token, at = excluded.at",
        (session_id, token, timestamp()),
    )


def imported_by(connection: Connection, session_id: SessionId) -> str | None:
    """The move that brought the session here."""
    row = connection.execute("SELECT token FROM imported_sessions WHERE session_id = ?", (session_id,)).fetchone()
    return None if row is None else row[0]


def _one(connection: Connection, session_id: SessionId) -> tuple[SessionId, str, str, str]:
    key, token, why, since = connection.execute(
        "SELECT session_id, token, why, since FROM held_sessions WHERE session_id = ?", (session_id,)
    ).fetchone()
    return SessionId(key), token, why, since
