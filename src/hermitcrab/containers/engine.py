"""The port to what makes containers. Adapters are in `engines/`; one conformance suite holds for all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hermitcrab.model.container import (
    Capabilities,
    ContainerSpec,
    ContainerStats,
    ContainerView,
    EngineEvent,
    Finding,
)
from hermitcrab.model.ids import InstallationId


class Engine(Protocol):
    """Makes, runs and ends containers of one installation.

    Every method raises EngineError with a typed failure when the engine cannot be asked (`runtime-unavailable`) or
    refuses. An engine that cannot be asked never looks like one that has nothing (law 1). Methods that end or remove
    something are idempotent: what is gone already is success. Only containers that carry the installation's label
    are seen or touched; a foreign container under our name raises `name-in-use`.
    """

    name: str

    async def capabilities(self) -> Capabilities:
        """What this engine can keep of a spec on this machine."""

    async def preflight(self) -> list[Finding]:
        """Everything that must hold before the engine can be used, each with its fix. Never raises."""

    async def ensure_image(self, image: str | None) -> None:
        """Return if `image` can be used; raise `image-unavailable` with the command that makes it."""

    async def python(self, image: str | None) -> tuple[int, int]:
        """The version of the Python that runs our programs in containers of `image`. Raises as `ensure_image` does."""

    async def create(self, spec: ContainerSpec) -> None:
        """Make the container without starting it. Raises `name-in-use` if one of that name exists."""

    async def start(self, name: str) -> None:
        """Start a created container and return when its main process runs."""

    async def freeze(self, name: str) -> None:
        """Stop giving it CPU time, keeping its memory. Freezing a frozen one is success."""

    async def thaw(self, name: str) -> None:
        """Undo `freeze`. Thawing a running one is success."""

    async def stop(self, name: str, *, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s`; returns when it has ended. Thaws first if it is frozen."""

    async def remove(self, name: str) -> None:
        """Kill it if it runs, and forget it with all that the engine kept for it."""

    async def inspect(self, name: str) -> ContainerView | None:
        """The container as it is now, or None when there is none of that name."""

    async def containers(self) -> list[ContainerView]:
        """Every container of this installation, ended ones too."""

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """Hints for as long as the context is open; entered = subscribed. Begins with `resync` after each gap."""

    async def logs(self, name: str, *, lines: int) -> list[str]:
        """The last lines that the container wrote, both streams in one, oldest first."""

    async def stats(self, name: str) -> ContainerStats:
        """What it uses now."""

    async def aclose(self) -> None:
        """Let go of the engine. Containers stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What every engine adapter is opened with."""

    installation: InstallationId
    folder: Path
    """The engine's own folder in the home: host only, made by the adapter when it needs one."""
    socket: str | None = None
    """Path of the engine's API socket, where it has one; None: the usual places."""


class EngineFactory(Protocol):
    """What an entry point of group `hermitcrab.engines` names. Opening does no IO; the first call does."""

    def __call__(self, options: EngineOptions) -> Engine: ...
