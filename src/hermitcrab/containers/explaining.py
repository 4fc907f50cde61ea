"""What a group's next container would be, without making anything of it: for `crab explain`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from anyio import to_thread

from hermitcrab.containers.engine import Engine
from hermitcrab.containers.engines.bubblewrap_root import host_programs
from hermitcrab.containers.lifecycle.slot import Slot
from hermitcrab.containers.lifecycle.starting import Starter
from hermitcrab.errors import EngineError
from hermitcrab.logic.explanation import explain
from hermitcrab.logic.lifecycle import Life, Phase
from hermitcrab.logic.spec import container_name
from hermitcrab.model.groups import AgentGroup, Destination
from hermitcrab.model.ids import Generation, InstallationId, SessionId
from hermitcrab.model.sessions import Session

NEXT_SESSION = SessionId("next-session")
"""Stands for the session of a group that has none yet."""


class Explainer:
    def __init__(
        self, *, installation: InstallationId, starter: Starter, engine: Engine, routes: Mapping[str, str]
    ) -> None:
        self._installation, self._starter, self._engine = installation, starter, engine
        self._routes = dict(routes)

    async def explain(
        self, group: AgentGroup, session: Session | None, destinations: Iterable[Destination]
    ) -> dict[str, Any]:
        """Raises EngineError when no container could be made: what is wrong then is the answer."""
        meant = session or Session(id=NEXT_SESSION, agent_group_id=group.id, messaging_group_id=None)
        slot = Slot(
            session=meant,
            group=group,
            name=container_name(self._installation, meant.id),
            life=Life(Phase.ABSENT, meant.generation),
        )
        spec, documents = await self._starter.plan(slot, Generation(meant.generation + 1))
        try:
            capabilities = await self._engine.capabilities()
        except EngineError:
            capabilities = None  # What it can keep is not known; all else is.
        found = explain(
            spec,
            decisions=slot.decisions,
            capabilities=capabilities,
            config=slot.config,
            allowance=self._starter.allowance(slot),
            routes=self._routes,
            destinations=destinations,
            host_programs=await to_thread.run_sync(host_programs) if spec.image is None else (),
            skills={path.split("/")[1] for path in documents if path.startswith("skills/")},
        )
        return {"session": None if session is None else session.id, **found}
