"""`groups.*`: agent groups."""

from __future__ import annotations

from dataclasses import asdict
from sqlite3 import Connection

from anyio import to_thread

from hermitcrab.containers.lifecycle.restarting import Restart
from hermitcrab.control.host import ControlledHost
from hermitcrab.control.lookup import group_json, group_named, sessions_json
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import Emit
from hermitcrab.errors import BadInputError, HermitcrabError
from hermitcrab.groups.creation import create_group
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.groups import AgentGroup, Destination, Wiring
from hermitcrab.model.sessions import Session
from hermitcrab.store import agent_groups, container_configs, destinations, messaging_groups, sessions, wirings

SESSIONS_SHOWN = 20
MEMORY_CHARACTERS_AT_MOST = 64 * 1024
"""More would be in the way of every conversation."""


class GroupMethods:
    def __init__(self, host: ControlledHost) -> None:
        self._host = host

    async def list(self, params: Params, _emit: Emit) -> Json:
        params.done()
        found = await self._host.store.read(_groups)
        return {"groups": [group_json(group, provider) for group, provider in found]}

    async def create(self, params: Params, _emit: Emit) -> Json:
        """`memory`: what its CLAUDE.local.md begins with."""
        folder, name, provider = params.text("folder"), params.optional_text("name"), params.optional_text("provider")
        memory = params.optional_text("memory") or ""
        params.done()
        if len(memory) > MEMORY_CHARACTERS_AT_MOST or "\0" in memory:
            raise BadInputError(f"A memory begins with at most {MEMORY_CHARACTERS_AT_MOST} characters of text.")
        group = await create_group(self._host.store, folder=folder, name=name, provider=provider)
        await to_thread.run_sync(self._host.desk.initialise, group, memory)
        return {"group": group_json(group, provider)}

    async def restart(self, params: Params, _emit: Emit) -> Json:
        """A fresh container for every session of the group that has one."""
        folder, message, wake = params.text("folder"), params.optional_text("message"), params.flag("wake")
        params.done()
        group = await group_named(self._host, folder)
        found = await self._host.runner.restart_group(group.id, message=message, wake=wake)
        return {
            "restarted": [asdict(each) for each in found if isinstance(each, Restart)],
            "failed": [each.message for each in found if isinstance(each, HermitcrabError)],
        }

    async def show(self, params: Params, _emit: Emit) -> Json:
        folder = params.text("folder")
        params.done()
        group = await group_named(self._host, folder)

        def read(connection: Connection) -> tuple[str | None, list[Json], list[Destination], list[Session]]:
            return (
                container_configs.provider_of(connection, group.id),
                [_wiring_json(connection, each) for each in wirings.for_agent_group(connection, group.id)],
                destinations.for_agent_group(connection, group.id),
                sessions.page(connection, agent_group_id=group.id, limit=SESSIONS_SHOWN),
            )

        provider, wired, granted, newest = await self._host.store.read(read)
        return {
            "group": group_json(group, provider) | {"path": str(self._host.home.groups / group.folder)},
            "wirings": wired,
            "destinations": [asdict(each) for each in granted],
            "sessions": await sessions_json(self._host, newest),
        }

    async def explain(self, params: Params, _emit: Emit) -> Json:
        """Everything that the group's next container could read, write, reach and run."""
        folder = params.text("folder")
        params.done()
        group = await group_named(self._host, folder)

        def read(connection: Connection) -> tuple[list[Destination], list[Session], ContainerConfig]:
            return (
                destinations.for_agent_group(connection, group.id),
                sessions.page(connection, agent_group_id=group.id, limit=1),
                container_configs.of(connection, group.id),
            )

        granted, newest, config = await self._host.store.read(read)
        found = await self._host.explainer.explain(group, newest[0] if newest else None, granted)
        return {"group": group.folder, "not_installed": await self._host.images.shortcoming(group, config), **found}


def _groups(connection: Connection) -> list[tuple[AgentGroup, str | None]]:
    return [
        (group, container_configs.provider_of(connection, group.id)) for group in agent_groups.all_groups(connection)
    ]


def _wiring_json(connection: Connection, wiring: Wiring) -> Json:
    chat = messaging_groups.by_id(connection, wiring.messaging_group_id)
    return {
        "chat": f"{chat.channel_type}:{chat.platform_id}" if chat else wiring.messaging_group_id,
        "engage_mode": wiring.engage_mode,
        "engage_pattern": wiring.engage_pattern,
        "session_mode": wiring.session_mode,
        "sender_scope": wiring.sender_scope,
        "priority": wiring.priority,
    }
