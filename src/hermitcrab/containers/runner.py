"""The runner of containers, as the rest of the host sees it: wake, offer, kill, ask, look.

One `Slot` for each session that has a container or wants one; what may happen next is decided in `logic/lifecycle.py`.
The engine is the truth about what runs (law 1). Who does what in `lifecycle/`:

- `waking.py` has a container when it is wanted, `starting.py` makes one start, `admission.py` says whose turn it is;
- `stopping.py` ends containers and notices ends, `ending.py` draws up one end, `retrying.py` decides what follows it;
- `adopting.py` decides about what an earlier host left (`inheritance.py`), `following.py` hears the engine,
  `recovery.py` waits for it;
- `watch.py` looks over all that runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import anyio
import anyio.abc
import structlog
from anyio import to_thread

from hermitcrab.containers import certificates
from hermitcrab.containers.disk.workspaces import Workspaces
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle.admission import Admission, AdmissionView
from hermitcrab.containers.lifecycle.admitting import Admittance
from hermitcrab.containers.lifecycle.adopting import Adopter
from hermitcrab.containers.lifecycle.background import Background
from hermitcrab.containers.lifecycle.breakers import Breakers, BreakerView
from hermitcrab.containers.lifecycle.deadline import Deadline
from hermitcrab.containers.lifecycle.ending import Ender
from hermitcrab.containers.lifecycle.following import Follower
from hermitcrab.containers.lifecycle.hearing import Hearing
from hermitcrab.containers.lifecycle.inheritance import Inheritance
from hermitcrab.containers.lifecycle.recovery import Recovery
from hermitcrab.containers.lifecycle.restarting import Restart, Restarter
from hermitcrab.containers.lifecycle.retrying import Retries
from hermitcrab.containers.lifecycle.slot import SessionView, Slot, Told, WakeOutcome
from hermitcrab.containers.lifecycle.slots import Slots
from hermitcrab.containers.lifecycle.starting import Starter
from hermitcrab.containers.lifecycle.stopping import ANSWERED_WITHIN_S, Stopper
from hermitcrab.containers.lifecycle.waking import Waker
from hermitcrab.containers.lifecycle.watch import Watch
from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.errors import ConflictError, EngineError, HermitcrabError
from hermitcrab.logic.ending import Ending
from hermitcrab.logic.lifecycle import LIVE, Phase, Signal
from hermitcrab.logic.spec import container_name
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import AgentGroupId, Generation, InstallationId, SessionId
from hermitcrab.model.messages import InboundRow, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.observe.supervision import isolated
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import Settings
from hermitcrab.store.database import Store
from hermitcrab_wire import frames

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
        background: Background,
        workspaces: Workspaces,
        told: Told,
        clock: Callable[[], float] = time.monotonic,
        budget_mb: int | None = None,
    ) -> None:
        """`clock`: by which it is judged whether runners live; the same that the starter has, as `background` is.

        `budget_mb`: memory that all containers together are counted for at most; None: no bound.
        """
        self._home, self._settings, self._installation, self._clock = home, settings, installation, clock
        self._mailboxes, self._engine, self._ender, self._workspaces = mailboxes, engine, ender, workspaces
        self._unrealized: tuple[str, ...] = ()
        self._background = background
        self._slots = slots = Slots(installation=installation, store=store, mailboxes=mailboxes, owes=ender.owes)
        self._stopper = stopper = Stopper(
            settings=settings.containers,
            slots=slots,
            background=background,
            engine=engine,
            ender=ender,
            told=told,
            ended=self._ended,
            unknown=self._begin_recovery,
        )
        self._admission = Admission(settings.containers, slots, background, stopper.stop, budget_mb=budget_mb)
        self._breakers = Breakers()
        hearing = Hearing(
            background=background,
            told=told,
            admission=self._admission,
            stop=stopper.stop,
            check=stopper.check,
            admittance=Admittance(engine),
        )
        self._retries = Retries(
            slots=slots, background=background, mailboxes=mailboxes, ender=ender, told=told, wake=self._wake
        )
        self._waker = Waker(
            slots=slots,
            background=background,
            engine=engine,
            starter=starter,
            ender=ender,
            admission=self._admission,
            breakers=self._breakers,
            hearing=hearing,
            retries=self._retries,
            stopper=stopper,
            told=told,
        )
        self._adopter = Adopter(
            slots=slots,
            background=background,
            engine=engine,
            starter=starter,
            ender=ender,
            stopper=stopper,
            hearing=hearing,
        )
        self.inheritance = Inheritance(
            slots=slots, adopter=self._adopter, stopper=stopper, ender=ender, breakers=self._breakers
        )
        """What an earlier host left."""
        self._recovery = Recovery(
            slots=slots,
            background=background,
            engine=engine,
            breakers=self._breakers,
            find_again=self._adopter.find_again,
        )
        self._restarter = Restarter(
            slots=slots,
            store=store,
            mailboxes=mailboxes,
            stopper=stopper,
            request=lambda session: background.spawn(self.wake, session),
            message_bytes_at_most=settings.limits.message_bytes,
        )
        self._follower = Follower(slots=slots, background=background, engine=engine, stopper=stopper)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the engine until cancelled. Started once the engine's events are heard, or known not to be.

        An engine that says nothing holds it up for `ANSWERED_WITHIN_S` and no longer.
        """
        try:
            async with anyio.create_task_group() as tasks:
                self._background.open(tasks)
                tasks.start_soon(self._follower.run)
                async with anyio.create_task_group() as asking:
                    asking.start_soon(self._learn_capabilities)
                    with anyio.move_on_after(ANSWERED_WITHIN_S):
                        await self._follower.settled.wait()
                watch = Watch(
                    self._engine,
                    self._settings,
                    self._slots,
                    self._stopper.stop,
                    self._catch_up,
                    self._unrealized,
                    self._workspaces,
                    self._clock,
                )
                tasks.start_soon(watch.run)
                task_status.started()
        finally:
            self._background.close()
            with anyio.CancelScope(shield=True):
                for slot in self._slots:
                    if slot.starting is not None:
                        slot.starting.set()  # A start that was cancelled before its first step sets nothing.
                    # Runners that go on without this host notice it at once, and dial for the next one.
                    await isolated(slot.close_resources)

    async def _learn_capabilities(self) -> None:
        try:
            with Deadline(ANSWERED_WITHIN_S, "asking for the capabilities", self._engine.name):
                capabilities = await self._engine.capabilities()
        except EngineError as error:
            log.warning("engine.unavailable", engine=self._engine.name, text=error.message, hint=error.hint)
        else:
            self._unrealized = tuple(sorted(capabilities.unrealized))

    # Messages and wishes.

    async def offer(self, session: Session, row: InboundRow) -> None:
        """A row was committed: get it to a runner, soon. Never raises and never waits for a container."""
        slot = self._slots.get(session.id)
        if slot is not None and slot.exchange is not None and slot.life.phase is Phase.READY:
            slot.active_at = anyio.current_time()
            # Should the mailbox fail now, the exchange knows that it is behind, and the watch sees that.
            await isolated(slot.exchange.offer, row)
        else:
            self.request(session)

    def request(self, session: Session) -> None:
        """Wake the session in the background."""
        self._background.spawn(self._waker.wake, session)

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
        return await self._waker.wake(session)

    async def kill(self, session_id: SessionId, cause: str = "stopped") -> bool:
        """End the session's container and return when it is gone. False: it had none."""
        slot = self._slots.get(session_id)
        if slot is None or (slot.life.phase not in LIVE and slot.starting is None):
            return False
        await self._stopper.stop(slot, cause)
        return True

    async def withhold(self, session_id: SessionId, why: str) -> None:
        """The session gets no container until `give_back`. Returns when the one that it had is gone.

        Raises ConflictError when that one cannot be ended.
        """
        self._slots.withheld[session_id] = why
        await self.kill(session_id)
        if (slot := self._slots.get(session_id)) is not None and slot.life.phase in LIVE:
            self.give_back(session_id)
            raise ConflictError(f"the container of {session_id} does not end: it is {slot.life.phase}")

    def give_back(self, session_id: SessionId) -> None:
        """Its next message, or whoever asks for one, starts a container again."""
        self._slots.withheld.pop(session_id, None)

    async def restart(self, session: Session, *, message: str | None = None, wake: bool = False) -> Restart:
        """A fresh container in the place of the session's, with a word that only the fresh one gets."""
        return await self._restarter.restart(session, message=message, wake=wake)

    async def restart_group(
        self, group_id: AgentGroupId, *, message: str | None = None, wake: bool = False
    ) -> list[Restart | HermitcrabError]:
        """The same for every session of a group that has a container, all at once; each by itself."""
        return await self._restarter.restart_group(group_id, message=message, wake=wake)

    def reconsider(self, group_id: AgentGroupId) -> None:
        """The group's config is another: whoever was refused a container, or waits for the next try, tries now."""
        for slot in self._slots:
            waits = slot.starting is None and slot.life.phase in {Phase.QUARANTINED, Phase.BACKOFF}
            if slot.group.id == group_id and waits and slot.session.id not in self._mailboxes.set_aside:
                self._background.spawn(self.wake, slot.session)

    def interrupt(self, session_id: SessionId) -> bool:
        """End the turn that runs, by word to the runner. False: there is no runner to be told."""
        slot = self._slots.get(session_id)
        if slot is None or slot.exchange is None or slot.life.phase is not Phase.READY:
            return False
        return slot.exchange.send(frames.Cancel(reason="a person asked for it"))

    def report(self, session: Session, row: OutboundRow) -> None:
        """What was said has arrived, or has ended otherwise: its runner may want to know. Returns at once."""
        slot = self._slots.get(session.id)
        if slot is not None and slot.exchange is not None:
            slot.exchange.report(row)

    def reconnect(self, session_id: SessionId) -> bool:
        """Cut the runner's link; it dials again, and nothing is lost by it. False: there is none."""
        slot = self._slots.get(session_id)
        return slot is not None and slot.exchange is not None and slot.exchange.cut()

    async def stop_all(self, cause: str = "stopped") -> None:
        """End every container, all at once. One that is starting is called off."""
        await self._stopper.stop_all(cause)

    async def close(self, *, keep_containers: bool) -> None:
        """Start nothing any more, and end what runs unless it is to be kept."""
        self._background.begin_closing()
        if not keep_containers:
            await self.stop_all("host-left")
        await self.keep_what_waits()

    async def keep_what_waits(self) -> None:
        """Write what a full disk did not take before."""
        await self._ender.keep_what_waits()

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

    # What can be seen.

    def views(self) -> list[SessionView]:
        """Every session that has a container or wants one."""
        why_queued = self._waker.why_queued()
        return [self._view(slot, why_queued) for slot in self._slots]

    def admission(self) -> AdmissionView:
        """How much room there is for containers."""
        return self._admission.view()

    def breakers(self) -> list[BreakerView]:
        """What starts depend on and wait for."""
        return self._breakers.views()

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
        return dict(self._waker.last_timings.get(session_id, {}))

    # What waits in sessions.

    def receiving(self, session_id: SessionId) -> AbstractContextManager[bool]:
        """While a row is being committed: gives whether the session is attended. If not, mark it unsettled first."""
        return self._slots.receiving(session_id)

    async def settle(self, session: Session) -> None:
        """Note that nothing of the session waits, if that is so and nobody is adding to it."""
        await self._slots.settle(session)

    def settle_soon(self, session: Session) -> None:
        """As `settle`, in the background, where no container's end would come to it."""
        if session.id not in self._slots:
            self._background.spawn(self._slots.settle, session)

    async def settle_all(self) -> None:
        """As `settle`, for whatever a host that leaves would otherwise leave to the next one to look at."""
        await self._slots.settle_all()

    def attends(self, session_id: SessionId) -> bool:
        """Whether the session has a container or wants one: its rows will be looked after."""
        return session_id in self._slots

    def generation_of(self, session_id: SessionId) -> Generation | None:
        """The generation that the session's live container has, or None without one."""
        return self._slots.generation_of(session_id)

    # Joints between the parts.

    async def _wake(self, session: Session) -> WakeOutcome:
        return await self._waker.wake(session)

    async def _catch_up(self, slot: Slot) -> None:
        await self._waker.wake(slot.session)

    def _view(self, slot: Slot, why_queued: Callable[[Slot], tuple[str, int | None]]) -> SessionView:
        view = slot.view(engine=self._engine.name, unrealized=self._unrealized)
        if slot.life.phase is not Phase.QUEUED:
            return view
        text, place = why_queued(slot)
        return replace(view, text=text, place=place)

    def _begin_recovery(self) -> None:
        self._recovery.begin()

    async def _ended(self, slot: Slot, ending: Ending) -> None:
        self._admission.changed()
        await self._retries.after_end(slot, ending)
