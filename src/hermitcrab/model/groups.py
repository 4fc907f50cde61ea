"""Agent groups, messaging groups and the wirings between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hermitcrab.model.ids import AgentGroupId, MessagingGroupId, WiringId

EngageMode = Literal["pattern", "mention", "mention-sticky"]
SessionMode = Literal["shared", "per-thread", "agent-shared"]
SenderScope = Literal["all", "known"]
IgnoredPolicy = Literal["drop", "accumulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentGroup:
    """A named agent and its folder. How its containers are, its `ContainerConfig` says."""

    id: AgentGroupId
    name: str
    folder: str
    created_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagingGroup:
    """One chat on one channel."""

    id: MessagingGroupId
    channel_type: str
    platform_id: str
    name: str | None = None
    is_group: bool = False
    created_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Which agent hears which chat, and when it answers."""

    id: WiringId
    messaging_group_id: MessagingGroupId
    agent_group_id: AgentGroupId
    engage_mode: EngageMode = "mention"
    engage_pattern: str | None = None
    session_mode: SessionMode = "shared"
    sender_scope: SenderScope = "all"
    ignored_message_policy: IgnoredPolicy = "drop"
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A place that an agent group may send to, under the name by which the agent knows it."""

    name: str
    type: Literal["channel", "agent"]
    display_name: str | None = None
    channel_type: str | None = None
    platform_id: str | None = None
    agent_group_id: str | None = None
