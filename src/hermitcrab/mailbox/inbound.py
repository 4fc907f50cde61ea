"""Queries on inbound.db: what came in, and what other tools are shown of deliveries, destinations and routing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from sqlite3 import Connection
from typing import Any, Literal

from hermitcrab.mailbox.content import address_columns, address_of, check_texts, to_content, to_text
from hermitcrab.model.groups import Destination
from hermitcrab.model.ids import MessageId
from hermitcrab.model.messages import Address, InboundRow
from hermitcrab.store.clock import timestamp

_COLUMNS = "id, seq, kind, timestamp, status, tries, trigger, on_wake, platform_id, channel_type, thread_id, content"

_DUE = "(process_after IS NULL OR coalesce(julianday(process_after) <= julianday(?), 1))"
"""A time that cannot be read is due: better early than never."""


def greatest_seq(connection: Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM messages_in").fetchone()[0])


def insert(connection: Connection, row: InboundRow, seq: int) -> bool:
    """False: a row of that id is there already. Raises BadInputError for what cannot be kept."""
    check_texts(row.id, row.kind, row.timestamp, *address_columns(row.address))
    values = (row.id, seq, row.kind, row.timestamp, timestamp(), int(row.trigger), int(row.on_wake))
    cursor = connection.execute(
        "INSERT INTO messages_in (id, seq, kind, timestamp, received_at, trigger, on_wake, platform_id, channel_type,"
        " thread_id, content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        (*values, *address_columns(row.address), to_text(row.content)),
    )
    return cursor.rowcount == 1


def waiting(connection: Connection, now: str) -> Iterator[tuple[MessageId, int, bool, bool]]:
    """Id, seq, trigger and on_wake of the rows that are due and that nobody has finished, oldest first."""
    for key, seq, trigger, on_wake in connection.execute(
        f"SELECT id, seq, trigger, on_wake FROM messages_in WHERE status = 'pending' AND {_DUE} ORDER BY seq",  # noqa: S608
        (now,),
    ):
        yield MessageId(key), seq or 0, bool(trigger), bool(on_wake)


def unfinished_ids(connection: Connection) -> list[MessageId]:
    """The rows that nobody has finished, whether due or not."""
    query = "SELECT id FROM messages_in WHERE status = 'pending' ORDER BY seq"
    return [MessageId(key) for (key,) in connection.execute(query)]


def any_unfinished(connection: Connection) -> bool:
    """Whether `unfinished_ids` has any."""
    query = "SELECT EXISTS (SELECT 1 FROM messages_in WHERE status = 'pending')"
    return bool(connection.execute(query).fetchone()[0])


def by_id(connection: Connection, row_id: str) -> InboundRow | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM messages_in WHERE id = ?", (row_id,)).fetchone()  # noqa: S608
    return None if row is None else _row(row)


def by_seq(connection: Connection, seq: int) -> InboundRow | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM messages_in WHERE seq = ?", (seq,)).fetchone()  # noqa: S608
    return None if row is None else _row(row)


def known(connection: Connection, ids: Iterable[MessageId]) -> list[MessageId]:
    """Those of `ids` that there are rows of, in the order given, each once."""
    return [
        each
        for each in dict.fromkeys(ids)
        if connection.execute("SELECT 1 FROM messages_in WHERE id = ?", (each,)).fetchone()
    ]


def newest(connection: Connection, before_seq: int | None, limit: int) -> list[InboundRow]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM messages_in WHERE seq < ? ORDER BY seq DESC LIMIT ?",  # noqa: S608
        (before_seq if before_seq is not None else 1 << 62, limit),
    )
    return [_row(row) for row in rows]


def set_status(
    connection: Connection, row_id: MessageId, status: Literal["completed", "failed", "quarantined"]
) -> None:
    connection.execute("UPDATE messages_in SET status = ? WHERE id = ? AND status <> ?", (status, row_id, status))


def release(connection: Connection, row_id: MessageId) -> None:
    """As if it had never been tried."""
    connection.execute(
        "UPDATE messages_in SET status = 'pending', tries = 0 WHERE id = ? AND status = 'quarantined'", (row_id,)
    )


def quarantined_count(connection: Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM messages_in WHERE status = 'quarantined'").fetchone()[0])


def count_try(connection: Connection, row_id: MessageId) -> None:
    connection.execute("UPDATE messages_in SET tries = tries + 1 WHERE id = ?", (row_id,))


def mark_delivered(
    connection: Connection, row_id: str, status: Literal["delivered", "failed"], platform_message_id: str | None
) -> None:
    connection.execute(
        "INSERT INTO delivered (message_out_id, platform_message_id, status, delivered_at)"
        " VALUES (?, ?, ?, datetime('now')) ON CONFLICT (message_out_id) DO UPDATE"
        " SET platform_message_id = excluded.platform_message_id, status = excluded.status",
        (row_id, platform_message_id, status),
    )


def marked_delivered(connection: Connection, row_id: str) -> tuple[str | None] | None:
    """The platform's id, in a tuple, of a message that is marked as delivered; None if it is not."""
    row: tuple[str | None] | None = connection.execute(
        "SELECT platform_message_id FROM delivered WHERE message_out_id = ? AND status = 'delivered'", (row_id,)
    ).fetchone()
    return row


def destinations(connection: Connection) -> list[Destination]:
    return [
        Destination(
            name=name,
            display_name=display_name,
            type=kind,
            channel_type=channel_type,
            platform_id=platform_id,
            agent_group_id=agent_group_id,
        )
        for name, display_name, kind, channel_type, platform_id, agent_group_id in connection.execute(
            "SELECT name, display_name, type, channel_type, platform_id, agent_group_id FROM destinations ORDER BY name"
        )
    ]


def replace_destinations(connection: Connection, wanted: Iterable[Destination]) -> None:
    connection.execute("DELETE FROM destinations")
    connection.executemany(
        "INSERT INTO destinations (name, display_name, type, channel_type, platform_id, agent_group_id)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [
            (each.name, each.display_name, each.type, each.channel_type, each.platform_id, each.agent_group_id)
            for each in wanted
        ],
    )


def routing(connection: Connection) -> Address | None:
    row = connection.execute("SELECT platform_id, channel_type, thread_id FROM session_routing").fetchone()
    return None if row is None else address_of(*row)


def replace_routing(connection: Connection, address: Address | None) -> None:
    connection.execute(
        "INSERT INTO session_routing (id, platform_id, channel_type, thread_id) VALUES (1, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET platform_id = excluded.platform_id,"
        " channel_type = excluded.channel_type, thread_id = excluded.thread_id",
        address_columns(address),
    )


def _row(row: tuple[Any, ...]) -> InboundRow:
    key, seq, kind, time, status, tries, trigger, on_wake, platform_id, channel_type, thread_id, content = row
    return InboundRow(
        id=MessageId(key),
        seq=seq or 0,
        kind=kind,
        timestamp=time,
        status=status,
        tries=tries or 0,
        trigger=bool(trigger),
        on_wake=bool(on_wake),
        address=address_of(platform_id, channel_type, thread_id),
        content=to_content(content, key),
    )
