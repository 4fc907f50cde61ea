"""Queries for messaging groups."""

from __future__ import annotations

import sqlite3
from sqlite3 import Connection

from hermitcrab.errors import ConflictError
from hermitcrab.model.groups import MessagingGroup
from hermitcrab.model.ids import MessagingGroupId
from hermitcrab.model.messages import Address
from hermitcrab.store.clock import timestamp

_COLUMNS = "id, channel_type, platform_id, name, is_group, created_at"


def insert(connection: Connection, group: MessagingGroup) -> None:
    """Raises ConflictError when the chat is known already."""
    try:
        connection.execute(
            f"INSERT INTO messaging_groups ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608  # constants only
            (
                group.id,
                group.channel_type,
                group.platform_id,
                group.name,
                int(group.is_group),
                group.created_at or timestamp(),
            ),
        )
    except sqlite3.IntegrityError as error:
        raise ConflictError(f"the chat {group.channel_type}:{group.platform_id} is known already") from error


def by_id(connection: Connection, group_id: MessagingGroupId) -> MessagingGroup | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM messaging_groups WHERE id = ?", (group_id,)).fetchone()  # noqa: S608
    return None if row is None else _group(row)


def by_address(connection: Connection, address: Address) -> MessagingGroup | None:
    """The chat at that address, whatever the thread in it."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM messaging_groups WHERE channel_type = ? AND platform_id = ?",  # noqa: S608
        (address.channel_type, address.platform_id),
    ).fetchone()
    return None if row is None else _group(row)


def all_groups(connection: Connection) -> list[MessagingGroup]:
    """Every known chat, by channel and id there."""
    return [
        _group(row)
        for row in connection.execute(
            f"SELECT {_COLUMNS} FROM messaging_groups ORDER BY channel_type, platform_id"  # noqa: S608
        )
    ]


def _group(row: tuple[str, str, str, str | None, int, str]) -> MessagingGroup:
    key, channel_type, platform_id, name, is_group, created_at = row
    return MessagingGroup(
        id=MessagingGroupId(key),
        channel_type=channel_type,
        platform_id=platform_id,
        name=name,
        is_group=bool(is_group),
        created_at=created_at,
    )
