"""What a session's runner is told: configuration, destinations, its own chat. Read afresh at each hello."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import structlog
from anyio import to_thread

from hermitcrab.containers.lifecycle.slot import AskPython
from hermitcrab.containers.link.exchange import Surroundings
from hermitcrab.containers.materials.packages import ensure_provider_packages, provider_packages_folder
from hermitcrab.errors import ConfigError, EngineError, Failure
from hermitcrab.groups.images import GroupImages
from hermitcrab.groups.materials import group_documents
from hermitcrab.groups.skills import SkillShelf
from hermitcrab.logic.mcp_servers import for_harness
from hermitcrab.logic.precedence import provider_name
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.documents import Document
from hermitcrab.model.groups import AgentGroup, Destination
from hermitcrab.model.ids import SessionId
from hermitcrab.model.messages import Address
from hermitcrab.model.sessions import Session
from hermitcrab.settings.model import Settings
from hermitcrab.store import container_configs, destinations, messaging_groups
from hermitcrab.store.database import Store
from hermitcrab_wire.limits import BEATS_BEFORE_SILENT

log = structlog.get_logger(__name__)

PROVIDERS = ("claude", "echo")
"""Providers that the runner has. `echo` repeats what it hears and needs nothing."""

PROVIDERS_WITH_PACKAGES = frozenset({"claude"})


class GroupSurveyor:
    """Implements `containers.runner.Surveyor` from the store and the settings."""

    def __init__(
        self, store: Store, settings: Settings, shelf: SkillShelf, *, images: GroupImages, package_cache: Path
    ) -> None:
        self._store, self._settings, self._shelf = store, settings, shelf
        self._images, self._package_cache = images, package_cache
        self._foreseen: dict[SessionId, tuple[ContainerConfig, Surroundings]] = {}
        self._foreseen_at = -1

    async def config(self, group: AgentGroup) -> ContainerConfig:
        try:
            return await self._store.read(lambda connection: container_configs.of(connection, group.id))
        except ConfigError as error:
            # Of this group alone: the store itself is well, and trying again does not help.
            raise EngineError(Failure.SPEC_INVALID, error.message, hint=error.hint) from error

    def provider_of(self, session: Session, config: ContainerConfig) -> str:
        """The runner gets what is decided here, and nothing else."""
        return provider_name(session.provider, config.provider, self._settings.agents.provider)

    async def documents(
        self, group: AgentGroup, config: ContainerConfig, told: Mapping[str, Any]
    ) -> Mapping[str, Document]:
        return await to_thread.run_sync(group_documents, self._shelf, group, config, told)

    async def image(self, group: AgentGroup, config: ContainerConfig) -> str | None:
        return await self._images.image_for(group, config)

    async def packages(self, provider: str, python: AskPython) -> Path | None:
        if provider not in PROVIDERS:
            raise EngineError(
                Failure.SPEC_INVALID,
                f"there is no provider {provider[:40]!r}",
                hint=f"Known providers: {', '.join(PROVIDERS)}.",
            )
        if provider not in PROVIDERS_WITH_PACKAGES:
            return None
        return await ensure_provider_packages(
            provider,
            self._package_cache,
            progress=lambda text: log.info("packages", provider=provider, text=text),
            python=await python(),
        )

    async def packages_folder(self, provider: str, python: AskPython) -> Path | None:
        if provider not in PROVIDERS_WITH_PACKAGES:
            return None
        return provider_packages_folder(provider, self._package_cache, python=await python())

    async def surroundings(self, session: Session, group: AgentGroup, config: ContainerConfig) -> Surroundings:
        if (known := self._still_so(session.id, config)) is not None:
            return known
        return await self._store.read(
            lambda connection: self._read(
                connection, session, group, config, destinations.for_agent_group(connection, group.id)
            )
        )

    async def foresee(self, sessions: Sequence[Session], group: AgentGroup, config: ContainerConfig) -> None:
        at = self._store.changes

        def read(connection: Connection) -> dict[SessionId, tuple[ContainerConfig, Surroundings]]:
            reached = destinations.for_agent_group(connection, group.id)
            return {each.id: (config, self._read(connection, each, group, config, reached)) for each in sessions}

        found = await self._store.read(read)
        if at != self._foreseen_at:
            self._foreseen.clear()
        self._foreseen_at = at
        self._foreseen |= found

    def _still_so(self, session_id: SessionId, config: ContainerConfig) -> Surroundings | None:
        """What was foreseen of the session, if nothing was written since then."""
        if self._store.changes != self._foreseen_at:
            self._foreseen.clear()
        known, found = self._foreseen.pop(session_id, (None, None))
        return found if known == config else None

    def _read(
        self,
        connection: Connection,
        session: Session,
        group: AgentGroup,
        config: ContainerConfig,
        reached: list[Destination],
    ) -> Surroundings:
        agents = self._settings.agents
        chat = (
            messaging_groups.by_id(connection, session.messaging_group_id)
            if session.messaging_group_id is not None
            else None
        )
        return Surroundings(
            config={
                "provider": self.provider_of(session, config),
                "assistant_name": config.assistant_name or agents.assistant_name or group.name,
                "model": config.model or agents.model,
                "effort": config.effort or agents.effort,
                "max_messages_per_prompt": config.max_messages_per_prompt or agents.max_messages_per_prompt,
                "timezone": agents.timezone,
                "tool_timeout_s": agents.tool_timeout_s,
                "tool_grace_s": agents.tool_grace_s,
                "beat_s": self._settings.containers.silent_before_kill_s / BEATS_BEFORE_SILENT,
                "mcp_servers": for_harness(config.mcp_servers),
            },
            destinations=reached,
            home_address=Address(
                channel_type=chat.channel_type, platform_id=chat.platform_id, thread_id=session.thread_id
            )
            if chat is not None
            else None,
        )
