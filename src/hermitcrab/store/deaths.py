"""Queries for deaths: the newest ends of containers over all sessions. `containers/certificates.py` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from sqlite3 import Connection

from hermitcrab.model.ids import Generation, SessionId

KEPT = 1000
"""The newest so many are kept; older ones are only in their sessions' folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A certificate without its log lines."""

    session: SessionId
    generation: Generation
    cause: str
    text: str
    ended_at: str
    duration_s: float | None
    exit_code: int | None
    rows_returned: int


def insert(connection: Connection, death: Death) -> None:
    """Note an end and forget what is too old. A generation ends once: its first certificate knows most, and stays."""
    connection.execute(
        "INSERT INTO deaths"
        " (session_id, generation, cause, text, ended_at, duration_s, exit_code, rows_returned)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (session_id, generation) DO NOTHING",
        (
            death.session,
            death.generation,
            death.cause,
            death.text,
            death.ended_at,
            death.duration_s,
            death.exit_code,
            death.rows_returned,
        ),
    )
    connection.execute("DELETE FROM deaths WHERE number <= (SELECT max(number) FROM deaths) - ?", (KEPT,))


def is_noted(connection: Connection, session: SessionId, generation: Generation) -> bool:
    """Whether the end of that generation is in the index."""
    query = "SELECT 1 FROM deaths WHERE session_id = ? AND generation = ?"
    return connection.execute(query, (session, generation)).fetchone() is not None


def lacking(connection: Connection, found: Sequence[Death]) -> list[Death]:
    """Those of `found` that the index does not have, apart from what it has forgotten for its age."""
    (count, oldest) = connection.execute("SELECT count(*), coalesce(min(ended_at), '') FROM deaths").fetchone()
    recent = found if count < KEPT else [each for each in found if each.ended_at >= oldest]
    return [each for each in recent if not is_noted(connection, each.session, each.generation)]


def newest(connection: Connection, *, limit: int, cause: str | None = None, since: str | None = None) -> list[Death]:
    """Newest first; only those of that cause, and that ended at `since` (as UTC, like they are kept) or later."""
    rows = connection.execute(
        "SELECT session_id, generation, cause, text, ended_at, duration_s, exit_code, rows_returned"
        " FROM deaths WHERE (:cause IS NULL OR cause = :cause) AND (:since IS NULL OR ended_at >= :since)"
        " ORDER BY number DESC LIMIT :limit",
        {"cause": cause, "since": since, "limit": limit},
    )
    return [
        Death(
            session=SessionId(session),
            generation=Generation(generation),
            cause=cause,
            text=text,
            ended_at=ended_at,
            duration_s=duration_s,
            exit_code=exit_code,
            rows_returned=rows_returned,
        )
        for session, generation, cause, text, ended_at, duration_s, exit_code, rows_returned in rows
    ]
