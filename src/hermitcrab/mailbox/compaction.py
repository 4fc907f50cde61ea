"""Old messages made small: their contents shrink to a first line, their rows stay.

What others refer to (ids, numbers, addresses, what was answered, the platform's own ids) is in other columns and
tables, so that an old message can still be replied to, edited and reacted to. Work by what became old since the last
time, never by history: the database knows how far it is.
"""

from __future__ import annotations

import json
from sqlite3 import Connection
from typing import Any, Literal

KEPT_NEWEST = 200
"""Messages of one direction that keep their contents however old they are: a quiet chat remembers where it stood."""

ROWS_AT_MOST = 500
"""Looked at in one go."""

TEXT_CHARACTERS_KEPT = 160

_KEPT_KEYS = ("sender", "senderId", "senderName", "type", "operation", "messageId", "emoji")
_SMALL_BYTES = 400
"""What is no longer than that is left as it is."""

Table = Literal["messages_in", "messages_out"]


def compact(connection: Connection, table: Table, before: str) -> int:
    """Shrink what is older than `before` and finished, oldest first. How many rows were looked at; 0: it is done."""
    through = int(connection.execute("SELECT coalesce(max(through_seq), 0) FROM compaction").fetchone()[0])
    newest = connection.execute(
        f"SELECT seq FROM {table} ORDER BY seq DESC LIMIT 1 OFFSET ?",  # noqa: S608  # one of two constants
        (KEPT_NEWEST,),
    ).fetchone()
    if newest is None:
        return 0
    rows = connection.execute(
        f"SELECT seq, timestamp, content, {_OPEN[table]}, {_WHOLE[table]} FROM {table}"  # noqa: S608
        " WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
        (through, newest[0], ROWS_AT_MOST),
    ).fetchall()
    looked_at = 0
    for seq, timestamp, content, is_open, stays_whole in rows:
        if is_open or timestamp >= before:
            break
        if not stays_whole and (smaller := shrunk(content)) is not None:
            connection.execute(f"UPDATE {table} SET content = ? WHERE seq = ?", (smaller, seq))  # noqa: S608
        looked_at += 1
        through = seq
    if looked_at:
        connection.execute(
            "INSERT INTO compaction (only, through_seq) VALUES (1, ?)"
            " ON CONFLICT DO UPDATE SET through_seq = excluded.through_seq",
            (through,),
        )
    return looked_at


def shrunk(content: str) -> str | None:
    """A message's content, small. None: it is small as it is."""
    if len(content.encode()) <= _SMALL_BYTES:
        return None
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        told = None
    whole: dict[str, Any] = told if isinstance(told, dict) else {"text": content}
    text = whole.get("text")
    kept = {
        key: value
        for key in _KEPT_KEYS
        if isinstance(value := whole.get(key), str) and len(value) <= TEXT_CHARACTERS_KEPT
    }
    if isinstance(text, str):
        kept["text"] = text if len(text) <= TEXT_CHARACTERS_KEPT else text[:TEXT_CHARACTERS_KEPT].rstrip() + " …"
    return json.dumps({**kept, "compacted": True}, ensure_ascii=False, separators=(",", ":"))


_OPEN: dict[Table, str] = {
    "messages_in": "status NOT IN ('completed', 'failed', 'quarantined')",
    "messages_out": "EXISTS (SELECT 1 FROM deliveries WHERE message_out_id = messages_out.id"
    " AND deliveries.status IN ('scheduled', 'queued', 'sending'))",
}

_WHOLE: dict[Table, str] = {"messages_in": "status = 'quarantined'", "messages_out": "0"}
"""What is passed over: somebody may release it, and then it is answered as it was said."""
