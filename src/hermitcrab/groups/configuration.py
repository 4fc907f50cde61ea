"""Changing the container config of an agent group: read, changed, checked and put back in one transaction.

What gives a group's agents something that they had not needs the agreement of a person who was shown that very change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from sqlite3 import Connection
from typing import Any

from anyio import to_thread

from hermitcrab.errors import BadInputError, ConfigError, ConflictError, NotAgreedError
from hermitcrab.groups.skills import SkillShelf
from hermitcrab.groups.surroundings import PROVIDERS
from hermitcrab.logic.config_change import Difference, agreement, differences, widening
from hermitcrab.logic.container_config import parse
from hermitcrab.logic.skills import missing, missing_hint
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.groups import AgentGroup
from hermitcrab.store import container_configs
from hermitcrab.store.database import Store

Edit = Callable[[Callable[[], Mapping[str, Any]]], Mapping[str, Any]]
"""The document that is to be. It is handed a function that gives the stored one, and raises if that is no document."""


def replacing(document: Mapping[str, Any]) -> Edit:
    """A whole new document, whatever there was before."""
    return lambda _stored: document


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A change that can be made: what a person is shown before it is."""

    before: ContainerConfig
    after: ContainerConfig

    @property
    def differences(self) -> tuple[Difference, ...]:
        return differences(self.before, self.after)

    @property
    def widening(self) -> tuple[str, ...]:
        return widening(self.before, self.after)

    @property
    def agreement(self) -> str:
        return agreement(self.before, self.after)


class Configurator:
    def __init__(self, store: Store, shelf: SkillShelf) -> None:
        self._store, self._shelf = store, shelf

    async def propose(self, group: AgentGroup, edit: Edit) -> Proposal:
        """What the change would come to, with nothing changed. Raises BadInputError as `change` would."""
        skills = await to_thread.run_sync(self._shelf.folders, group.folder)
        return await self._store.read(lambda connection: _proposal(connection, group, edit, skills))

    async def change(self, group: AgentGroup, edit: Edit, *, agreed: str | None = None) -> ContainerConfig:
        """The new config. `agreed`: the agreement of the proposal that a person said yes to.

        Raises BadInputError, NotAgreedError for a change that nobody has agreed to, and ConflictError when the config
        is not any more what it was when they did; nothing was changed then.
        """
        skills = await to_thread.run_sync(self._shelf.folders, group.folder)

        def work(connection: Connection) -> ContainerConfig:
            proposal = _proposal(connection, group, edit, skills)
            if agreed is None and proposal.widening:
                raise NotAgreedError(
                    f"A person must agree to this change of group {group.folder}: {' '.join(proposal.widening)}",
                    hint="Nothing was changed. crab groups config shows the change, and asks.",
                )
            if agreed not in {None, proposal.agreement}:
                raise ConflictError(
                    f"The config of group {group.folder} was changed meanwhile", hint="Look at it, and try again."
                )
            container_configs.put(connection, group.id, proposal.after)
            return proposal.after

        return await self._store.write(work)


def _proposal(connection: Connection, group: AgentGroup, edit: Edit, skills: Collection[str]) -> Proposal:
    after = parse(edit(partial(container_configs.document, connection, group.id)))
    check(after, skills)
    try:
        before = container_configs.of(connection, group.id)
    except ConfigError:
        before = ContainerConfig()  # No container was made of what cannot be used.
    return Proposal(before=before, after=after)


def check(config: ContainerConfig, skills: Collection[str]) -> None:
    """Raises BadInputError when it names a provider or a skill that there is not.

    Which providers a foreign runner has, only that one knows.
    """
    if config.runner == "own" and config.provider is not None and config.provider not in PROVIDERS:
        raise BadInputError(
            f"There is no provider {config.provider!r}", hint=f"Known providers: {', '.join(PROVIDERS)}."
        )
    for name in missing(config.skills, skills):
        raise BadInputError(f"There is no skill {name!r}", hint=missing_hint(name, skills))
