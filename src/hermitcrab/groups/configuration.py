"""Changing the container config of an agent group: read, changed, checked and put back in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from sqlite3 import Connection
from typing import Any

from anyio import to_thread

from hermitcrab.errors import BadInputError
from hermitcrab.groups.skills import SkillShelf
from hermitcrab.groups.surroundings import PROVIDERS
from hermitcrab.logic.container_config import parse
from hermitcrab.logic.skills import missing, missing_hint
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.groups import AgentGroup
from hermitcrab.store import container_configs
from hermitcrab.store.database import Store

Edit = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From the document that is stored to the one that is to be."""


class Configurator:
    def __init__(self, store: Store, shelf: SkillShelf) -> None:
        self._store, self._shelf = store, shelf

    async def change(self, group: AgentGroup, edit: Edit) -> ContainerConfig:
        """The new config. Raises BadInputError, and then nothing was changed."""
        return await self._put(group, lambda connection: edit(container_configs.document(connection, group.id)))

    async def replace(self, group: AgentGroup, document: Mapping[str, Any]) -> ContainerConfig:
        """As `change`, with a whole new document, whatever there was before."""
        return await self._put(group, lambda _: document)

    async def _put(self, group: AgentGroup, make: Callable[[Connection], Mapping[str, Any]]) -> ContainerConfig:
        skills = await to_thread.run_sync(self._shelf.folders, group.folder)

        def work(connection: Connection) -> ContainerConfig:
            config = parse(make(connection))
            check(config, skills)
            container_configs.put(connection, group.id, config)
            return config

        return await self._store.write(work)


def check(config: ContainerConfig, skills: Collection[str]) -> None:
    """Raises BadInputError when it names a provider or a skill that there is not."""
    if config.provider is not None and config.provider not in PROVIDERS:
        raise BadInputError(
            f"There is no provider {config.provider!r}", hint=f"Known providers: {', '.join(PROVIDERS)}."
        )
    for name in missing(config.skills, skills):
        raise BadInputError(f"There is no skill {name!r}", hint=missing_hint(name, skills))
