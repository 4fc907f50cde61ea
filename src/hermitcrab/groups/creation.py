"""Making agent groups: the row, the folder, and the terminal chat that every group can be reached by."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from sqlite3 import Connection

from hermitcrab.channels.terminal.manifest import CHANNEL_TYPE as TERMINAL
from hermitcrab.errors import BadInputError, ConflictError
from hermitcrab.groups.configuration import check
from hermitcrab.logic import container_config
from hermitcrab.logic.routing import EVERYTHING
from hermitcrab.model.groups import AgentGroup, MessagingGroup, Wiring
from hermitcrab.model.ids import (
    FOLDER_NAME,
    RESERVED_FOLDER_NAMES,
    AgentGroupId,
    MessagingGroupId,
    WiringId,
    new_id,
)
from hermitcrab.model.messages import Address
from hermitcrab.store import agent_groups, container_configs, messaging_groups, wirings
from hermitcrab.store.database import Store

FIRST_GROUP = "main"
"""Made when the host starts on a home without any group, so that `crab chat` works at once."""


async def create_group(
    store: Store, *, folder: str, name: str | None = None, provider: str | None = None
) -> AgentGroup:
    """A new agent group with a terminal chat wired to it. Raises BadInputError or ConflictError."""
    if FOLDER_NAME.fullmatch(folder) is None or folder in RESERVED_FOLDER_NAMES:
        raise BadInputError(
            f"{folder[:80]!r} cannot be a group's name",
            hint="Use 1 to 63 lower-case letters, digits, - and _, beginning with a letter or digit; not 'global'.",
        )
    now_ms = int(time.time() * 1000)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    group = AgentGroup(id=AgentGroupId(new_id("ag", now_ms)), name=name or folder, folder=folder, created_at=now)
    config = container_config.parse({} if provider is None else {"provider": provider})
    check(config, ())
    chat = MessagingGroup(
        id=MessagingGroupId(new_id("mg", now_ms)),
        channel_type=TERMINAL,
        platform_id=folder,
        name="terminal",
        created_at=now,
    )
    wiring = Wiring(
        id=WiringId(new_id("mga", now_ms)),
        messaging_group_id=chat.id,
        agent_group_id=group.id,
        engage_mode="pattern",
        engage_pattern=EVERYTHING,
    )

    def insert(connection: Connection) -> bool:
        if agent_groups.by_folder(connection, folder) is not None:
            return False
        agent_groups.insert(connection, group)
        container_configs.put(connection, group.id, config)
        address = Address(channel_type=TERMINAL, platform_id=folder)
        if messaging_groups.by_address(connection, address) is None:
            messaging_groups.insert(connection, chat)
            wirings.insert(connection, wiring)
        return True

    if not await store.write(insert):
        raise ConflictError(f"there is a group {folder!r} already", hint="crab groups list shows all of them.")
    return group


async def ensure_first_group(store: Store) -> None:
    """On a home without groups, make the one that `crab chat` talks to."""
    if not await store.read(agent_groups.all_groups):
        await create_group(store, folder=FIRST_GROUP, name="Main")
