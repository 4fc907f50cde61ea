"""Queries for agent groups."""

from __future__ import annotations

import sqlite3
from sqlite3 import Connection

from hermitcrab.errors import BadInputError, ConflictError
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import FOLDER_NAME, RESERVED_FOLDER_NAMES, AgentGroupId
from hermitcrab.store.clock import timestamp

_COLUMNS = "id, name, folder, created_at"


def insert(connection: Connection, group: AgentGroup) -> None:
    """Raises ConflictError when its id or folder is taken, BadInputError when its folder is no name for one."""
    if FOLDER_NAME.fullmatch(group.folder) is None or group.folder in RESERVED_FOLDER_NAMES:
        raise BadInputError(f"{group.folder[:80]!r} cannot be the folder of an agent group")
    try:
        connection.execute(
            f"INSERT INTO agent_groups ({_COLUMNS}) VALUES (?, ?, ?, ?)",  # noqa: S608  # constants only
            (group.id, group.name, group.folder, group.created_at or timestamp()),
        )
    except sqlite3.IntegrityError as error:
        raise ConflictError(f"there is an agent group {group.folder!r} already") from error


def by_id(connection: Connection, group_id: AgentGroupId) -> AgentGroup | None:
    return _one(connection, "id", group_id)


def by_folder(connection: Connection, folder: str) -> AgentGroup | None:
    return _one(connection, "folder", folder)


def all_groups(connection: Connection) -> list[AgentGroup]:
    """Every agent group, by folder."""
    return [_group(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM agent_groups ORDER BY folder")]  # noqa: S608


def _one(connection: Connection, column: str, value: str) -> AgentGroup | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM agent_groups WHERE {column} = ?", (value,)).fetchone()  # noqa: S608
    return None if row is None else _group(row)


def _group(row: tuple[str, str, str, str]) -> AgentGroup:
    key, name, folder, created_at = row
    return AgentGroup(id=AgentGroupId(key), name=name, folder=folder, created_at=created_at)
