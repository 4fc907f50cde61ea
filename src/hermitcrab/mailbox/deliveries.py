"""Queries on the delivery ledger in outbound.db: what became of each message that the agent said.

    scheduled -> queued -> sending -> delivered -> confirmed
                   ^          |-----> failed, refused
                   |          |-----> unknown-after-crash   (the host died while it was sent)
                   +----------+                              (it is tried again later)

A message waits in the lane of its address. `sender` names the host process that is sending; after a crash nobody of
that name is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from sqlite3 import Connection

from hermitcrab.errors import ConflictError, NotFoundError
from hermitcrab.mailbox.content import address_of
from hermitcrab.mailbox.outbound import COLUMNS, by_id, to_row
from hermitcrab.model.ids import MessageId
from hermitcrab.model.messages import Address, DeliveryStatus, LaneHead, OutboundRow
from hermitcrab.store.clock import timestamp

_JOINED = "deliveries JOIN messages_out ON messages_out.id = message_out_id"
_UNFINISHED: tuple[DeliveryStatus, ...] = ("scheduled", "queued", "sending")
_FROM_SENT: tuple[DeliveryStatus, ...] = (*_UNFINISHED, "unknown-after-crash")
_RETRIABLE: tuple[DeliveryStatus, ...] = ("failed", "refused", "unknown-after-crash")

_DUE_AT = "CASE WHEN deliveries.updated_at <= ? THEN next_attempt_at END"
"""When a postponed row is due, as seen now. One that was postponed in the future was so by a clock that was set back
since: it is due, and does not wait until that time comes again."""

_LANES = """
WITH RECURSIVE lanes (lane) AS (
    SELECT min(lane) FROM deliveries WHERE status = 'queued'
    UNION ALL
    SELECT (SELECT min(lane) FROM deliveries WHERE status = 'queued' AND lane > lanes.lane)
    FROM lanes WHERE lane IS NOT NULL
)
SELECT lane FROM lanes WHERE lane IS NOT NULL
"""
"""Jumps from lane to lane in the index, whatever waits in each."""


def lane_of(address: Address | None) -> str:
    """The name of the lane: messages of one lane keep their order."""
    if address is None:
        return "\x1f\x1f"
    return "\x1f".join((address.channel_type, address.platform_id, address.thread_id or ""))


def enter(connection: Connection, row: OutboundRow, seq: int) -> DeliveryStatus:
    """A new message waits, for its time if it has one, or is refused at once if it says so."""
    now = timestamp()
    status: DeliveryStatus = "scheduled" if row.deliver_after is not None and row.deliver_after > now else "queued"
    if row.delivery in {"refused", "failed"}:
        status = row.delivery
    scheduled = row.deliver_after if status == "scheduled" else None
    connection.execute(
        "INSERT INTO deliveries (message_out_id, seq, lane, status, reason, queued_at, next_attempt_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (row.id, seq, lane_of(row.address), status, row.reason, scheduled or now, scheduled, now),
    )
    return status


def queue_scheduled(connection: Connection, now: str) -> None:
    """Messages whose time has come wait like any other."""
    connection.execute(
        "UPDATE deliveries SET status = 'queued', next_attempt_at = NULL, updated_at = ?"
        " WHERE status = 'scheduled' AND next_attempt_at <= ?",
        (timestamp(), now),
    )


def next_scheduled_at(connection: Connection) -> str | None:
    query = "SELECT min(next_attempt_at) FROM deliveries WHERE status = 'scheduled'"
    found: str | None = connection.execute(query).fetchone()[0]
    return found


def heads(connection: Connection, now: str) -> list[LaneHead]:
    """The first message of each lane. Costs by lanes, not by what waits in them."""
    found: list[LaneHead] = []
    for (lane,) in connection.execute(_LANES).fetchall():
        row = connection.execute(
            f"SELECT message_out_id, {_DUE_AT}, platform_id, channel_type, thread_id FROM {_JOINED}"  # noqa: S608
            " WHERE deliveries.status = 'queued' AND lane = ? ORDER BY deliveries.seq LIMIT 1",
            (now, lane),
        ).fetchone()
        if row is not None:
            key, due_at, *address = row
            found.append(LaneHead(lane=lane, id=MessageId(key), due_at=due_at, address=address_of(*address)))
    return found


def head(connection: Connection, lane: str, now: str) -> OutboundRow | None:
    """The lane's first message if it is due."""
    row = connection.execute(
        f"SELECT message_out_id, {_DUE_AT} FROM deliveries WHERE status = 'queued' AND lane = ?"  # noqa: S608
        " ORDER BY seq LIMIT 1",
        (now, lane),
    ).fetchone()
    if row is None or (row[1] is not None and row[1] > now):
        return None
    return by_id(connection, row[0])


def waits_in(connection: Connection, lane: str) -> bool:
    query = "SELECT 1 FROM deliveries WHERE status = 'queued' AND lane = ? LIMIT 1"
    return connection.execute(query, (lane,)).fetchone() is not None


def due(connection: Connection, now: str, limit: int) -> list[OutboundRow]:
    """What can be sent now, oldest first. What waits for its next attempt holds back later rows of its lane."""
    found: list[OutboundRow] = []
    held_back: set[str] = set()
    # Contents are read only of what is taken: a channel that is away for a day leaves a long queue behind.
    for key, next_attempt_at, lane in connection.execute(
        f"SELECT message_out_id, {_DUE_AT}, lane FROM deliveries WHERE status = 'queued' ORDER BY seq",  # noqa: S608
        (now,),
    ):
        if next_attempt_at is not None and next_attempt_at > now:
            held_back.add(lane)
        elif lane not in held_back and (row := by_id(connection, key)) is not None:
            found.append(row)
            if len(found) == limit:
                break
    return found


def next_attempt_at(connection: Connection) -> str | None:
    """When the first of the postponed rows is due."""
    row = connection.execute("SELECT min(next_attempt_at) FROM deliveries WHERE status = 'queued'").fetchone()
    return None if row is None else row[0]


def make_due(connection: Connection, lane: str | None = None) -> None:
    """What was postponed is due at once: of one lane, or of all."""
    connection.execute(
        "UPDATE deliveries SET next_attempt_at = NULL WHERE status = 'queued' AND next_attempt_at IS NOT NULL"
        " AND (:lane IS NULL OR lane = :lane)",
        {"lane": lane},
    )


def begin(connection: Connection, row_id: MessageId, sender: str) -> None:
    """Raises ConflictError when it does not wait any more: somebody else has it, or it has ended."""
    now = timestamp()
    cursor = connection.execute(
        "UPDATE deliveries SET status = 'sending', attempts = attempts + 1, next_attempt_at = NULL, sender = ?,"
        " updated_at = ? WHERE message_out_id = ? AND status = 'queued'",
        (sender, now, row_id),
    )
    if cursor.rowcount == 0:
        raise ConflictError(f"message {row_id} is {status_of(connection, row_id)}, so it cannot be sent")
    connection.execute(
        "INSERT OR REPLACE INTO delivery_attempts (message_out_id, number, began_at)"
        " SELECT message_out_id, attempts, ? FROM deliveries WHERE message_out_id = ?",
        (now, row_id),
    )


def part_sent(connection: Connection, row_id: MessageId, parts: int, platform_message_id: str | None) -> None:
    """So many parts of it have arrived. The platform's id of the whole is that of its first part."""
    connection.execute(
        "UPDATE deliveries SET parts_sent = ?, platform_message_id = coalesce(platform_message_id, ?), updated_at = ?"
        " WHERE message_out_id = ? AND status = 'sending'",
        (parts, platform_message_id, timestamp(), row_id),
    )


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
    *,
    tell: bool = False,
) -> bool:
    """False: it had ended so already. Raises ConflictError when it ended otherwise.

    `tell`: somebody must be told of this end, until `told` says that it was done.
    """
    if status_of(connection, row_id) == status:
        return False
    _change(connection, row_id, status, reason, _FROM_SENT if status == "delivered" else _UNFINISHED)
    connection.execute(
        "UPDATE deliveries SET platform_message_id = coalesce(?, platform_message_id), untold = ?"
        " WHERE message_out_id = ?",
        (platform_message_id, int(tell), row_id),
    )
    return True


def settle_later(
    connection: Connection, row_id: MessageId, status: DeliveryStatus, reason: str | None, *, tell: bool
) -> bool:
    """What the platform says of a message after it had taken it. False: that does not fit what is known of it."""
    if status_of(connection, row_id) not in {"delivered", "unknown-after-crash", "sending"}:
        return False
    _change(connection, row_id, status, reason, (*_FROM_SENT, "delivered"))
    connection.execute("UPDATE deliveries SET untold = ? WHERE message_out_id = ?", (int(tell), row_id))
    return True


def retry(connection: Connection, row_id: MessageId) -> None:
    """It waits anew, with all of its time before it. Raises ConflictError unless it had ended badly."""
    _change(connection, row_id, "queued", "a person asked for another attempt", _RETRIABLE)
    connection.execute("UPDATE deliveries SET queued_at = updated_at, untold = 0 WHERE message_out_id = ?", (row_id,))


def untold(connection: Connection) -> list[OutboundRow]:
    """Messages that ended badly, and of which nobody was told yet."""
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM {_JOINED} WHERE untold = 1 ORDER BY deliveries.seq"  # noqa: S608
    )
    return [to_row(row) for row in rows]


def told(connection: Connection, row_id: MessageId) -> None:
    connection.execute("UPDATE deliveries SET untold = 0 WHERE message_out_id = ?", (row_id,))


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
    query = "SELECT message_out_id FROM deliveries WHERE status IN ('scheduled', 'queued', 'sending') ORDER BY seq"
    return [MessageId(key) for (key,) in connection.execute(query)]


def open_count(connection: Connection) -> int:
    """How many wait or are being sent, or ended badly without anybody being told of it yet."""
    # Each part reads one small index, and nothing else.
    conditions = ("status = 'queued'", "status = 'scheduled'", "status = 'sending'", "untold = 1")
    query = " UNION ALL ".join(f"SELECT count(*) FROM deliveries WHERE {each}" for each in conditions)  # noqa: S608
    return sum(count for (count,) in connection.execute(query))


def with_status(connection: Connection, statuses: tuple[DeliveryStatus, ...], limit: int) -> Iterator[OutboundRow]:
    """The newest messages in one of these states. Costs by what is in them, for all that are not delivered."""
    for status in statuses:
        rows = connection.execute(
            f"SELECT {COLUMNS} FROM {_JOINED} WHERE deliveries.status = '{status}'"  # noqa: S608
            + (f" AND deliveries.status IN {_RETRIABLE}" if status in _RETRIABLE else "")
            + " ORDER BY deliveries.seq DESC LIMIT ?",
            (limit,),
        )
        for row in rows:
            yield to_row(row)


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
    now = timestamp()
    connection.execute(
        "UPDATE deliveries SET status = ?, reason = ?, attempts = attempts + ?, next_attempt_at = NULL, sender = NULL,"
        " updated_at = ? WHERE message_out_id = ?",
        (status, reason, int(before == "queued" and status == "queued"), now, row_id),
    )
    connection.execute(
        "UPDATE delivery_attempts SET ended_at = ?, outcome = ?, reason = ? WHERE message_out_id = ?"
        " AND number = (SELECT attempts FROM deliveries WHERE message_out_id = ?) AND ended_at IS NULL",
        (now, "postponed" if status == "queued" else status, reason, row_id, row_id),
    )
