"""Queries for the container configs of agent groups."""

from __future__ import annotations

import json
from sqlite3 import Connection
from typing import Any

from hermitcrab.errors import BadInputError, ConfigError
from hermitcrab.logic import container_config
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.ids import AgentGroupId
from hermitcrab.store.clock import timestamp


def of(connection: Connection, group_id: AgentGroupId) -> ContainerConfig:
    """The group's config; the default one for a group that has none.

    Raises ConfigError when what is stored cannot be used: an older or newer Hermitcrab, or another hand, wrote it.
    """
    try:
        return container_config.parse(document(connection, group_id))
    except BadInputError as error:
        raise _unusable(group_id, error.message) from error


def provider_of(connection: Connection, group_id: AgentGroupId) -> str | None:
    """What the stored config says, for a listing: a config that cannot be used is no reason to show no group."""
    try:
        found = document(connection, group_id).get("provider")
    except ConfigError:
        return None
    return found if isinstance(found, str) else None


def document(connection: Connection, group_id: AgentGroupId) -> dict[str, Any]:
    """What is stored: only what differs from the defaults. Unchecked, but for being an object; raises ConfigError."""
    row = connection.execute("SELECT document FROM container_configs WHERE agent_group_id = ?", (group_id,)).fetchone()
    if row is None:
        return {}
    try:
        found: dict[str, Any] = json.loads(row[0])
    except ValueError as error:
        raise _unusable(group_id, f"It is no JSON: {error}.") from error
    return found


def put(connection: Connection, group_id: AgentGroupId, config: ContainerConfig) -> None:
    """Replace the group's config."""
    text = json.dumps(container_config.to_document(config), sort_keys=True, separators=(",", ":"))
    connection.execute(
        "INSERT INTO container_configs (agent_group_id, document, updated_at) VALUES (?, ?, ?)"
        " ON CONFLICT (agent_group_id) DO UPDATE SET document = excluded.document, updated_at = excluded.updated_at",
        (group_id, text, timestamp()),
    )


def _unusable(group_id: AgentGroupId, reason: str) -> ConfigError:
    return ConfigError(
        f"The stored config of agent group {group_id} cannot be used. {reason}",
        hint="crab groups config import GROUP FILE puts a whole new one in its place.",
    )
