"""`groups.*`: agent groups."""

from __future__ import annotations

from dataclasses import asdict
from sqlite3 import Connection

from hermitcrab.control.host import ControlledHost
from hermitcrab.control.lookup import group_json, group_named, sessions_json
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import Emit
from hermitcrab.groups.creation import create_group
from hermitcrab.model.groups import Destination, Wiring
from hermitcrab.model.sessions import Session
from hermitcrab.store import agent_groups, destinations, messaging_groups, sessions, wirings

SESSIONS_SHOWN = 20


class GroupMethods:
    def __init__(self, host: ControlledHost) -> None:
        self._host = host

    async def list(self, params: Params, _emit: Emit) -> Json:
        params.done()
        found = await self._host.store.read(agent_groups.all_groups)
        return {"groups": [group_json(group) for group in found]}

    async def create(self, params: Params, _emit: Emit) -> Json:
        folder, name, provider = params.text("folder"), params.optional_text("name"), params.optional_text("provider")
        params.done()
        return {"group": group_json(await create_group(self._host.store, folder=folder, name=name, provider=provider))}

    async def show(self, params: Params, _emit: Emit) -> Json:
        folder = params.text("folder")
        params.done()
        group = await group_named(self._host, folder)

        def read(connection: Connection) -> tuple[list[Json], list[Destination], list[Session]]:
            return (
                [_wiring_json(connection, each) for each in wirings.for_agent_group(connection, group.id)],
                destinations.for_agent_group(connection, group.id),
                sessions.page(connection, agent_group_id=group.id, limit=SESSIONS_SHOWN),
            )

        wired, granted, newest = await self._host.store.read(read)
        return {
            "group": group_json(group) | {"path": str(self._host.home.groups / group.folder)},
            "wirings": wired,
            "destinations": [asdict(each) for each in granted],
            "sessions": await sessions_json(self._host, newest),
        }


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
