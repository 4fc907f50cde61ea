"""Sessions: one conversation of an agent group."""

from __future__ import annotations

from dataclasses import dataclass

from hermitcrab.model.ids import AgentGroupId, Generation, MessagingGroupId, SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    id: SessionId
    agent_group_id: AgentGroupId
    messaging_group_id: MessagingGroupId | None
    thread_id: str | None = None
    provider: str | None = None
    """None: the agent group's provider."""
    generation: Generation = Generation(0)
    """The last generation that was claimed. Whether a container runs, only the engine knows (law 1)."""
    created_at: str = ""
    last_active_at: str | None = None
