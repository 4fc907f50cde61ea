"""Queries for the images that were made for agent groups."""

from __future__ import annotations

from dataclasses import dataclass
from sqlite3 import Connection

from hermitcrab.model.ids import AgentGroupId
from hermitcrab.store.clock import timestamp

_COLUMNS = "agent_group_id, engine, image, packages, built_at, failure, failed_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupImage:
    agent_group_id: AgentGroupId
    engine: str
    image: str | None
    """None: no build was successful yet."""
    packages: str
    """What was asked for in the build that made `image`, for people."""
    built_at: str | None
    failure: str | None
    """Why the newest build failed; None when it did not."""
    failed_at: str | None


def of(connection: Connection, group_id: AgentGroupId) -> GroupImage | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM group_images WHERE agent_group_id = ?",  # noqa: S608  # constants only
        (group_id,),
    ).fetchone()
    return None if row is None else GroupImage(**dict(zip(_COLUMNS.split(", "), row, strict=True)))


def built(connection: Connection, group_id: AgentGroupId, *, engine: str, image: str, packages: str) -> None:
    """The group's next containers start from `image`."""
    connection.execute(
        "INSERT INTO group_images (agent_group_id, engine, image, packages, built_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (agent_group_id) DO UPDATE SET engine = excluded.engine, image = excluded.image,"
        " packages = excluded.packages, built_at = excluded.built_at, failure = NULL, failed_at = NULL",
        (group_id, engine, image, packages, timestamp()),
    )


def failed(connection: Connection, group_id: AgentGroupId, *, engine: str, failure: str) -> None:
    """Note why a build failed. The image that the group has stays."""
    connection.execute(
        "INSERT INTO group_images (agent_group_id, engine, packages, failure, failed_at) VALUES (?, ?, '', ?, ?)"
        " ON CONFLICT (agent_group_id) DO UPDATE SET failure = excluded.failure, failed_at = excluded.failed_at",
        (group_id, engine, failure, timestamp()),
    )
