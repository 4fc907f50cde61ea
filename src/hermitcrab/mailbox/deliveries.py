"""Queries on the delivery ledger in outbound.db: what became of each message that the agent said.

    queued -> sending -> delivered
      ^          |-----> failed, refused
      |          |-----> unknown-after-crash   (the host died while it was sent)
      +----------+                              (it is tried again later)

`sender` names the host process that is sending. After a crash nobody of that name is left.
"""

from __future__ import annotations

from sqlite3 import Connection

from hermitcrab.errors import ConflictError, NotFoundError
from hermitcrab.mailbox.outbound import COLUMNS, by_id, to_row
from hermitcrab.model.ids import MessageId
from hermitcrab.model.messages import DeliveryStatus, OutboundRow
from hermitcrab.store.clock import timestamp

_JOINED = "deliveries JOIN messages_out ON messages_out.id = message_out_id"
_UNFINISHED: tuple[DeliveryStatus, ...] = ("queued", "sending")


def enter(connection: Connection, row: OutboundRow, seq: int) -> DeliveryStatus:
    """A new message waits, or is refused at once if it says so."""
    status: DeliveryStatus = row.delivery if row.delivery in {"refused", "failed"} else "queued"
    connection.execute(
        "INSERT INTO deliveries (message_out_id, seq, status, reason, updated_at) VALUES (?, ?, ?, ?, ?)",
        (row.id, seq, status, row.reason, timestamp()),
    )
    return status


def due(connection: Connection, now: str, limit: int) -> list[OutboundRow]:
    """What can be sent now, oldest first. What waits for its next attempt holds back later rows to the same address."""
    found: list[OutboundRow] = []
    held_back: set[tuple[str, ...]] = set()
    # Contents are read only of what is taken: a channel that is away for a day leaves a long queue behind.
    for key, next_attempt_at, *address in connection.execute(
        f"SELECT message_out_id, next_attempt_at, channel_type, platform_id, thread_id FROM {_JOINED}"  # noqa: S608
        " WHERE deliveries.status = 'queued' ORDER BY deliveries.seq"
    ):
        if next_attempt_at is not None and next_attempt_at > now:
            held_back.add(tuple(address))
        elif tuple(address) not in held_back and (row := by_id(connection, key)) is not None:
            found.append(row)
            if len(found) == limit:
                break
    return found


def next_attempt_at(connection: Connection) -> str | None:
    """When the first of the postponed rows is due."""
    row = connection.execute("SELECT min(next_attempt_at) FROM deliveries WHERE status = 'queued'").fetchone()
    return None if row is None else row[0]


def make_all_due(connection: Connection) -> None:
    connection.execute(
        "UPDATE deliveries SET next_attempt_at = NULL WHERE status = 'queued' AND next_attempt_at IS NOT NULL"
    )


def begin(connection: Connection, row_id: MessageId, sender: str) -> None:
    """Raises ConflictError when it does not wait any more: somebody else has it, or it has ended."""
    cursor = connection.execute(
        "UPDATE deliveries SET status = 'sending', attempts = attempts + 1, next_attempt_at = NULL, sender = ?,"
        " updated_at = ? WHERE message_out_id = ? AND status = 'queued'",
        (sender, timestamp(), row_id),
    )
    if cursor.rowcount == 0:
        raise ConflictError(f"message {row_id} is {status_of(connection, row_id)}, so it cannot be sent")


def postpone(connection: Connection, row_id: MessageId, reason: str, retry_at: str) -> None:
    """It waits for another attempt. One that failed before it was begun counts as an attempt too."""
    _change(connection, row_id, "queued", reason, _UNFINISHED)
    connection.execute("UPDATE deliveries SET next_attempt_at = ? WHERE message_out_id = ?", (retry_at, row_id))


def end(
    connection: Connection,
    row_id: MessageId,
    status: DeliveryStatus,
    reason: str | None,
    platform_message_id: str | None = None,
) -> bool:
    """False: it had ended so already. Raises ConflictError when it ended otherwise."""
    if status_of(connection, row_id) == status:
        return False
    allowed = (*_UNFINISHED, "unknown-after-crash") if status == "delivered" else _UNFINISHED
    _change(connection, row_id, status, reason, allowed)
    connection.execute(
        "UPDATE deliveries SET platform_message_id = ? WHERE message_out_id = ?", (platform_message_id, row_id)
    )
    return True


def interrupted(connection: Connection, sender: str) -> list[OutboundRow]:
    """What some other process than `sender` was sending."""
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM {_JOINED} WHERE deliveries.status = 'sending' AND sender IS NOT ?"  # noqa: S608
        " ORDER BY deliveries.seq",
        (sender,),
    )
    return [to_row(row) for row in rows]


def unfinished_ids(connection: Connection) -> list[MessageId]:
    """What waits or is being sent, oldest first."""
    query = "SELECT message_out_id FROM deliveries WHERE status IN ('queued', 'sending') ORDER BY seq"
    return [MessageId(key) for (key,) in connection.execute(query)]


def unfinished_counts(connection: Connection) -> tuple[int, int]:
    """How many wait, and how many are being sent."""
    return (
        int(connection.execute("SELECT count(*) FROM deliveries WHERE status = 'queued'").fetchone()[0]),
        int(connection.execute("SELECT count(*) FROM deliveries WHERE status = 'sending'").fetchone()[0]),
    )


def status_of(connection: Connection, row_id: MessageId) -> DeliveryStatus:
    """Raises NotFoundError when there is no such message."""
    row = connection.execute("SELECT status FROM deliveries WHERE message_out_id = ?", (row_id,)).fetchone()
    if row is None:
        raise NotFoundError(f"the agent said no message {row_id}")
    status: DeliveryStatus = row[0]
    return status


def _change(
    connection: Connection,
    row_id: MessageId,
    status: DeliveryStatus,
    reason: str | None,
    allowed: tuple[DeliveryStatus, ...],
) -> None:
    before = status_of(connection, row_id)
    if before not in allowed:
        raise ConflictError(f"message {row_id} is {before} and cannot become {status}")
    connection.execute(
        "UPDATE deliveries SET status = ?, reason = ?, attempts = attempts + ?, next_attempt_at = NULL, sender = NULL,"
        " updated_at = ? WHERE message_out_id = ?",
        (status, reason, int(before == "queued" and status == "queued"), timestamp(), row_id),
    )
