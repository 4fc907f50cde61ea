"""What an administrator decided on the containers of one agent group. Only the host has it; no agent can change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from hermitcrab.model.container import Hardening

ALL_SKILLS: Literal["all"] = "all"

CliScope = Literal["disabled", "group", "global"]
RunnerKind = Literal["own", "foreign"]


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """A tool server for the agent harness: a program in the container, or the URL of one that the gateway reaches."""

    command: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    url: str | None = None
    transport: Literal["http", "sse"] = "http"
    """How it is spoken to at `url`."""
    instructions: str = ""
    """For the agent: when and how to use it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditionalMount:
    """A wish. The allow-list decides on it at every start."""

    host_path: str
    name: str | None = None
    """Below /workspace/extra; None: the last part of the path."""
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """What the group's image holds on top of the base."""

    apt: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.apt or self.npm or self.pip)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimits:
    """None: the installation's."""

    memory_mb: int | None = None
    pids: int | None = None
    cpus: float | None = None
    workspace_mb: int | None = None
    workspace_files: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig:
    """Everything that can be told of one agent group's containers. None: what the installation's settings say.

    `logic/container_config.py` makes one of what people write, and is where every bound is.
    """

    provider: str | None = None
    model: str | None = None
    effort: str | None = None
    image: str | None = None
    assistant_name: str | None = None
    max_messages_per_prompt: int | None = None
    skills: Literal["all"] | tuple[str, ...] = ALL_SKILLS
    mcp_servers: Mapping[str, McpServer] = field(default_factory=lambda: MappingProxyType({}))
    packages: Packages = field(default_factory=Packages)
    additional_mounts: tuple[AdditionalMount, ...] = ()
    cli_scope: CliScope = "group"
    """What the agent may do with the host's commands: nothing, look after its own group, or after all."""
    limits: GroupLimits = field(default_factory=GroupLimits)
    hardening: Hardening = "standard"
    foreign_command: tuple[str, ...] = ()
    """Starts an unmodified runner of the earlier system, in place of our own; empty: our own runs."""

    @property
    def runner(self) -> RunnerKind:
        return "foreign" if self.foreign_command else "own"
