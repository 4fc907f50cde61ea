"""Queries on outbound.db but for deliveries: what the agent said, which rows it took and finished, its state."""

from __future__ import annotations

from sqlite3 import Connection
from typing import Any, Literal

from hermitcrab.errors import BadInputError, ConflictError
from hermitcrab.mailbox.content import address_columns, address_of, check_texts, to_content, to_text
from hermitcrab.model.ids import Generation, MessageId
from hermitcrab.model.messages import OutboundRow, OutFile
from hermitcrab.store.clock import timestamp
from hermitcrab_wire.limits import MAX_STATE_BYTES

Ack = Literal["processing", "completed", "failed", "quarantined"]
Finish = Literal["completed", "failed", "quarantined"]

_GIVEN_BACK = "given back"
_ENDED = f"{_GIVEN_BACK}: "
"""Begins what is noted of a claim whose container ended on its own; the cause follows."""

COLUMNS = (
    "messages_out.id, messages_out.seq, in_reply_to, timestamp, kind, platform_id, channel_type, thread_id, content,"
    " deliver_after, deliveries.status, coalesce(attempts, 0), reason, coalesce(parts_sent, 0), queued_at,"
    " platform_message_id"
)
JOINED = "messages_out LEFT JOIN deliveries ON message_out_id = messages_out.id"


def greatest_seq(connection: Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM messages_out").fetchone()[0])


def insert(connection: Connection, row: OutboundRow, seq: int) -> bool:
    """False: exactly that was said before. Raises ConflictError when something else was said under that id."""
    check_texts(row.id, row.kind, row.timestamp, row.in_reply_to, *address_columns(row.address))
    text = to_text(row.content)
    said = by_id(connection, row.id)
    if said is not None:
        # Addresses and times are the host's: they may differ between a frame and its repeat.
        same = (said.kind, said.in_reply_to, to_text(said.content)) == (row.kind, row.in_reply_to, text)
        if not same:
            raise ConflictError(f"something else was said under the id {row.id[:80]}")
        return False
    connection.execute(
        "INSERT INTO messages_out (id, seq, in_reply_to, timestamp, deliver_after, kind, platform_id, channel_type,"
        " thread_id, content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (row.id, seq, row.in_reply_to, row.timestamp, row.deliver_after, row.kind, *address_columns(row.address), text),
    )
    return True


def insert_files(connection: Connection, row: OutboundRow) -> None:
    connection.executemany(
        "INSERT INTO out_files (message_out_id, position, handle, name, bytes, sha256) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (row.id, position, each.handle, each.name, each.bytes, each.sha256)
            for position, each in enumerate(row.files)
        ],
    )


def files_of(connection: Connection, row_id: str) -> tuple[OutFile, ...]:
    rows = connection.execute(
        "SELECT handle, name, bytes, sha256 FROM out_files WHERE message_out_id = ? ORDER BY position", (row_id,)
    )
    return tuple(OutFile(handle=handle, name=name, bytes=size, sha256=sha) for handle, name, size, sha in rows)


def forget_files(connection: Connection, row_id: str) -> None:
    connection.execute("DELETE FROM out_files WHERE message_out_id = ?", (row_id,))


def kept_files(connection: Connection) -> frozenset[str]:
    """Handles of all files that a message waits for, or may be tried again with. Costs by files, not by messages."""
    rows = connection.execute(
        "SELECT handle FROM out_files JOIN deliveries USING (message_out_id)"
        " WHERE deliveries.status NOT IN ('delivered', 'confirmed', 'refused')"
    )
    return frozenset(handle for (handle,) in rows)


def by_seq(connection: Connection, seq: int) -> OutboundRow | None:
    row = connection.execute(f"SELECT {COLUMNS} FROM {JOINED} WHERE messages_out.seq = ?", (seq,)).fetchone()  # noqa: S608
    return None if row is None else to_row(row)


def by_id(connection: Connection, row_id: str) -> OutboundRow | None:
    row = connection.execute(f"SELECT {COLUMNS} FROM {JOINED} WHERE messages_out.id = ?", (row_id,)).fetchone()  # noqa: S608
    return None if row is None else to_row(row)


def newest(connection: Connection, before_seq: int | None, limit: int) -> list[OutboundRow]:
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM {JOINED} WHERE messages_out.seq < ? ORDER BY messages_out.seq DESC LIMIT ?",  # noqa: S608
        (before_seq if before_seq is not None else 1 << 62, limit),
    )
    return [to_row(row) for row in rows]


def ack_of(connection: Connection, row_id: str) -> Ack | None:
    row = connection.execute("SELECT status FROM processing_ack WHERE message_id = ?", (row_id,)).fetchone()
    return None if row is None else row[0]


def finished(connection: Connection, row_id: str) -> Finish | None:
    """How the row ended; None when it has not. This is the truth that inbound.db only repeats."""
    status = ack_of(connection, row_id)
    return None if status is None or status == "processing" else status


def claim(connection: Connection, row_id: MessageId, turn: str, generation: Generation) -> bool:
    """False: the row is finished already, or a newer generation has it."""
    cursor = connection.execute(
        "INSERT INTO processing_ack (message_id, status, status_changed, turn, generation)"
        " VALUES (?, 'processing', ?, ?, ?) ON CONFLICT (message_id) DO UPDATE"
        " SET status_changed = excluded.status_changed, turn = excluded.turn, generation = excluded.generation"
        " WHERE status = 'processing' AND coalesce(generation, 0) <= excluded.generation",
        (row_id, timestamp(), turn, generation),
    )
    if cursor.rowcount != 1:
        return False
    connection.execute(
        "INSERT OR IGNORE INTO claims (message_id, generation, turn, claimed_at) VALUES (?, ?, ?, ?)",
        (row_id, generation, turn, timestamp()),
    )
    return True


def claimed_before(connection: Connection, generation: Generation) -> list[MessageId]:
    """Rows that an older generation claimed and did not finish."""
    return [
        MessageId(key)
        for (key,) in connection.execute(
            "SELECT message_id FROM processing_ack WHERE status = 'processing' AND coalesce(generation, 0) < ?"
            " ORDER BY message_id",
            (generation,),
        )
    ]


def claimed_count(connection: Connection) -> int:
    query = "SELECT count(*) FROM processing_ack WHERE status = 'processing'"
    return int(connection.execute(query).fetchone()[0])


def release(connection: Connection, row_id: MessageId, ended_by: str | None = None) -> None:
    """`ended_by`: the cause for which the container ended that had it, where that counts against the row."""
    connection.execute("DELETE FROM processing_ack WHERE message_id = ? AND status = 'processing'", (row_id,))
    _end_claims(connection, row_id, _GIVEN_BACK if ended_by is None else f"{_ENDED}{ended_by}")


def ends(connection: Connection, row_id: str) -> dict[str, int]:
    """How many containers ended while they had the row, by cause."""
    return {
        outcome.removeprefix(_ENDED): count
        for outcome, count in connection.execute(
            "SELECT outcome, count(DISTINCT generation) FROM claims WHERE message_id = ? AND outcome GLOB ?"
            " GROUP BY outcome",
            (row_id, f"{_ENDED}*"),
        )
    }


def leave_quarantine(connection: Connection, row_id: str) -> bool:
    """False: it is not in quarantine. The ends that it caused are held against it no more."""
    query = "DELETE FROM processing_ack WHERE message_id = ? AND status = 'quarantined'"
    if connection.execute(query, (row_id,)).rowcount != 1:
        return False
    connection.execute(
        "UPDATE claims SET outcome = ? WHERE message_id = ? AND outcome GLOB ?", (_GIVEN_BACK, row_id, f"{_ENDED}*")
    )
    return True


def finish(
    connection: Connection, row_id: MessageId, turn: str, failed: str | None, *, status: Finish | None = None
) -> None:
    """The row's end. What is finished stays as it was finished first."""
    status = status or ("completed" if failed is None else "failed")
    connection.execute(
        "INSERT INTO processing_ack (message_id, status, status_changed, turn, reason) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (message_id) DO UPDATE SET status = excluded.status, status_changed = excluded.status_changed,"
        " turn = excluded.turn, reason = excluded.reason WHERE status = 'processing'",
        (row_id, status, timestamp(), turn, failed),
    )
    _end_claims(connection, row_id, status)


def _end_claims(connection: Connection, row_id: MessageId, outcome: str) -> None:
    connection.execute(
        "UPDATE claims SET ended_at = ?, outcome = ? WHERE message_id = ? AND ended_at IS NULL",
        (timestamp(), outcome, row_id),
    )


def state(connection: Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT key, value FROM session_state ORDER BY key").fetchall())


def set_state(connection: Connection, key: str, value: str | None) -> None:
    """Raises BadInputError when the state would grow beyond its bound."""
    check_texts(key, value)
    if value is None:
        connection.execute("DELETE FROM session_state WHERE key = ?", (key,))
        return
    after = state(connection) | {key: value}
    if sum(len(each.encode()) + len(text.encode()) for each, text in after.items()) > MAX_STATE_BYTES:
        raise BadInputError(f"a session's state may have {MAX_STATE_BYTES:,} bytes")
    connection.execute(
        "INSERT INTO session_state (key, value, updated_at) VALUES (?, ?, ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
        (key, value, timestamp()),
    )


def to_row(row: tuple[Any, ...]) -> OutboundRow:
    """A row of COLUMNS."""
    key, seq, in_reply_to, time, kind, platform_id, channel_type, thread_id, content, *delivery = row
    deliver_after, status, attempts, reason, parts_sent, queued_at, platform_message_id = delivery
    return OutboundRow(
        id=MessageId(key),
        seq=seq or 0,
        in_reply_to=in_reply_to,
        timestamp=time,
        kind=kind,
        address=address_of(platform_id, channel_type, thread_id),
        content=to_content(content, key),
        deliver_after=deliver_after,
        delivery=status or "unknown-after-crash",
        attempts=attempts,
        reason=reason,
        parts_sent=parts_sent,
        queued_at=queued_at or time,
        platform_message_id=platform_message_id,
    )
