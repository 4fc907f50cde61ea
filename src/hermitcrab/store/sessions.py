"""Queries for sessions: one for each conversation, claimed by generation, settled when nothing is left to do."""

from __future__ import annotations

import sqlite3
from sqlite3 import Connection
from typing import Any

from hermitcrab.errors import ClaimLostError, ConflictError, NotFoundError
from hermitcrab.model.ids import AgentGroupId, Generation, MessagingGroupId, SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.store.clock import timestamp

_COLUMNS = "id, agent_group_id, messaging_group_id, thread_id, provider, generation, created_at, last_active_at"


def insert(connection: Connection, session: Session) -> None:
    """Raises ConflictError when the id is taken or the conversation has a session."""
    try:
        connection.execute(
            f"INSERT INTO sessions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608  # constants only
            (
                session.id,
                session.agent_group_id,
                session.messaging_group_id,
                session.thread_id or None,
                session.provider,
                session.generation,
                session.created_at or timestamp(),
                session.last_active_at,
            ),
        )
    except sqlite3.IntegrityError as error:
        raise ConflictError(
            f"session {session.id}: it or its conversation exists already, or its group does not"
        ) from error


def find_or_insert(connection: Connection, session: Session) -> Session:
    """The session of that conversation: the one that exists, else this one."""
    found = find(connection, session.agent_group_id, session.messaging_group_id, session.thread_id)
    if found is not None:
        return found
    insert(connection, session)
    made = by_id(connection, session.id)
    assert made is not None
    return made


def by_id(connection: Connection, session_id: SessionId) -> Session | None:
    return _first(connection, "WHERE id = ?", session_id)


def find(
    connection: Connection,
    agent_group_id: AgentGroupId,
    messaging_group_id: MessagingGroupId | None,
    thread: str | None,
) -> Session | None:
    """The session of a conversation. An empty thread is none; without a chat it is the one that all chats share."""
    return _first(
        connection,
        "WHERE agent_group_id = ? AND coalesce(messaging_group_id, '') = ? AND coalesce(thread_id, '') = ?",
        agent_group_id,
        messaging_group_id or "",
        thread or "",
    )


def page(
    connection: Connection,
    *,
    before: SessionId | None = None,
    limit: int = 100,
    agent_group_id: AgentGroupId | None = None,
) -> list[Session]:
    """Up to `limit` sessions, newest first; the next page comes `before` the last one's id."""
    return _select(
        connection,
        "WHERE (? IS NULL OR id < ?) AND (? IS NULL OR agent_group_id = ?) ORDER BY id DESC LIMIT ?",
        before,
        before,
        agent_group_id,
        agent_group_id,
        limit,
    )


def count(connection: Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM sessions").fetchone()[0])


def delete(connection: Connection, session_id: SessionId) -> bool:
    """Forget the session, with its holds, its questions and where it came from. False: there was none."""
    for table in ("held_sessions", "imported_sessions", "questions"):
        connection.execute(f"DELETE FROM {table} WHERE session_id = ?", (session_id,))  # noqa: S608  # constants only
    return connection.execute("DELETE FROM sessions WHERE id = ?", (session_id,)).rowcount == 1


def touch(connection: Connection, session_id: SessionId, at: str | None = None) -> None:
    """Somebody said something in it."""
    connection.execute("UPDATE sessions SET last_active_at = ? WHERE id = ?", (at or timestamp(), session_id))


def claim(connection: Connection, session_id: SessionId, expected: Generation) -> Generation:
    """Begin the generation after `expected`, as the only one who does (law 2).

    Raises ClaimLostError when the session is not at `expected` any more, NotFoundError when there is none.
    """
    row = connection.execute(
        "UPDATE sessions SET generation = generation + 1, unsettled = unsettled + 1, last_active_at = ?"
        " WHERE id = ? AND generation = ? RETURNING generation",
        (timestamp(), session_id, expected),
    ).fetchall()
    if row:
        return Generation(row[0][0])
    found = by_id(connection, session_id)
    if found is None:
        raise NotFoundError(f"there is no session {session_id}")
    raise ClaimLostError(f"session {session_id} is at generation {found.generation}, not at {expected}")


def unsettle(connection: Connection, session_id: SessionId) -> None:
    """There may be work in it from now on: a host that starts looks at it."""
    connection.execute("UPDATE sessions SET unsettled = unsettled + 1 WHERE id = ?", (session_id,))


def settle(connection: Connection, session_id: SessionId, seen: int) -> None:
    """Nothing is left to do in it, judged when `reasons` gave `seen`. A reason that came since then stands."""
    connection.execute(
        "UPDATE sessions SET unsettled = 0, last_active_at = ? WHERE id = ? AND unsettled = ?",
        (timestamp(), session_id, seen),
    )


def reasons(connection: Connection, session_id: SessionId) -> int:
    """How often it was said that there may be work in it, since it was last settled."""
    row = connection.execute("SELECT unsettled FROM sessions WHERE id = ?", (session_id,)).fetchone()
    return int(row[0]) if row is not None else 0


def unsettled(connection: Connection) -> list[Session]:
    """What a host that starts must look at. Work by these, not by all sessions (law 13)."""
    return _select(connection, "WHERE unsettled > 0 ORDER BY id")


def unsettled_count(connection: Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM sessions WHERE unsettled > 0").fetchone()[0])


def _first(connection: Connection, rest: str, *values: object) -> Session | None:
    found = _select(connection, rest, *values)
    return found[0] if found else None


def _select(connection: Connection, rest: str, *values: object) -> list[Session]:
    return [_session(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM sessions {rest}", values)]  # noqa: S608


def _session(row: tuple[Any, ...]) -> Session:
    key, agent_group, messaging_group, thread, provider, generation, created_at, last_active_at = row
    return Session(
        id=SessionId(key),
        agent_group_id=AgentGroupId(agent_group),
        messaging_group_id=None if messaging_group is None else MessagingGroupId(messaging_group),
        thread_id=thread,
        provider=provider,
        generation=Generation(generation),
        created_at=created_at,
        last_active_at=last_active_at,
    )
