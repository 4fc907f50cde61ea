"""Waking, stopping and ending the containers of sessions: the heart of the host.

One `Slot` for each session that has a container or wants one; what may happen next is decided in `logic/lifecycle.py`,
and this file does it. The engine is the truth about what runs (law 1): its events are hints, after which it is asked.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVarTuple

import anyio
import anyio.abc
import structlog
from anyio import to_thread

from hermitcrab.containers import certificates
from hermitcrab.containers.admission import Admission
from hermitcrab.containers.ending import Ender
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.exchange import Outward
from hermitcrab.containers.materials import session_folders
from hermitcrab.containers.slot import SessionView, Slot, Told, WakeOutcome
from hermitcrab.containers.starting import Starter
from hermitcrab.containers.watch import Watch, is_idle
from hermitcrab.errors import (
    ConflictError,
    EngineError,
    Failure,
    HermitcrabError,
    NotFoundError,
    StoreDamagedError,
    StoreTooNewError,
)
from hermitcrab.logic import retry
from hermitcrab.logic.ending import Ending, explain
from hermitcrab.logic.lifecycle import LIVE, STARTABLE, Life, Phase, Signal
from hermitcrab.logic.spec import container_name
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.container import ContainerStatus, ContainerView
from hermitcrab.model.ids import Generation, InstallationId, SessionId
from hermitcrab.model.messages import InboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.observe.supervision import isolated
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import Settings
from hermitcrab.store import agent_groups, sessions
from hermitcrab.store.database import Store
from hermitcrab_wire import frames

OFFENCES_AT_MOST = 3
"""Broken contracts on a link before the container is ended."""

CLEARED_WITHIN_S = 20.0
"""Clearing away after a start that failed; what is left then, the next start or sweep meets."""

RESUBSCRIBED_AFTER_S = 2.0

Arguments = TypeVarTuple("Arguments")

log = structlog.get_logger(__name__)


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
        starter: Starter,
        ender: Ender,
        told: Told,
    ) -> None:
        self._home, self._settings, self._installation = home, settings, installation
        self._store, self._mailboxes, self._engine = store, mailboxes, engine
        self._starter, self._ender, self._told = starter, ender, told
        self._slots: dict[SessionId, Slot] = {}
        self._by_name: dict[str, SessionId] = {}
        self._receiving: Counter[SessionId] = Counter()
        self._admission = Admission(settings.containers, self._slots, self._stop)
        self._closing = False
        self._tasks: anyio.abc.TaskGroup | None = None
        self._unrealized: tuple[str, ...] = ()
        self._last_timings: dict[SessionId, dict[str, float]] = {}

    # For the rest of the host.

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the engine until cancelled. Started once the engine's events are heard, or known not to be."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                try:
                    capabilities = await self._engine.capabilities()
                    self._unrealized = tuple(sorted(capabilities.unrealized))
                except EngineError as error:
                    log.warning("engine.unavailable", engine=self._engine.name, text=error.message, hint=error.hint)
                watch = Watch(
                    self._engine, self._settings.containers, self._slots, self._stop, self._catch_up, self._unrealized
                )
                await tasks.start(self._follow_engine)
                tasks.start_soon(watch.run)
                task_status.started()
        finally:
            self._tasks = None
            with anyio.CancelScope(shield=True):
                for slot in self._slots.values():
                    if slot.starting is not None:
                        slot.starting.set()  # A start that was cancelled before its first step sets nothing.
                    # Runners that go on without this host notice it at once, and dial for the next one.
                    await isolated(slot.close_resources)

    async def offer(self, session: Session, row: InboundRow) -> None:
        """A row was committed: get it to a runner, soon. Never raises and never waits for a container."""
        slot = self._slots.get(session.id)
        if slot is not None and slot.exchange is not None and slot.life.phase is Phase.READY:
            slot.active_at = time.monotonic()
            # Should the mailbox fail now, the exchange knows that it is behind, and the watch sees that.
            await isolated(slot.exchange.offer, row)
        else:
            self.request(session)

    def request(self, session: Session) -> None:
        """Wake the session in the background."""
        self._spawn(self._wake, session)

    async def wake(self, session: Session) -> WakeOutcome:
        """Have a live container for the session, as a person wants it. Concurrent calls join one attempt.

        Never raises. A quarantine is lifted for one attempt, and a retry that waits for its time is made now.
        """
        slot = self._slots.get(session.id)
        if slot is not None and slot.starting is None:
            if slot.life.phase is Phase.QUARANTINED:
                self._mailboxes.release(session.id)
                slot.take(Signal.RELEASED)
            elif slot.life.phase is Phase.BACKOFF:
                slot.take(Signal.RETRY_DUE)
        return await self._wake(session)

    async def kill(self, session_id: SessionId, cause: str = "stopped") -> bool:
        """End the session's container and return when it is gone. False: it had none."""
        slot = self._slots.get(session_id)
        if slot is None or (slot.life.phase not in LIVE and slot.starting is None):
            return False
        await self._stop(slot, cause)
        return True

    def interrupt(self, session_id: SessionId) -> bool:
        """End the turn that runs, by word to the runner. False: there is no runner to be told."""
        slot = self._slots.get(session_id)
        if slot is None or slot.exchange is None or slot.life.phase is not Phase.READY:
            return False
        return slot.exchange.send(frames.Cancel(reason="a person asked for it"))

    async def stop_all(self, cause: str = "stopped") -> None:
        """End every container, all at once. One that is starting is called off."""
        async with anyio.create_task_group() as tasks:
            for slot in list(self._slots.values()):
                tasks.start_soon(isolated, self._stop, slot, cause)

    async def close(self, *, keep_containers: bool) -> None:
        """Start nothing any more, and end what runs unless it is to be kept."""
        self._closing = True
        if not keep_containers:
            await self.stop_all()

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

    async def meet(self, view: ContainerView) -> Literal["kept", "adopted", "removed"]:
        """Decide about a container that the engine has: ours already, taken over from an earlier host, or left over."""
        try:
            slot = await self._slot(view.session)
        except NotFoundError:
            await self._ender.remove_stale(view)
            return "removed"
        if self._is_attended(slot):
            if view.status is ContainerStatus.EXITED or slot.life.phase in {Phase.STOPPING, Phase.STUCK}:
                await self.look_again(slot.session.id)
            return "kept"
        async with slot.lock:
            if slot.life.phase in LIVE:
                return "kept"
            try:
                adopted = slot.life.phase in STARTABLE and await self._adopt(slot, view)
                if not adopted:
                    await self._ender.remove_stale(view)
            finally:
                self._forget(slot)
        if adopted:
            self._spawn(self._await_adopted, slot)
        return "adopted" if adopted else "removed"

    def live(self) -> dict[str, Session]:
        """Sessions by the name of the container that they should have."""
        return {slot.name: slot.session for slot in self._slots.values() if slot.life.phase in LIVE}

    async def look_again(self, session_id: SessionId) -> None:
        """The engine may know more of that container than was heard: ask it, and end again what would not end."""
        slot = self._slots.get(session_id)
        if slot is None or slot.starting is not None:
            return
        generation = slot.life.generation
        if slot.life.phase is Phase.STUCK:
            await self._stop(slot, slot.wanted_end or "stopped")
            return
        if slot.life.phase is Phase.STOPPING and slot.stopping == 0:
            # An earlier attempt could not ask the engine whether it has ended.
            await self._end(slot, generation)
            return
        await self._check(slot, generation)

    async def _adopt(self, slot: Slot, view: ContainerView) -> bool:
        runs = view.status in {ContainerStatus.RUNNING, ContainerStatus.FROZEN}
        if view.generation != slot.session.generation or not runs:
            return False
        slot.hello, slot.ended = anyio.Event(), anyio.Event()
        try:
            spec = await self._starter.prepare(slot, view.generation)
            if spec.spec_hash != view.spec_hash:
                log.info("adopt.changed", session=view.session, generation=view.generation)
                return False
            await self._starter.open_sockets(slot, view.generation, self._outward(slot))
            if view.status is ContainerStatus.FROZEN:
                await self._engine.thaw(view.name)
        except (HermitcrabError, OSError) as error:
            await isolated(slot.close_resources)
            if isinstance(error, EngineError) and error.failure is Failure.RUNTIME_UNAVAILABLE:
                raise  # Neither taken over nor given up: a sweep comes back to it (law 1).
            log.warning("adopt.refused", session=view.session, text=str(error))
            return False
        slot.take(Signal.ADOPTED, view.generation)
        slot.started_at = slot.active_at = time.monotonic()
        return True

    def _is_attended(self, slot: Slot) -> bool:
        return slot.starting is not None or slot.life.phase in LIVE

    def _forget(self, slot: Slot) -> None:
        """Keep nothing of a session that has no container and wants none."""
        if slot.life.phase is Phase.ABSENT and slot.starting is None:
            self._slots.pop(slot.session.id, None)
            self._by_name.pop(slot.name, None)

    @contextmanager
    def receiving(self, session_id: SessionId) -> Iterator[bool]:
        """While a row is being committed: gives whether the session is attended.

        If it is not, it must be marked unsettled before the commit, so that a host that is killed right after looks
        there at its next start.
        """
        self._receiving[session_id] += 1
        try:
            slot = self._slots.get(session_id)
            # Only a claim has marked it; one that merely wants a container may never come to that.
            yield slot is not None and slot.life.phase in LIVE
        finally:
            self._receiving[session_id] -= 1
            if not self._receiving[session_id]:
                del self._receiving[session_id]

    async def settle(self, session: Session) -> None:
        """Note that nothing of the session waits, if that is so and nobody is adding to it."""
        seen = await self._store.read(lambda connection: sessions.reasons(connection, session.id))
        if self.attends(session.id) or self._receiving[session.id]:
            return
        counts = await self._mailboxes.run(session, Mailbox.counts)
        if counts.pending_triggers == 0 and counts.undelivered == 0:
            # A row that was announced meanwhile raised the count, and then this changes nothing.
            await self._store.write(lambda connection: sessions.settle(connection, session.id, seen))

    def attends(self, session_id: SessionId) -> bool:
        """Whether the session has a container or wants one: its rows will be looked after."""
        return session_id in self._slots

    def generation_of(self, session_id: SessionId) -> Generation | None:
        """The generation that the session's live container has, or None without one."""
        slot = self._slots.get(session_id)
        return slot.life.generation if slot is not None and slot.life.phase in LIVE else None

    # Starting.

    def _spawn(self, function: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(isolated, function, *arguments)

    async def _wake(self, session: Session) -> WakeOutcome:
        slot = self._slots.get(session.id)
        if self._tasks is None or self._closing:
            return WakeOutcome(kind="failed", failure=Failure.UNKNOWN, text="the host is not running")
        if slot is None:
            try:
                slot = await self._slot(session.id)
            except HermitcrabError as error:
                return WakeOutcome(kind="failed", failure=Failure.UNKNOWN, text=error.message)
        if slot.life.phase is Phase.READY and slot.starting is None:
            await isolated(self._nudge, slot)
            return WakeOutcome(kind="live")
        if slot.life.phase is Phase.FROZEN:
            return await self._thaw(slot)
        if slot.starting is None:
            if slot.life.phase not in STARTABLE:
                slot.wanted = True
                return WakeOutcome(kind="waiting", text=slot.text or f"the container is {slot.life.phase}")
            slot.starting, slot.outcome, slot.wanted = anyio.Event(), None, False
            slot.retry += 1
            slot.take(Signal.WANTED)
            self._spawn(self._start, slot)
        if slot.start_scope is not None and slot.start_scope.cancel_called:
            slot.wanted = True
        await slot.starting.wait()
        if slot.life.phase is Phase.READY:
            # What was committed while the runner was being greeted may have been pushed by nobody.
            await isolated(self._nudge, slot)
        return slot.outcome or WakeOutcome(kind="failed", failure=Failure.UNKNOWN, text="the host is stopping")

    async def _catch_up(self, slot: Slot) -> None:
        await self._wake(slot.session)

    async def _nudge(self, slot: Slot) -> None:
        """Push what waits in the mailbox, if the runner can be reached."""
        if slot.exchange is not None:
            slot.exchange.rows_may_wait()
            await slot.exchange.pump()

    async def _slot(self, session_id: SessionId) -> Slot:
        if (known := self._slots.get(session_id)) is not None:
            return known
        session = await self._store.read(lambda connection: sessions.by_id(connection, session_id))
        if session is None:
            raise NotFoundError(f"there is no session {session_id}")
        group_id = session.agent_group_id
        group = await self._store.read(lambda connection: agent_groups.by_id(connection, group_id))
        if group is None:
            raise NotFoundError(f"session {session_id} has no agent group any more")
        name = container_name(self._installation, session_id)
        slot = Slot(session=session, group=group, name=name, life=Life(Phase.ABSENT, session.generation))
        # Another task may have been faster while we read.
        slot = self._slots.setdefault(session_id, slot)
        self._by_name[name] = session_id
        return slot

    async def _start(self, slot: Slot) -> None:
        """One attempt, from claim to hello. Runs in the runner's own tasks: a caller's cancellation ends no start."""
        began = time.monotonic()
        outcome: WakeOutcome | None = None
        called_off = False
        try:
            try:
                with anyio.CancelScope() as slot.start_scope:
                    async with self._admission.admitted(slot), slot.lock:
                        if slot.life.phase in LIVE:
                            outcome = WakeOutcome(kind="waiting", text="it was taken over from an earlier host")
                            return
                        await self._starter.start(slot, self._outward(slot), began)
                        self._last_timings[slot.session.id] = dict(slot.timings)
                        outcome = WakeOutcome(kind="started")
                if outcome is None:
                    called_off = True
                    outcome = await self._called_off(slot)
            except (HermitcrabError, OSError) as error:
                outcome = await self._failed_start(slot, error)
            except Exception as error:  # the edge of one session's start: nothing of it may end the host
                log.exception("container.start-broken", session=slot.session.id)
                outcome = await self._failed_start(slot, EngineError(Failure.UNKNOWN, f"an error of ours: {error!r}"))
        finally:
            slot.outcome = outcome
            starting, slot.starting, slot.start_scope = slot.starting, None, None
            if starting is not None:
                starting.set()
        if called_off:
            if (slot.wanted or slot.wanted_end != "stopped") and not self._closing:
                self._retry_after_failure(slot)
            else:
                self._forget(slot)

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
            if is_idle(slot):
                self._admission.changed()

        def farewell(reason: str) -> None:
            slot.farewell = reason

        def offended(text: str) -> None:
            slot.offences += 1
            log.warning("link.offence", session=session.id, count=slot.offences, text=text)
            if slot.offences >= OFFENCES_AT_MOST:
                self._spawn(self._stop, slot, "broke-contract")

        return Outward(ready=ready, said=said, working=working, farewell=farewell, offended=offended)

    async def _called_off(self, slot: Slot) -> WakeOutcome:
        if slot.life.phase in STARTABLE:
            await self._reread(slot)
        else:
            await self._clear_away(slot, explain(None, wanted=slot.wanted_end or "stopped", farewell=None))
            slot.take(Signal.CALLED_OFF)
        return WakeOutcome(kind="failed", failure=Failure.UNKNOWN, text="it was called off")

    async def _failed_start(self, slot: Slot, error: HermitcrabError | OSError) -> WakeOutcome:
        failure = error.failure if isinstance(error, EngineError) else Failure.UNKNOWN
        text = (
            f"preparing the container failed: {error.strerror or error}" if isinstance(error, OSError) else str(error)
        )
        may_retry = failure.retryable and not isinstance(error, (StoreDamagedError, StoreTooNewError, NotFoundError))
        slot.failures += 1
        slot.text = text
        generation = slot.life.generation
        log.warning("container.start-failed", session=slot.session.id, failure=failure, text=text, count=slot.failures)
        if slot.life.phase in STARTABLE:
            await self._reread(slot)
            if not may_retry:
                slot.take(Signal.REFUSED)
        else:
            await self._clear_away(slot, Ending("start-failed", f"It did not come up: {text}"))
            slot.take(Signal.START_FAILED if may_retry else Signal.REFUSED, generation)
        delay = self._retry_after_failure(slot) if may_retry else None
        await isolated(self._tell_trouble, slot, text, 1 if delay is None else 3)
        return WakeOutcome(kind="failed", failure=failure, text=text, retry_in_s=delay)

    async def _reread(self, slot: Slot) -> None:
        """No claim, or none that is known of: the next attempt begins from what the store says."""
        try:
            slot.session = await self._starter.reread(slot.session.id)
        except HermitcrabError as error:
            log.warning("session.not-read", session=slot.session.id, text=error.message)
        slot.life = Life(Phase.ABSENT, max(slot.session.generation, slot.life.generation))

    async def _clear_away(self, slot: Slot, ending: Ending) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLEARED_WITHIN_S):
            try:
                record = await self._ender.exit_of(slot)
                await self._ender.bury(slot, ending, record)
            except (HermitcrabError, OSError) as left:
                # A foreign container has the name, or the engine is gone: the next attempt meets what is left.
                log.warning("container.not-buried", session=slot.session.id, text=str(left))

    async def _tell_trouble(self, slot: Slot, text: str, after: int) -> None:
        if slot.failures >= after and not slot.troubled:
            slot.troubled = True
            await self._told.trouble(slot.session, f"I could not start: {text}. Your message is kept.")

    def _retry_after_failure(self, slot: Slot) -> float:
        """Seconds until the next attempt. Any earlier timer of the session does nothing any more."""
        delay = retry.START.delay_s(slot.failures, random.random())  # noqa: S311
        slot.retry += 1
        self._spawn(self._retry_later, slot, slot.retry, delay)
        return delay

    async def _retry_later(self, slot: Slot, number: int, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        if slot.retry != number or slot.starting is not None or self._slots.get(slot.session.id) is not slot:
            return
        if slot.life.phase is Phase.BACKOFF:
            slot.take(Signal.RETRY_DUE)
        if slot.life.phase in STARTABLE:
            await self._go_on(slot)

    async def _go_on(self, slot: Slot) -> None:
        """Start it again if something waits for it; otherwise keep nothing of it."""
        number = slot.retry
        try:
            pending = (await self._mailboxes.run(slot.session, Mailbox.counts)).pending_triggers
        except (HermitcrabError, OSError) as error:
            log.warning("mailbox.not-read", session=slot.session.id, text=str(error))
            slot.failures += 1
            self._retry_after_failure(slot)
            return
        if slot.retry != number or slot.starting is not None or slot.life.phase not in STARTABLE:
            return
        if pending:
            await self._wake(slot.session)
            return
        slot.life = Life(Phase.ABSENT, slot.life.generation)
        self._forget(slot)
        await self.settle(slot.session)

    async def _await_adopted(self, slot: Slot) -> None:
        generation = slot.life.generation
        try:
            await self._starter.await_hello(slot)
            slot.take(Signal.HELLO, generation)
            log.info("container.adopted", session=slot.session.id, generation=generation)
            await self._nudge(slot)
        except EngineError:
            if slot.life.generation == generation and slot.life.phase is Phase.STARTING:
                await self._stop(slot, "hung")

    # Ending.

    async def _stop(self, slot: Slot, cause: str) -> None:
        """End it and return when it has ended, is stuck, or cannot be asked. A start is called off."""
        if slot.starting is not None:
            slot.wanted_end = cause
            if slot.start_scope is not None:
                slot.start_scope.cancel()
            await slot.starting.wait()
        generation = slot.life.generation
        if slot.life.phase is Phase.STOPPING:
            with anyio.move_on_after(self._settings.containers.stop_grace_s + CLEARED_WITHIN_S):
                await slot.ended.wait()
            return
        if slot.life.phase not in LIVE or not slot.take(Signal.STOP):
            return
        slot.wanted_end = slot.wanted_end or cause
        await self._end(slot, generation)

    async def _end(self, slot: Slot, generation: Generation) -> None:
        slot.stopping += 1
        try:
            await self._engine.stop(slot.name, grace_s=self._settings.containers.stop_grace_s)
        except EngineError as error:
            log.error("container.stuck", session=slot.session.id, text=error.message)
            slot.text = error.message
            slot.take(Signal.KILL_FAILED, generation)
            return
        finally:
            slot.stopping -= 1
        await self._check(slot, generation)

    async def _check(self, slot: Slot, generation: Generation) -> None:
        """Ask the engine whether that generation has ended, and if so, draw up its end. Idempotent."""
        try:
            if slot.life.phase is Phase.STARTING and slot.starting is not None:
                # The start has the lock and waits for a hello; it draws up the end itself.
                view = await self._engine.inspect(slot.name)
                if view is None or view.generation != generation or view.status is ContainerStatus.EXITED:
                    slot.ended.set()
                return
            ending = await self._check_ended(slot, generation)
        except (HermitcrabError, OSError) as error:
            # The engine cannot be asked: neither alive nor dead. The next event or sweep asks again (law 1).
            log.warning("container.unknown", session=slot.session.id, text=str(error))
            return
        if ending is not None:
            self._admission.changed()
            await self._after_end(slot, ending)

    async def _check_ended(self, slot: Slot, generation: Generation) -> Ending | None:
        async with slot.lock:
            if slot.life.generation != generation or slot.life.phase not in LIVE:
                return None
            view = await self._engine.inspect(slot.name)
            if view is not None and view.generation == generation and view.status is not ContainerStatus.EXITED:
                return None
            record = view.exit if view is not None and view.generation == generation else None
            ending = explain(record, wanted=slot.wanted_end, farewell=slot.farewell)
            await self._ender.bury(slot, ending, record)
            slot.take(Signal.ENDED, generation)
            self._told.resting(slot.session)
        return ending

    async def _after_end(self, slot: Slot, ending: Ending) -> None:
        slot.failures = 0 if ending.planned else slot.failures + 1
        try:
            if await self._ender.give_up_costly_rows(slot, ending):
                self._told.said(slot.session)
            counts = await self._mailboxes.run(slot.session, Mailbox.counts)
        except (HermitcrabError, OSError) as error:
            log.warning("mailbox.not-read", session=slot.session.id, text=str(error))
            self._retry_after_failure(slot)
            return
        if slot.starting is not None or slot.life.phase is not Phase.ABSENT:
            return  # A message that came meanwhile has started it again.
        if counts.pending_triggers and (slot.wanted or ending.cause != "stopped") and not self._closing:
            self._retry_after_failure(slot)
            return
        self._forget(slot)
        await isolated(self.settle, slot.session)

    # Following the engine.

    async def _follow_engine(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """For as long as the host runs: an engine that goes away is an engine that may come back."""
        started = False
        while True:
            try:
                async with self._engine.events() as events:
                    if not started:
                        started = True
                        task_status.started()
                    async for event in events:
                        if event.kind == "ended" and event.name is not None:
                            self._check_soon(event.name)
                        elif event.kind == "resync":
                            for name in list(self._by_name):
                                self._check_soon(name)
            except (HermitcrabError, OSError) as error:
                log.warning("engine.events-lost", engine=self._engine.name, text=str(error))
            if not started:
                started = True
                task_status.started()
            await anyio.sleep(RESUBSCRIBED_AFTER_S)

    def _check_soon(self, name: str) -> None:
        session_id = self._by_name.get(name)
        slot = self._slots.get(session_id) if session_id is not None else None
        if slot is not None:
            self._spawn(self._check, slot, slot.life.generation)

    async def _thaw(self, slot: Slot) -> WakeOutcome:
        async with slot.lock:
            if slot.life.phase is Phase.READY:
                # It was being frozen and could not be, or somebody else has thawed it.
                await isolated(self._nudge, slot)
                return WakeOutcome(kind="live")
            if slot.life.phase is not Phase.FROZEN:
                slot.wanted = True
                return WakeOutcome(kind="waiting", text=f"the container is {slot.life.phase}")
            began = time.monotonic()
            try:
                await self._engine.thaw(slot.name)
            except EngineError as error:
                slot.wanted = True
                log.warning("container.not-thawed", session=slot.session.id, text=error.message)
                return WakeOutcome(kind="failed", failure=error.failure, text=error.message)
            slot.wanted = False
            slot.take(Signal.THAWED)
            slot.active_at = time.monotonic()
            if slot.exchange is not None:
                slot.exchange.pulse.at = slot.active_at
            await isolated(self._nudge, slot)
            slot.timings["thaw"] = (time.monotonic() - began) * 1000
            self._last_timings[slot.session.id] = dict(slot.timings)
        return WakeOutcome(kind="thawed")

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
