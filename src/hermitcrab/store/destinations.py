"""Queries for destinations: where an agent group may send to, and by which name it knows each place."""

from __future__ import annotations

import re
import sqlite3
from sqlite3 import Connection
from typing import Literal

from hermitcrab.errors import ConflictError
from hermitcrab.model.groups import Destination
from hermitcrab.model.ids import AgentGroupId
from hermitcrab.store.clock import timestamp


def for_agent_group(connection: Connection, group_id: AgentGroupId) -> list[Destination]:
    """Every destination whose target still exists, by name."""
    rows = connection.execute(
        """
        SELECT destinations.name, target_type, coalesce(messaging_groups.name, agent_groups.name, destinations.name),
               channel_type, platform_id, agent_groups.id
        FROM destinations
        LEFT JOIN messaging_groups ON target_type = 'channel' AND messaging_groups.id = target_id
        LEFT JOIN agent_groups ON target_type = 'agent' AND agent_groups.id = target_id
        WHERE destinations.agent_group_id = ? AND (messaging_groups.id IS NOT NULL OR agent_groups.id IS NOT NULL)
        ORDER BY destinations.name
        """,
        (group_id,),
    )
    return [
        Destination(
            name=name,
            type=kind,
            display_name=display_name,
            channel_type=channel_type,
            platform_id=platform_id,
            agent_group_id=agent_group_id,
        )
        for name, kind, display_name, channel_type, platform_id, agent_group_id in rows
    ]


def insert(
    connection: Connection, group_id: AgentGroupId, name: str, kind: Literal["channel", "agent"], target_id: str
) -> None:
    """Grant a destination. Raises ConflictError when the agent group has one of that name."""
    try:
        connection.execute(
            "INSERT INTO destinations (agent_group_id, name, target_type, target_id, created_at)"
            " VALUES (?, ?, ?, ?, ?)",
            (group_id, name, kind, target_id, timestamp()),
        )
    except sqlite3.IntegrityError as error:
        raise ConflictError(f"the agent group has a destination {name!r} already, or does not exist") from error


def ensure(
    connection: Connection, group_id: AgentGroupId, kind: Literal["channel", "agent"], target_id: str, wish: str
) -> str:
    """The name of the agent group's destination for that target, made with a free name like `wish` if there is none."""
    found = connection.execute(
        "SELECT name FROM destinations WHERE target_type = ? AND target_id = ? AND agent_group_id = ?",
        (kind, target_id, group_id),
    ).fetchone()
    if found is not None:
        return str(found[0])
    stem = normalized(wish)
    taken = {
        row[0] for row in connection.execute("SELECT name FROM destinations WHERE agent_group_id = ?", (group_id,))
    }
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    insert(connection, group_id, name, kind, target_id)
    return name


def normalized(name: str) -> str:
    """A name as agents write it: lower-case letters and digits of ASCII, joined by single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"
