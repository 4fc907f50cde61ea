"""`groups.config.*`: how an agent group's containers are to be."""

from __future__ import annotations

from collections.abc import Mapping
from sqlite3 import Connection
from typing import Any

from hermitcrab.control.host import ControlledHost
from hermitcrab.control.lookup import group_named
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import Emit
from hermitcrab.errors import BadInputError
from hermitcrab.groups.configuration import Configurator
from hermitcrab.groups.skills import SkillShelf
from hermitcrab.logic.container_config import whole_document
from hermitcrab.logic.container_config_edit import with_value, without_value
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import SessionId
from hermitcrab.store import container_configs, sessions

MOST_CHANGES = 64


class ConfigMethods:
    def __init__(self, host: ControlledHost) -> None:
        self._host = host
        self._configurator = Configurator(host.store, SkillShelf(host.home))

    async def show(self, params: Params, _emit: Emit) -> Json:
        folder = params.text("folder")
        params.done()
        group = await group_named(self._host, folder)
        config = await self._host.store.read(lambda connection: container_configs.of(connection, group.id))
        return await self._shown(group, config)

    async def change(self, params: Params, _emit: Emit) -> Json:
        """`set`: values by dotted key; `unset`: dotted keys. All of them or, if the outcome cannot be used, none."""
        folder, given, dropped = params.text("folder"), params.json("set"), params.texts("unset", most=MOST_CHANGES)
        params.done()
        if not 0 < len(given) + len(dropped) <= MOST_CHANGES:
            raise BadInputError(f"There must be 1 to {MOST_CHANGES} changes.")
        group = await group_named(self._host, folder)

        def edit(document: Mapping[str, Any]) -> Mapping[str, Any]:
            for key in dropped:
                document = without_value(document, key)
            for key, value in given.items():
                document = with_value(document, key, value)
            return document

        return await self._shown(group, await self._configurator.change(group, edit))

    async def replace(self, params: Params, _emit: Emit) -> Json:
        folder, document = params.text("folder"), params.json("config")
        params.done()
        group = await group_named(self._host, folder)
        return await self._shown(group, await self._configurator.replace(group, document))

    async def _shown(self, group: AgentGroup, config: ContainerConfig) -> Json:
        """`earlier`: sessions that have a container of another config than this, perhaps, or were refused one."""
        phases = {view.session_id: view.phase for view in self._host.runner.views() if view.phase != "absent"}

        def of_group(connection: Connection) -> list[Json]:
            found = (sessions.by_id(connection, SessionId(each)) for each in phases)
            return [
                {"session": each.id, "phase": phases[each.id]}
                for each in found
                if each is not None and each.agent_group_id == group.id
            ]

        settings = self._host.settings
        return {
            "config": whole_document(config),
            "installation": {
                "provider": settings.agents.provider,
                "model": settings.agents.model,
                "effort": settings.agents.effort,
                "image": settings.containers.image,
                "assistant_name": settings.agents.assistant_name or group.name,
                "max_messages_per_prompt": settings.agents.max_messages_per_prompt,
                "limits.memory_mb": settings.containers.memory_mb,
                "limits.pids": settings.containers.pids,
                "limits.cpus": settings.containers.cpus,
            },
            "earlier": await self._host.store.read(of_group),
        }
