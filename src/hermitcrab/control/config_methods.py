"""`groups.config.*`: how an agent group's containers are to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from sqlite3 import Connection
from typing import Any

from anyio import to_thread

from hermitcrab.containers.materials.extra_mounts import decide_for
from hermitcrab.control.host import ControlledHost
from hermitcrab.control.lookup import group_named
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import Emit
from hermitcrab.errors import BadInputError
from hermitcrab.groups.configuration import Configurator, Edit, replacing
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

    async def propose(self, params: Params, _emit: Emit) -> Json:
        """What a change would come to. `set` and `unset` as for `change`, or `config` as for `replace`."""
        folder, edit = params.text("folder"), _edit(params)
        params.done()
        group = await group_named(self._host, folder)
        proposal = await self._configurator.propose(group, edit)
        return {
            "before": whole_document(proposal.before),
            "after": whole_document(proposal.after),
            "differences": [asdict(each) for each in proposal.differences],
            "widening": list(proposal.widening),
            "refused_mounts": await self._refused_mounts(group, proposal.after),
            "agreement": proposal.agreement,
        }

    async def change(self, params: Params, _emit: Emit) -> Json:
        """`set`: values by dotted key; `unset`: dotted keys; or `config`, a whole document. All of it or none.

        `agreement`: of the proposal that a person said yes to. A change that widens what agents may do needs one.
        """
        folder, edit, agreed = params.text("folder"), _edit(params), params.optional_text("agreement")
        params.done()
        group = await group_named(self._host, folder)
        config = await self._configurator.change(group, edit, agreed=agreed)
        self._host.runner.reconsider(group.id)
        return await self._shown(group, config)

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
            "refused_mounts": await self._refused_mounts(group, config),
            "not_installed": await self._host.images.shortcoming(group, config),
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
                "limits.workspace_mb": settings.containers.workspace_mb,
                "limits.workspace_files": settings.containers.workspace_files,
            },
            "earlier": await self._host.store.read(of_group),
        }

    async def _refused_mounts(self, group: AgentGroup, config: ContainerConfig) -> list[Json]:
        """Those that the allow-list as it stands would not give to a container."""
        decisions = await to_thread.run_sync(decide_for, self._host.home, group.folder, config)
        return [{"host": each.request.path, "reason": each.reason} for each in decisions if not each.allowed]


def _edit(params: Params) -> Edit:
    given, dropped = params.json("set"), params.texts("unset", most=MOST_CHANGES)
    document = params.optional_json("config")
    if document is not None:
        if given or dropped:
            raise BadInputError("A whole config takes no single changes beside it.")
        return replacing(document)
    if not 0 < len(given) + len(dropped) <= MOST_CHANGES:
        raise BadInputError(f"There must be 1 to {MOST_CHANGES} changes.")

    def edit(stored: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        document = stored()
        for key in dropped:
            document = without_value(document, key)
        for key, value in given.items():
            document = with_value(document, key, value)
        return document

    return edit
