"""Queries for wirings: which agents hear which chat."""

from __future__ import annotations

import sqlite3
from sqlite3 import Connection
from typing import Any

from hermitcrab.errors import ConflictError, NotFoundError
from hermitcrab.model.groups import Wiring
from hermitcrab.model.ids import AgentGroupId, MessagingGroupId, WiringId
from hermitcrab.store import agent_groups, destinations, messaging_groups
from hermitcrab.store.clock import timestamp

_COLUMNS = (
    "id, messaging_group_id, agent_group_id, engage_mode, engage_pattern, session_mode, sender_scope,"
    " ignored_message_policy, priority"
)


def insert(connection: Connection, wiring: Wiring) -> None:
    """Wire a chat to an agent, which may from then on also send to that chat: it gets a destination for it.

    Raises NotFoundError when either does not exist, ConflictError when they are wired already.
    """
    chat = messaging_groups.by_id(connection, wiring.messaging_group_id)
    if chat is None or agent_groups.by_id(connection, wiring.agent_group_id) is None:
        raise NotFoundError(
            f"wiring {wiring.id} names the chat {wiring.messaging_group_id} and the agent group "
            f"{wiring.agent_group_id}, and they do not both exist"
        )
    try:
        connection.execute(
            f"INSERT INTO wirings ({_COLUMNS}, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (
                wiring.id,
                wiring.messaging_group_id,
                wiring.agent_group_id,
                wiring.engage_mode,
                wiring.engage_pattern,
                wiring.session_mode,
                wiring.sender_scope,
                wiring.ignored_message_policy,
                wiring.priority,
                timestamp(),
            ),
        )
    except sqlite3.IntegrityError as error:
        raise ConflictError(
            f"the chat {chat.channel_type}:{chat.platform_id} is wired to that agent already"
        ) from error
    wish = chat.name or f"{chat.channel_type}-{chat.id[:8]}"
    destinations.ensure(connection, wiring.agent_group_id, "channel", chat.id, wish)


def for_messaging_group(connection: Connection, group_id: MessagingGroupId) -> list[Wiring]:
    """The wirings of a chat, highest priority first."""
    return _select(connection, "WHERE messaging_group_id = ? ORDER BY priority DESC, id", group_id)


def for_agent_group(connection: Connection, group_id: AgentGroupId) -> list[Wiring]:
    return _select(connection, "WHERE agent_group_id = ? ORDER BY priority DESC, id", group_id)


def all_wirings(connection: Connection) -> list[Wiring]:
    return _select(connection, "ORDER BY id")


def _select(connection: Connection, rest: str, *values: str) -> list[Wiring]:
    return [_wiring(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM wirings {rest}", values)]  # noqa: S608


def _wiring(row: tuple[Any, ...]) -> Wiring:
    key, chat, agent, engage_mode, engage_pattern, session_mode, sender_scope, ignored, priority = row
    return Wiring(
        id=WiringId(key),
        messaging_group_id=MessagingGroupId(chat),
        agent_group_id=AgentGroupId(agent),
        engage_mode=engage_mode,
        engage_pattern=engage_pattern,
        session_mode=session_mode,
        sender_scope=sender_scope,
        ignored_message_policy=ignored,
        priority=priority,
    )
