"""What the host keeps in memory of one session's container, and what the rest of the host sees of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import anyio
import structlog

from hermitcrab.containers.link.exchange import Exchange, Surroundings
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.lifecycle import Life, Phase, Signal, step
from hermitcrab.logic.mounts import Decision
from hermitcrab.logic.workspace import Free, Usage
from hermitcrab.model.container import ContainerSpec
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.documents import Document
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.model.messages import OutboundRow
from hermitcrab.model.sessions import Session

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeOutcome:
    """What a wake came to. `wake` never raises."""

    kind: Literal["live", "started", "thawed", "waiting", "called-off", "failed"]
    """waiting: it is wanted, and comes when what `text` says is over. called-off: somebody wants it no more."""
    failure: Failure | None = None
    text: str = ""
    retry_in_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """One session's container, as `crab status` shows it."""

    session_id: str
    phase: str
    generation: int
    activity: str
    detail: str | None
    container: str
    engine: str
    memory_bytes: int | None
    workspace_bytes: int | None
    """Kept on disk when it was last measured."""
    unrealized: tuple[str, ...]
    text: str
    place: int | None = None
    """In the queue of those that may not start yet."""


AskPython = Callable[[], Awaitable[tuple[int, int]]]


class Surveyor(Protocol):
    """Who knows how a session's container is to be, and what its runner is told at hello."""

    async def config(self, group: AgentGroup) -> ContainerConfig:
        """What was decided on the group's containers, as it stands now.

        Raises EngineError, `spec-invalid` when what is stored cannot be used.
        """

    def provider_of(self, session: Session, config: ContainerConfig) -> str: ...

    async def surroundings(self, session: Session, group: AgentGroup, config: ContainerConfig) -> Surroundings: ...

    async def foresee(self, sessions: Sequence[Session], group: AgentGroup, config: ContainerConfig) -> None:
        """Look up all at once what `surroundings` will be asked of these; used only if nothing changes before."""

    async def documents(
        self, group: AgentGroup, config: ContainerConfig, told: Mapping[str, Any]
    ) -> Mapping[str, Document]:
        """What the group's containers read, by path. `told`: the surroundings' config."""

    async def image(self, group: AgentGroup, config: ContainerConfig) -> str | None:
        """What the container is made from. None: the host's own programs."""

    async def packages(self, provider: str, python: AskPython) -> Path | None:
        """The folder with the provider's Python packages, made if need be. None: it needs none.

        `python`: which version is in the container; asked only if there are packages. Raises EngineError,
        `spec-invalid` for a provider that there is not.
        """

    async def packages_folder(self, provider: str, python: AskPython) -> Path | None:
        """Where that folder is or will be, with nothing made."""


class Door(Protocol):
    """The gateway, as far as containers need it."""

    async def open(self, session: SessionId, generation: Generation, folder: Path) -> object: ...

    async def revoke(self, session: SessionId, generation: Generation) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Who is told what happens in sessions."""

    said: Callable[[Session, Sequence[OutboundRow]], None]
    """Something may wait for delivery: these rows, if nothing else is new."""
    working: Callable[[Session], None]
    resting: Callable[[Session], None]
    trouble: Callable[[Session, str], Awaitable[None]]
    """One sentence for the session's chat."""
    asked: Callable[[Session, dict[str, Any]], Awaitable[None]]
    """An agent asks something of the host. Raises RefusedError when it does not get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a container was last seen to keep on disk."""

    at: float
    free: Free
    """On the whole disk, then."""
    took_s: float = 0.0
    usage: Usage | None = None
    """None: it was not measured yet."""


@dataclass(slots=True)
class Slot:
    session: Session
    group: AgentGroup
    name: str
    life: Life
    config: ContainerConfig = field(default_factory=ContainerConfig)
    """What its container was made with: read once for each start, and at adoption."""
    spec: ContainerSpec | None = None
    decisions: tuple[Decision, ...] = ()
    """On the additional mounts that the config asks for."""
    refusal: EngineError | None = None
    """Why the container that said hello is not given anything."""
    lock: anyio.Lock = field(default_factory=lambda: anyio.Lock(fast_acquire=True))
    exchange: Exchange | None = None
    resources: AsyncExitStack | None = None
    starting: anyio.Event | None = None
    start_scope: anyio.CancelScope | None = None
    """Cancelled to call off the start that is under way."""
    outcome: WakeOutcome | None = None
    wanted: bool = False
    """A message came, or somebody asked, while it could not be started."""
    retry: int = 0
    """Number of the one timer that may start it again; an earlier timer does nothing."""
    hello: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    wanted_end: str | None = None
    """The cause for which we end it."""
    end_text: str | None = None
    """What its certificate is to say, where that is known better than from the cause."""
    farewell: str | None = None
    engine_was_away: bool = False
    """The engine could not be asked, or was not heard, since it last said that this container runs."""
    failures: int = 0
    """Starts and ends in a row that nobody wanted."""
    stuck_tries: int = 0
    """How often it was tried in vain to end it."""
    offences: int = 0
    troubled: bool = False
    started_at: float | None = None
    active_at: float = 0.0
    measured: Measured | None = None
    text: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    _gave_up: anyio.Event = field(default_factory=anyio.Event)

    async def ended_or_stuck(self) -> None:
        """Until its end is drawn up, or whoever was ending it has to leave it for now."""
        async with anyio.create_task_group() as waiting:

            async def until(event: anyio.Event) -> None:
                await event.wait()
                waiting.cancel_scope.cancel()

            waiting.start_soon(until, self.ended)
            waiting.start_soon(until, self._gave_up)

    def notify_stuck(self) -> None:
        self._gave_up.set()
        self._gave_up = anyio.Event()

    def take(self, signal: Signal, generation: Generation | None = None) -> bool:
        """Apply a signal; False if it was late or out of place."""
        result = step(self.life, signal, self.life.generation if generation is None else generation)
        if result.accepted:
            self.life = result.life
        else:
            log.info("lifecycle.ignored", session=self.session.id, phase=self.life.phase, signal=signal)
        return result.accepted

    def view(self, *, engine: str, unrealized: tuple[str, ...]) -> SessionView:
        pulse = self.exchange.pulse if self.exchange is not None else None
        return SessionView(
            session_id=self.session.id,
            phase=self.life.phase.value,
            generation=self.life.generation,
            activity=pulse.activity if pulse and self.life.phase is Phase.READY else "",
            detail=pulse.detail if pulse else None,
            container=self.name,
            engine=engine,
            memory_bytes=pulse.rss_kb * 1024 if pulse and pulse.rss_kb is not None else None,
            workspace_bytes=self.measured.usage.bytes if self.measured and self.measured.usage else None,
            unrealized=unrealized,
            text=self.text or (pulse.note if pulse is not None else ""),
        )

    async def close_resources(self) -> None:
        """Close the session's sockets. Idempotent."""
        resources, self.resources, self.exchange = self.resources, None, None
        if resources is not None:
            await resources.aclose()
