"""Queries for agents' questions by the chat in which they were asked, so that a typed answer finds its question."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from sqlite3 import Connection

from hermitcrab.model.ids import MessageId, SessionId
from hermitcrab.model.messages import Address
from hermitcrab.store.clock import timestamp, utc_now

KEPT_FOR = timedelta(days=1)
"""How long an expired question is remembered, to tell whoever answers it late."""

OF_A_SESSION_AT_MOST = 256
"""An agent that asks more than that has its oldest forgotten: answers to those are ordinary messages."""

IN_A_CHAT_AT_MOST = 64
"""Of one chat's questions, the newest are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedQuestion:
    session_id: SessionId
    message_id: MessageId
    asked_at: str
    expires_at: str
    answer_id: str | None = None
    """The message that answered it."""


def ask(connection: Connection, session_id: SessionId, message_id: MessageId, address: Address, open_s: float) -> None:
    """A question is shown from now on, for `open_s` seconds. One that is known keeps its time."""
    now = utc_now()
    connection.execute("DELETE FROM questions WHERE expires_at < ?", (timestamp(now - KEPT_FOR),))
    connection.execute(
        "INSERT INTO questions (session_id, message_out_id, channel_type, platform_id, thread_id, asked_at, expires_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            session_id,
            message_id,
            address.channel_type,
            address.platform_id,
            address.thread_id or "",
            timestamp(now),
            timestamp(now + timedelta(seconds=open_s)),
        ),
    )
    connection.execute(
        "DELETE FROM questions WHERE session_id = :session"
        " AND rowid <= (SELECT rowid FROM questions WHERE session_id = :session"
        " ORDER BY rowid DESC LIMIT 1 OFFSET :kept)",
        {"session": session_id, "kept": OF_A_SESSION_AT_MOST},
    )


def in_chat(connection: Connection, address: Address) -> list[AskedQuestion]:
    """Those of one conversation that are remembered, oldest first. Most chats have none."""
    found = connection.execute(
        "SELECT session_id, message_out_id, asked_at, expires_at, answer_id FROM questions"
        " WHERE channel_type = ? AND platform_id = ? AND thread_id = ? ORDER BY asked_at DESC, rowid DESC LIMIT ?",
        (address.channel_type, address.platform_id, address.thread_id or "", IN_A_CHAT_AT_MOST),
    ).fetchall()
    return [_question(row) for row in reversed(found)]


def by_message(connection: Connection, session_id: SessionId, message_id: str) -> AskedQuestion | None:
    row = connection.execute(
        "SELECT session_id, message_out_id, asked_at, expires_at, answer_id FROM questions"
        " WHERE session_id = ? AND message_out_id = ?",
        (session_id, message_id),
    ).fetchone()
    return None if row is None else _question(row)


def answered(connection: Connection, session_id: SessionId, message_id: MessageId, answer_id: str) -> None:
    """The first answer stands."""
    connection.execute(
        "UPDATE questions SET answer_id = ? WHERE session_id = ? AND message_out_id = ? AND answer_id IS NULL",
        (answer_id, session_id, message_id),
    )


def _question(row: tuple[str, str, str, str, str | None]) -> AskedQuestion:
    session_id, message_id, asked_at, expires_at, answer_id = row
    return AskedQuestion(
        session_id=SessionId(session_id),
        message_id=MessageId(message_id),
        asked_at=asked_at,
        expires_at=expires_at,
        answer_id=answer_id,
    )
