"""Waking, stopping and ending the containers of sessions: the heart of the host.

One `Slot` for each session that has a container or wants one; what may happen next is decided in `logic/lifecycle.py`,
and this file does it. The engine is the truth about what runs (law 1): its events are hints, after which it is asked.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import anyio
import anyio.abc
import structlog
from anyio import to_thread

from hermitcrab.containers import certificates
from hermitcrab.containers.certificates import Certificate
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.exchange import Exchange, Outward, Surroundings
from hermitcrab.containers.link import listening
from hermitcrab.containers.materials import MaterialsDesk, interpreter_env, session_folders
from hermitcrab.errors import ConflictError, EngineError, Failure, HermitcrabError, NotFoundError
from hermitcrab.logic import retry
from hermitcrab.logic.ending import HEALTHY_AFTER_S, TRIES_AT_MOST, Ending, explain
from hermitcrab.logic.lifecycle import LIVE, Life, Phase, Signal, step
from hermitcrab.logic.spec import Materials, build_spec, container_name
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.container import ContainerSpec, ContainerStatus, ContainerView, ExitRecord, Limits
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import Generation, InstallationId, MessageId, SessionId, new_id
from hermitcrab.model.messages import InboundRow, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import Settings
from hermitcrab.store import agent_groups, sessions
from hermitcrab.store.database import Store
from hermitcrab_wire import faults, frames

SWEEP_INTERVAL_S = 5.0
"""How often live sessions are looked over for silence and quiet. Work is by live containers, not by sessions."""

SILENT_AFTER_S = 30.0
"""Six missed beats: the runner's own timer beats whatever the provider does."""

OFFENCES_AT_MOST = 3
"""Broken contracts on a link before the container is ended."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeOutcome:
    """What a wake came to. `wake` never raises."""

    kind: Literal["live", "started", "thawed", "waiting", "failed"]
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
    unrealized: tuple[str, ...]
    text: str


class Surveyor(Protocol):
    """Who knows what a session's runner is told at hello."""

    async def surroundings(self, session: Session, group: AgentGroup) -> Surroundings: ...

    def provider_of(self, session: Session, group: AgentGroup) -> str: ...

    async def packages(self, provider: str) -> Path | None:
        """The folder with the provider's Python packages, made if need be. None: it needs none."""


class Door(Protocol):
    """The gateway, as far as containers need it."""

    async def open(self, session: SessionId, generation: Generation, folder: Path) -> None: ...

    async def revoke(self, session: SessionId, generation: Generation) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Who is told what happens in sessions."""

    said: Callable[[Session], None]
    working: Callable[[Session], None]
    resting: Callable[[Session], None]
    trouble: Callable[[Session, str], Awaitable[None]]
    """One sentence for the session's chat."""


@dataclass(slots=True)
class Slot:
    session: Session
    group: AgentGroup
    name: str
    life: Life
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    exchange: Exchange | None = None
    resources: AsyncExitStack | None = None
    starting: anyio.Event | None = None
    outcome: WakeOutcome | None = None
    hello: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    wanted_end: str | None = None
    farewell: str | None = None
    failures: int = 0
    offences: int = 0
    troubled: bool = False
    started_at: float | None = None
    active_at: float = 0.0
    text: str = ""
    timings: dict[str, float] = field(default_factory=dict)

    def take(self, signal: Signal, generation: Generation | None = None) -> bool:
        """Apply a signal; False if it was late or out of place."""
        result = step(self.life, signal, self.life.generation if generation is None else generation)
        if result.accepted:
            self.life = result.life
        else:
            log.info("lifecycle.ignored", session=self.session.id, phase=self.life.phase, signal=signal)
        return result.accepted


class ContainerRunner:
    """Use as: `async with anyio.create_task_group() as tasks: await tasks.start(runner.run)`."""

    def __init__(
        self,
        *,
        home: Home,
        settings: Settings,
        installation: InstallationId,
        store: Store,
        mailboxes: Mailboxes,
        engine: Engine,
        desk: MaterialsDesk,
        surveyor: Surveyor,
        door: Door,
        told: Told,
        image: str | None,
        uid: int,
        gid: int,
        runner_env: Mapping[str, str] | None = None,
    ) -> None:
        self._runner_env = dict(runner_env or {})
        self._home, self._settings, self._installation = home, settings, installation
        self._store, self._mailboxes, self._engine = store, mailboxes, engine
        self._desk, self._surveyor, self._door, self._told = desk, surveyor, door, told
        self.image, self.uid, self.gid = image, uid, gid
        self._slots: dict[SessionId, Slot] = {}
        self._by_name: dict[str, SessionId] = {}
        self._admission = anyio.Semaphore(settings.containers.concurrent_starts)
        self._tasks: anyio.abc.TaskGroup | None = None
        self._unrealized: tuple[str, ...] = ()
        self._last_timings: dict[SessionId, dict[str, float]] = {}

    # For the rest of the host.

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the engine until cancelled. Started once what ran before was adopted or removed."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                capabilities = await self._engine.capabilities()
                self._unrealized = tuple(sorted(capabilities.unrealized))
            except EngineError as error:
                log.warning("engine.unavailable", engine=self._engine.name, text=error.message, hint=error.hint)
            await tasks.start(self._follow_engine)
            tasks.start_soon(self._sweep)
            task_status.started()

    async def offer(self, session: Session, row: InboundRow) -> None:
        """A row was committed: get it to a runner, soon. Never raises and never waits for a container."""
        slot = self._slots.get(session.id)
        if slot is not None and slot.exchange is not None and slot.life.phase is Phase.READY:
            slot.active_at = time.monotonic()
            await slot.exchange.offer(row)
        else:
            self.request(session)

    def request(self, session: Session) -> None:
        """Wake the session in the background."""
        if self._tasks is not None:
            self._tasks.start_soon(self.wake, session)

    async def wake(self, session: Session) -> WakeOutcome:
        """Have a live container for the session. Concurrent calls join one attempt. Never raises."""
        slot = self._slots.get(session.id)
        if slot is not None and slot.life.phase is Phase.READY:
            return WakeOutcome(kind="live")
        if slot is not None and slot.life.phase is Phase.FROZEN:
            return await self._thaw(slot)
        if slot is not None and slot.starting is not None:
            await slot.starting.wait()
            return slot.outcome or WakeOutcome(kind="failed", failure=Failure.UNKNOWN)
        if slot is not None and slot.life.phase not in {Phase.ABSENT, Phase.QUEUED}:
            return WakeOutcome(kind="waiting", text=slot.text or f"the container is {slot.life.phase}")
        if self._tasks is None:
            return WakeOutcome(kind="failed", failure=Failure.UNKNOWN, text="the host is not running")
        if slot is None:
            try:
                slot = await self._slot(session.id)
            except HermitcrabError as error:
                return WakeOutcome(kind="failed", failure=Failure.UNKNOWN, text=error.message)
        if slot.starting is None:
            slot.starting = anyio.Event()
            slot.take(Signal.WANTED)
            self._tasks.start_soon(self._start, slot)
        await slot.starting.wait()
        return slot.outcome or WakeOutcome(kind="failed", failure=Failure.UNKNOWN)

    async def kill(self, session_id: SessionId, cause: str = "stopped") -> bool:
        """End the session's container and return when it is gone. False: it had none."""
        slot = self._slots.get(session_id)
        if slot is None or slot.life.phase not in LIVE:
            return False
        await self._stop(slot, cause)
        return True

    async def stop_all(self, cause: str = "stopped") -> None:
        """End every container, all at once. A container that is starting is waited for first."""
        async with anyio.create_task_group() as tasks:
            for slot in list(self._slots.values()):
                tasks.start_soon(self._stop, slot, cause)

    async def ask(
        self, session_id: SessionId, subject: str, arguments: dict[str, Any], *, timeout_s: float
    ) -> dict[str, Any]:
        """Ask the session's runner itself, not the model. Raises ConflictError without a link or an answer."""
        slot = self._slots.get(session_id)
        if slot is None or slot.exchange is None:
            raise ConflictError(f"session {session_id} has no container", hint="Send it a message first, to wake it.")
        try:
            with anyio.fail_after(timeout_s):
                answer = await slot.exchange.ask(subject, arguments)
        except TimeoutError as error:
            raise ConflictError(f"the runner of {session_id} did not answer in {timeout_s:g} s") from error
        if answer.error is not None or answer.result is None:
            raise ConflictError(f"the runner of {session_id} refused: {answer.error}")
        return answer.result

    def views(self) -> list[SessionView]:
        """Every session that has a container or wants one."""
        return [self._view(slot) for slot in self._slots.values()]

    async def logs(self, session: Session, *, lines: int) -> list[str]:
        """The last lines of the session's container, or of its last certificate when none is left."""
        name = container_name(self._installation, session.id)
        if await self._engine.inspect(name) is not None:
            return await self._engine.logs(name, lines=lines)
        found = await self.certificates(session)
        return list(found[-1]["log"][-lines:]) if found else []

    async def certificates(self, session: Session) -> list[dict[str, Any]]:
        """The session's newest certificates, oldest first."""
        return await to_thread.run_sync(certificates.read, session_folders(self._home, session).certificates)

    def timings(self, session_id: SessionId) -> dict[str, float]:
        """Milliseconds of the session's last start, by stage."""
        return dict(self._last_timings.get(session_id, {}))

    async def adopt(self, view: ContainerView) -> bool:
        """Take over a container that an earlier host process started. False: it is not the one that should run."""
        try:
            slot = await self._slot(view.session)
        except NotFoundError:
            return False
        if view.generation != slot.session.generation or view.status not in {
            ContainerStatus.RUNNING,
            ContainerStatus.FROZEN,
        }:
            return False
        async with slot.lock:
            try:
                spec = await self._prepare(slot, view.generation)
            except (HermitcrabError, OSError) as error:
                log.warning("adopt.refused", session=view.session, text=str(error))
                return False
            if spec.spec_hash != view.spec_hash:
                log.info("adopt.changed", session=view.session, generation=view.generation)
                return False
            slot.take(Signal.ADOPTED, view.generation)
            slot.started_at = slot.active_at = time.monotonic()
            await self._listen(slot, view.generation)
            if view.status is ContainerStatus.FROZEN:
                await self._engine.thaw(view.name)
        if self._tasks is not None:
            self._tasks.start_soon(self._await_adopted, slot)
        return True

    async def certify_stale(self, view: ContainerView) -> None:
        """A certificate for a container that an earlier host left and that is about to be removed."""
        session = await self._store.read(lambda connection: sessions.by_id(connection, view.session))
        if session is None:
            return
        running = view.status in {ContainerStatus.RUNNING, ContainerStatus.FROZEN}
        ending = (
            Ending("stopped", "An earlier host left it in a state that this one could not take over.")
            if running
            else explain(view.exit, wanted=None, farewell=None)
        )
        certificate = Certificate(
            session=view.session,
            generation=view.generation,
            cause=ending.cause,
            text=ending.text,
            ended_at=datetime.now(UTC).isoformat(timespec="seconds"),
            exit_code=view.exit.exit_code if view.exit else None,
            log=await self._last_lines(view.name),
        )
        path = session_folders(self._home, session).certificates
        await to_thread.run_sync(certificates.write, path, certificate)

    def attends(self, session_id: SessionId) -> bool:
        """Whether the session has a container or wants one: its rows will be looked after."""
        return session_id in self._slots

    def generation_of(self, session_id: SessionId) -> Generation | None:
        """The generation that the session's live container has, or None without one."""
        slot = self._slots.get(session_id)
        return slot.life.generation if slot is not None and slot.life.phase in LIVE else None

    # Starting.

    async def _slot(self, session_id: SessionId) -> Slot:
        if (known := self._slots.get(session_id)) is not None:
            return known
        session = await self._store.read(lambda connection: sessions.by_id(connection, session_id))
        group = session and await self._store.read(
            lambda connection: agent_groups.by_id(connection, session.agent_group_id)
        )
        if session is None or group is None:
            raise NotFoundError(f"there is no session {session_id}, or its agent group is gone")
        name = container_name(self._installation, session_id)
        slot = Slot(session=session, group=group, name=name, life=Life(Phase.ABSENT, session.generation))
        # Another task may have been faster while we read.
        slot = self._slots.setdefault(session_id, slot)
        self._by_name[name] = session_id
        return slot

    async def _start(self, slot: Slot) -> None:
        """One attempt, from claim to hello. Runs in the runner's own tasks: a caller's cancellation ends no start."""
        began = time.monotonic()
        try:
            async with self._admission, slot.lock:
                slot.outcome = await self._attempt(slot, began)
        except (HermitcrabError, OSError) as error:
            slot.outcome = await self._failed_start(slot, error)
        finally:
            if slot.outcome is None:
                slot.outcome = WakeOutcome(kind="failed", failure=Failure.UNKNOWN, text="the host is stopping")
            if slot.starting is not None:
                slot.starting.set()
            slot.starting = None

    async def _attempt(self, slot: Slot, began: float) -> WakeOutcome:
        if slot.life.phase is Phase.READY:
            return WakeOutcome(kind="live")
        deadlines = self._settings.containers
        expected = slot.session.generation
        generation = await self._store.write(
            lambda connection: sessions.claim(connection, slot.session.id, expected)
        )
        faults.point("wake.claimed")
        slot.session = await self._reread(slot.session.id)
        if not slot.take(Signal.CLAIMED, generation):
            raise EngineError(Failure.UNKNOWN, f"session {slot.session.id} cannot start while {slot.life.phase}")
        slot.hello, slot.ended = anyio.Event(), anyio.Event()
        slot.wanted_end = slot.farewell = None
        slot.offences = 0
        slot.timings = {}
        slot.take(Signal.PREPARE)
        spec = await self._prepare(slot, generation)
        await self._mailboxes.run(slot.session, lambda mailbox: mailbox.release_claims(generation))
        await self._listen(slot, generation)
        self._clock(slot, "prepared", began)
        faults.point("wake.prepared")
        with _deadline(deadlines.create_deadline_s, "create", slot.name):
            await self._create(spec)
        slot.take(Signal.CREATED)
        self._clock(slot, "created", began)
        faults.point("wake.created")
        with _deadline(deadlines.start_deadline_s, "start", slot.name):
            await self._engine.start(slot.name)
        slot.take(Signal.STARTED)
        slot.started_at = slot.active_at = time.monotonic()
        self._clock(slot, "started", began)
        faults.point("wake.started")
        await self._await_hello(slot)
        slot.take(Signal.HELLO)
        self._clock(slot, "wake", began)
        self._last_timings[slot.session.id] = dict(slot.timings)
        slot.troubled, slot.text = False, ""
        log.info("container.ready", session=slot.session.id, generation=generation, ms=round(slot.timings["wake"]))
        return WakeOutcome(kind="started")

    async def _create(self, spec: ContainerSpec) -> None:
        try:
            await self._engine.create(spec)
        except EngineError as error:
            if error.failure is not Failure.NAME_IN_USE:
                raise
            # Only an older generation of the same session can have the name; a foreign one refuses to be removed.
            view = await self._engine.inspect(spec.name)
            if view is not None and view.generation >= spec.generation:
                raise
            await self._engine.remove(spec.name)
            await self._engine.create(spec)

    async def _prepare(self, slot: Slot, generation: Generation) -> ContainerSpec:
        provider = self._surveyor.provider_of(slot.session, slot.group)
        packages = await self._surveyor.packages(provider)
        around = await self._surveyor.surroundings(slot.session, slot.group)
        await self._engine.ensure_image(self.image)
        materials: Materials = await to_thread.run_sync(
            functools.partial(
                self._desk.prepare,
                slot.session,
                slot.group,
                generation,
                config=around.config,
                packages=packages,
                host_interpreter=self.image is None,
            )
        )
        containers = self._settings.containers
        return build_spec(
            installation=self._installation,
            session=slot.session,
            generation=generation,
            image=self.image,
            provider=provider,
            materials=materials,
            limits=Limits(
                memory_bytes=containers.memory_mb * 1024 * 1024, pids=containers.pids, cpus=containers.cpus
            ),
            uid=self.uid,
            gid=self.gid,
            timezone=self._settings.agents.timezone,
            extra_env={**(interpreter_env() if self.image is None else {}), **self._runner_env},
        )

    async def _listen(self, slot: Slot, generation: Generation) -> None:
        """Open the session's sockets for one generation."""
        await self._close_resources(slot)
        folder = session_folders(self._home, slot.session).run(generation)
        exchange = Exchange(
            slot.session,
            generation,
            mailboxes=self._mailboxes,
            surroundings=lambda: self._surveyor.surroundings(slot.session, slot.group),
            outward=self._outward(slot),
        )
        stack = AsyncExitStack()
        async with AsyncExitStack() as building:
            await building.enter_async_context(listening(folder, exchange))
            await self._door.open(slot.session.id, generation, folder)
            building.push_async_callback(self._door.revoke, slot.session.id, generation)
            stack = building.pop_all()
        slot.exchange, slot.resources = exchange, stack

    def _outward(self, slot: Slot) -> Outward:
        session = slot.session

        def ready(hello: frames.Hello) -> None:
            slot.timings.setdefault("runner", float(hello.uptime_ms))
            slot.timings.setdefault("runner_rss_kb", float(hello.rss_kb))
            slot.hello.set()

        def working() -> None:
            slot.active_at = time.monotonic()
            self._told.working(session)

        def said() -> None:
            slot.active_at = time.monotonic()
            self._told.said(session)

        def farewell(reason: str) -> None:
            slot.farewell = reason

        def offended(text: str) -> None:
            slot.offences += 1
            log.warning("link.offence", session=session.id, count=slot.offences, text=text)
            if slot.offences >= OFFENCES_AT_MOST and self._tasks is not None:
                self._tasks.start_soon(self._stop, slot, "broke-contract")

        return Outward(ready=ready, said=said, working=working, farewell=farewell, offended=offended)

    async def _await_hello(self, slot: Slot) -> None:
        """Until the runner greets. Raises when it ends first or says nothing in time."""
        deadline_s = self._settings.containers.hello_deadline_s
        async with anyio.create_task_group() as waiting:

            async def ended() -> None:
                await slot.ended.wait()
                waiting.cancel_scope.cancel()

            waiting.start_soon(ended)
            with anyio.move_on_after(deadline_s):
                await slot.hello.wait()
            waiting.cancel_scope.cancel()
        if not slot.hello.is_set():
            died = slot.ended.is_set()
            raise EngineError(
                Failure.STARTED_THEN_DIED,
                f"the container of {slot.session.id} " + ("ended before" if died else "ran, without") + " its hello",
                hint=f"crab logs {slot.session.id} shows its last words.",
            )

    async def _failed_start(self, slot: Slot, error: HermitcrabError | OSError) -> WakeOutcome:
        failure = error.failure if isinstance(error, EngineError) else Failure.UNKNOWN
        text = str(error)
        if isinstance(error, OSError):
            text = f"preparing the container failed: {error.strerror or error}"
        slot.failures += 1
        slot.text = text
        generation = slot.life.generation
        log.warning("container.start-failed", session=slot.session.id, failure=failure, text=text, count=slot.failures)
        if slot.life.phase in {Phase.ABSENT, Phase.QUEUED}:
            # The claim itself failed: somebody else has the session, or the store cannot be written.
            slot.session = await self._reread(slot.session.id)
            slot.life = Life(Phase.ABSENT, slot.session.generation)
        else:
            with anyio.CancelScope(shield=True), anyio.move_on_after(20):
                record = await self._exit_of(slot)
                await self._bury(slot, Ending("start-failed", f"It did not come up: {text}"), record)
            slot.take(Signal.START_FAILED if failure.retryable else Signal.REFUSED, generation)
        delay = retry.START.delay_s(slot.failures, random.random()) if failure.retryable else None  # noqa: S311
        await self._tell_trouble(slot, text, after=1 if delay is None else 3)
        if delay is not None and self._tasks is not None:
            self._tasks.start_soon(self._retry_later, slot, slot.life, delay)
        return WakeOutcome(kind="failed", failure=failure, text=text, retry_in_s=delay)

    async def _tell_trouble(self, slot: Slot, text: str, *, after: int) -> None:
        if slot.failures >= after and not slot.troubled:
            slot.troubled = True
            await self._told.trouble(slot.session, f"I could not start: {text}. Your message is kept.")

    async def _retry_later(self, slot: Slot, life: Life, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        if slot.life != life:
            return
        if slot.life.phase is Phase.BACKOFF:
            slot.take(Signal.RETRY_DUE)
        if (await self._mailboxes.run(slot.session, Mailbox.counts)).pending_triggers > 0:
            await self.wake(slot.session)
        elif slot.life.phase is Phase.QUEUED:
            slot.life = Life(Phase.ABSENT, slot.life.generation)

    async def _await_adopted(self, slot: Slot) -> None:
        generation = slot.life.generation
        try:
            await self._await_hello(slot)
            slot.take(Signal.HELLO, generation)
            log.info("container.adopted", session=slot.session.id, generation=generation)
        except EngineError:
            if slot.life.generation == generation and slot.life.phase is Phase.STARTING:
                await self._stop(slot, "hung")

    # Ending.

    async def _stop(self, slot: Slot, cause: str) -> None:
        if slot.starting is not None:
            await slot.starting.wait()
        generation = slot.life.generation
        if slot.life.phase is Phase.STOPPING:
            await slot.ended.wait()
            return
        if slot.life.phase not in LIVE or not slot.take(Signal.STOP):
            return
        slot.wanted_end = slot.wanted_end or cause
        try:
            await self._engine.stop(slot.name, grace_s=self._settings.containers.stop_grace_s)
        except EngineError as error:
            log.error("container.stuck", session=slot.session.id, text=error.message)
            slot.text = error.message
            slot.take(Signal.KILL_FAILED, generation)
            return
        await self._check_ended(slot, generation)

    async def _check_ended(self, slot: Slot, generation: Generation) -> None:
        """Ask the engine whether that generation has ended, and if so, draw up its end. Idempotent."""
        async with slot.lock:
            if slot.life.generation != generation or slot.life.phase not in LIVE:
                return
            view = await self._engine.inspect(slot.name)
            if view is not None and view.generation == generation and view.status is not ContainerStatus.EXITED:
                return
            record = view.exit if view is not None and view.generation == generation else None
            ending = explain(record, wanted=slot.wanted_end, farewell=slot.farewell)
            await self._bury(slot, ending, record)
            slot.take(Signal.ENDED, generation)
            self._told.resting(slot.session)
        await self._after_end(slot, ending)

    async def _bury(self, slot: Slot, ending: Ending, record: ExitRecord | None) -> None:
        """Certificate, then removal; the order lets a crash in between be repeated without a loss."""
        generation = slot.life.generation
        now = time.monotonic()
        duration = now - slot.started_at if slot.started_at is not None else None
        lines = await self._last_lines(slot.name)
        await self._close_resources(slot)
        returned = await self._mailboxes.run(
            slot.session, lambda mailbox: mailbox.release_claims(Generation(generation + 1))
        )
        certificate = Certificate(
            session=slot.session.id,
            generation=generation,
            cause=ending.cause,
            text=ending.text,
            ended_at=datetime.now(UTC).isoformat(timespec="seconds"),
            duration_s=round(duration, 3) if duration is not None else None,
            exit_code=record.exit_code if record else None,
            rows_returned=len(returned),
            log=lines,
        )
        path = session_folders(self._home, slot.session).certificates
        await to_thread.run_sync(certificates.write, path, certificate)
        log.info(
            "container.ended",
            session=slot.session.id,
            generation=generation,
            cause=ending.cause,
            text=ending.text,
            rows_returned=len(returned),
        )
        await self._engine.remove(slot.name)
        await to_thread.run_sync(self._desk.clear, slot.session, generation)
        if not ending.planned and duration is not None and duration >= HEALTHY_AFTER_S:
            slot.failures = 0
        slot.started_at = None
        slot.ended.set()

    async def _after_end(self, slot: Slot, ending: Ending) -> None:
        await self._give_up_costly_rows(slot, ending)
        counts = await self._mailboxes.run(slot.session, Mailbox.counts)
        if counts.pending_triggers == 0:
            if slot.life.phase is Phase.ABSENT and slot.starting is None:
                self._slots.pop(slot.session.id, None)
                self._by_name.pop(slot.name, None)
                if counts.undelivered == 0:
                    await self._store.write(lambda connection: sessions.settle(connection, slot.session.id))
            return
        slot.failures = 0 if ending.planned else slot.failures + 1
        if self._tasks is not None and slot.wanted_end != "stopped":
            delay = retry.START.delay_s(slot.failures, random.random())  # noqa: S311
            self._tasks.start_soon(self._retry_later, slot, slot.life, delay)

    async def _give_up_costly_rows(self, slot: Slot, ending: Ending) -> None:
        """A message that ended container after container is failed, with a notice, so that others get their turn."""
        now = datetime.now(UTC)
        rows = await self._mailboxes.run(
            slot.session, lambda mailbox: mailbox.pending(limit=64, fresh_container=True, now=now)
        )
        for row in rows:
            if row.tries < TRIES_AT_MOST:
                continue
            reason = f"{row.tries} containers ended while they worked on it; the last one: {ending.text}"
            notice = OutboundRow(
                id=MessageId(new_id("notice", int(now.timestamp() * 1000))),
                kind="chat",
                timestamp=now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                content={"text": f"I gave up on your message: {reason}"},
                address=row.address,
                in_reply_to=row.id,
            )
            await self._mailboxes.run(
                slot.session,
                lambda mailbox, row=row, notice=notice, reason=reason: mailbox.finish(  # type: ignore[misc]
                    f"given-up-{row.id}", [row.id], [notice], reason
                ),
            )
            self._told.said(slot.session)

    async def _exit_of(self, slot: Slot) -> ExitRecord | None:
        try:
            view = await self._engine.inspect(slot.name)
        except EngineError:
            return None
        return view.exit if view is not None and view.generation == slot.life.generation else None

    async def _last_lines(self, name: str) -> list[str]:
        try:
            return await self._engine.logs(name, lines=certificates.LOG_LINES)
        except EngineError:
            return []  # It never came to be, or the engine has lost it; the certificate says so elsewhere.

    async def _close_resources(self, slot: Slot) -> None:
        resources, slot.resources, slot.exchange = slot.resources, None, None
        if resources is not None:
            await resources.aclose()

    # Following the engine.

    async def _follow_engine(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with self._engine.events() as events:
            task_status.started()
            async for event in events:
                if event.kind == "ended" and event.name is not None:
                    self._check_soon(event.name)
                elif event.kind == "resync":
                    for name in list(self._by_name):
                        self._check_soon(name)

    def _check_soon(self, name: str) -> None:
        session_id = self._by_name.get(name)
        slot = self._slots.get(session_id) if session_id is not None else None
        if slot is None or self._tasks is None:
            return
        if slot.life.phase is Phase.STARTING:
            slot.ended.set()  # The start that waits for its hello draws up the end.
            if slot.starting is not None:
                return
        self._tasks.start_soon(self._check, slot, slot.life.generation)

    async def _check(self, slot: Slot, generation: Generation) -> None:
        try:
            await self._check_ended(slot, generation)
        except (HermitcrabError, OSError) as error:
            # The engine cannot be asked: neither alive nor dead. The next event or sweep asks again (law 1).
            log.warning("container.unknown", session=slot.session.id, text=str(error))

    async def _thaw(self, slot: Slot) -> WakeOutcome:
        async with slot.lock:
            if slot.life.phase is not Phase.FROZEN:
                return WakeOutcome(kind="waiting", text=f"the container is {slot.life.phase}")
            began = time.monotonic()
            try:
                await self._engine.thaw(slot.name)
            except EngineError as error:
                return WakeOutcome(kind="failed", failure=error.failure, text=error.message)
            slot.take(Signal.THAWED)
            slot.active_at = time.monotonic()
            if slot.exchange is not None:
                slot.exchange.pulse.at = slot.active_at
                slot.exchange.rows_may_wait()
                await slot.exchange.pump()
            slot.timings["thaw"] = (time.monotonic() - began) * 1000
            self._last_timings[slot.session.id] = dict(slot.timings)
        return WakeOutcome(kind="thawed")

    async def _sweep(self) -> None:
        while True:
            slept = time.monotonic()
            await anyio.sleep(SWEEP_INTERVAL_S)
            late = time.monotonic() - slept > 3 * SWEEP_INTERVAL_S
            for slot in list(self._slots.values()):
                # After a pause of the host itself, every runner looks silent; it gets one interval to beat.
                if not late and self._tasks is not None:
                    self._tasks.start_soon(self._look_over, slot)

    async def _look_over(self, slot: Slot) -> None:
        exchange, now = slot.exchange, time.monotonic()
        containers = self._settings.containers
        if exchange is None or slot.lock.locked():
            return
        quiet_s = now - slot.active_at
        if slot.life.phase is Phase.READY:
            if now - exchange.pulse.at > SILENT_AFTER_S:
                await self._stop(slot, "hung")
            elif exchange.outstanding == 0 and exchange.pulse.activity == "idle":
                if quiet_s > containers.quiet_before_stop_s:
                    await self._stop(slot, "quiet")
                elif quiet_s > containers.quiet_before_freeze_s and "freeze" not in self._unrealized:
                    await self._freeze(slot)
        elif slot.life.phase is Phase.FROZEN and quiet_s > containers.quiet_before_stop_s:
            await self._stop(slot, "quiet")

    async def _freeze(self, slot: Slot) -> None:
        async with slot.lock:
            if slot.life.phase is Phase.READY and slot.take(Signal.QUIET):
                await self._engine.freeze(slot.name)

    # Small things.

    async def _reread(self, session_id: SessionId) -> Session:
        session = await self._store.read(lambda connection: sessions.by_id(connection, session_id))
        if session is None:
            raise NotFoundError(f"there is no session {session_id}")
        return session

    def _view(self, slot: Slot) -> SessionView:
        pulse = slot.exchange.pulse if slot.exchange is not None else None
        return SessionView(
            session_id=slot.session.id,
            phase=slot.life.phase.value,
            generation=slot.life.generation,
            activity=pulse.activity if pulse and slot.life.phase is Phase.READY else "",
            detail=pulse.detail if pulse else None,
            container=slot.name,
            engine=self._engine.name,
            memory_bytes=pulse.rss_kb * 1024 if pulse and pulse.rss_kb is not None else None,
            unrealized=self._unrealized,
            text=slot.text,
        )

    def _clock(self, slot: Slot, stage: str, began: float) -> None:
        slot.timings[stage] = (time.monotonic() - began) * 1000


class _deadline:  # noqa: N801  # reads as a context
    """A deadline for one stage whose passing is a typed failure that names the stage."""

    def __init__(self, seconds: float, stage: str, name: str) -> None:
        self._scope = anyio.move_on_after(seconds)
        self._text = f"{stage} of {name} took more than {seconds:g} s"

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(self, *exc: Any) -> bool | None:
        swallowed = self._scope.__exit__(*exc)
        if self._scope.cancelled_caught:
            raise EngineError(Failure.RUNTIME_UNAVAILABLE, self._text, hint="crab doctor looks at the engine.")
        return swallowed
