"""Having a container when it is wanted: pushing to a live one, thawing a frozen one, starting one that is not there.

Concurrent wakes join one attempt. `starting.py` makes one start, stage by stage.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import anyio
import structlog

from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle.admission import Admission
from hermitcrab.containers.lifecycle.background import Background
from hermitcrab.containers.lifecycle.breakers import Breakers
from hermitcrab.containers.lifecycle.deadline import Deadline
from hermitcrab.containers.lifecycle.ending import Ender
from hermitcrab.containers.lifecycle.hearing import Hearing
from hermitcrab.containers.lifecycle.retrying import Retries
from hermitcrab.containers.lifecycle.slot import Slot, Told, WakeOutcome
from hermitcrab.containers.lifecycle.slots import Slots
from hermitcrab.containers.lifecycle.starting import Starter
from hermitcrab.containers.lifecycle.stopping import CLEARED_WITHIN_S, Stopper
from hermitcrab.errors import (
    ClaimLostError,
    EngineError,
    Failure,
    HermitcrabError,
    NotFoundError,
    StoreDamagedError,
    StoreError,
    StoreTooNewError,
)
from hermitcrab.logic.ending import Ending, explain, failed_start
from hermitcrab.logic.lifecycle import LIVE, STARTABLE, Life, Phase, Signal
from hermitcrab.model.container import ExitRecord
from hermitcrab.model.ids import SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.observe.supervision import isolated

TAKEN_OVER = WakeOutcome(kind="waiting", text="it was taken over from an earlier host")

log = structlog.get_logger(__name__)


class Waker:
    def __init__(
        self,
        *,
        slots: Slots,
        background: Background,
        engine: Engine,
        starter: Starter,
        ender: Ender,
        admission: Admission,
        breakers: Breakers,
        hearing: Hearing,
        retries: Retries,
        stopper: Stopper,
        told: Told,
    ) -> None:
        self._slots, self._background, self._engine = slots, background, engine
        self._starter, self._ender = starter, ender
        self._admission, self._breakers = admission, breakers
        self._hearing, self._retries = hearing, retries
        self._stopper, self._told = stopper, told
        self.last_timings: dict[SessionId, dict[str, float]] = {}
        """Milliseconds of each session's last start or thaw, by stage."""

    async def wake(self, session: Session) -> WakeOutcome:
        """Have a live container for the session, unless that must wait. Never raises."""
        slot = self._slots.get(session.id)
        if not self._background.takes_work:
            return WakeOutcome(kind="called-off", text="the host is leaving, or not there yet")
        if (why := self._slots.withheld.get(session.id)) is not None:
            return WakeOutcome(kind="waiting", text=why)
        if slot is None:
            try:
                slot = await self._slots.open(session.id)
            except HermitcrabError as error:
                return WakeOutcome(kind="failed", failure=failure_of(error), text=error.message)
        if slot.life.phase is Phase.READY and slot.starting is None:
            await isolated(nudge, slot)
            return WakeOutcome(kind="live")
        if slot.life.phase is Phase.FROZEN:
            return await self._thaw(slot)
        if slot.starting is None:
            if slot.life.phase not in STARTABLE:
                slot.wanted = True
                return WakeOutcome(kind="waiting", text=slot.text or f"the container is {slot.life.phase}")
            if not self._background.takes_work:  # The host began to leave while the session was looked up.
                return WakeOutcome(kind="called-off", text="the host is leaving")
            slot.starting, slot.outcome, slot.wanted = anyio.Event(), None, False
            slot.start_scope = anyio.CancelScope()
            slot.retry += 1
            slot.take(Signal.WANTED)
            self._background.spawn(self._start, slot)
        if slot.start_scope is not None and slot.start_scope.cancel_called:
            slot.wanted = True
        await slot.starting.wait()
        if slot.life.phase is Phase.READY:
            # What was committed while the runner was being greeted may have been pushed by nobody.
            await isolated(nudge, slot)
        return slot.outcome or WakeOutcome(kind="called-off", text="the host is leaving")

    async def _start(self, slot: Slot) -> None:
        """One attempt, from claim to hello. Runs in the runner's own tasks: a caller's cancellation ends no start."""
        began = anyio.current_time()
        outcome: WakeOutcome | None = None
        called_off = False
        try:
            try:
                with slot.start_scope or anyio.CancelScope():
                    outcome = await self._attempt(slot, began)
                if outcome is None:
                    called_off = True
                    outcome = await self._called_off(slot)
            except ClaimLostError as error:
                outcome = await self._outrun(slot, error)
            except (HermitcrabError, OSError) as error:
                outcome = await self._failed(slot, error)
            except Exception as error:  # the edge of one session's start: nothing of it may end the host
                log.exception("container.start-broken", session=slot.session.id)
                outcome = await self._failed(slot, EngineError(Failure.UNKNOWN, f"an error of ours: {error!r}"))
        finally:
            slot.outcome = outcome
            starting, slot.starting, slot.start_scope = slot.starting, None, None
            if starting is not None:
                starting.set()
            # What did not come up holds its place until it is cleared away, which was after it had left the queue.
            self._admission.changed()
        if called_off:
            if (slot.wanted or slot.wanted_end != "stopped") and not self._background.closing:
                self._retries.after_failure(slot)
            else:
                self._slots.forget(slot)

    async def _attempt(self, slot: Slot, began: float) -> WakeOutcome:
        needs, who = self._starter.needs(slot), slot.session.id
        await self._starter.survey(slot)
        await self._starter.check_room(slot)
        while True:
            await self._breakers.passable(needs, who)
            if slot.life.phase in LIVE:
                return TAKEN_OVER
            async with self._admission.admitted(slot):
                if not self._breakers.enter(needs, who):
                    continue  # Something broke while this one waited for its turn.
                try:
                    return await self._start_once(slot, began, needs)
                except (HermitcrabError, OSError) as error:
                    self._breakers.broke(needs, who, error)
                    raise
                finally:
                    self._breakers.left(needs, who)

    async def _start_once(self, slot: Slot, began: float, needs: Sequence[str]) -> WakeOutcome:
        async with slot.lock:
            if slot.life.phase in LIVE:
                return TAKEN_OVER
            await self._starter.start(slot, self._hearing.of(slot), began, self._ender.remove_stale)
            self._breakers.worked(needs)
            self.last_timings[slot.session.id] = dict(slot.timings)
        return WakeOutcome(kind="started")

    def why_queued(self) -> Callable[[Slot], tuple[str, int | None]]:
        """Tells of each slot what it waits for before it may start, and its place in the queue, as it is now."""
        admission = self._admission.reasons()

        def told(slot: Slot) -> tuple[str, int | None]:
            if (queued := admission.get(slot.session.id)) is not None:
                return queued
            return self._breakers.reason(self._starter.needs(slot), slot.session.id) or slot.text, None

        return told

    async def _called_off(self, slot: Slot) -> WakeOutcome:
        if slot.life.phase in STARTABLE:
            await self._reread(slot)
        else:
            ending = explain(None, wanted=slot.wanted_end or "stopped", farewell=None)
            if await self._clear_away(slot, lambda _record: ending):
                slot.take(Signal.CALLED_OFF)
        return WakeOutcome(kind="called-off", text=f"it was called off: {slot.wanted_end or 'stopped'}")

    async def _failed(self, slot: Slot, error: HermitcrabError | OSError) -> WakeOutcome:
        failure = failure_of(error)
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
            stages = set(slot.timings)
            known = await self._clear_away(slot, lambda record: failed_start(stages, text, record))
            if known:
                slot.take(Signal.START_FAILED if may_retry else Signal.REFUSED, generation)
            else:
                slot.text = text
        delay = None
        if may_retry and slot.life.phase is not Phase.UNKNOWN:
            delay = self._retries.after_failure(slot)
        await isolated(self._tell_trouble, slot, text, 3 if may_retry else 1)
        return WakeOutcome(kind="failed", failure=failure, text=text, retry_in_s=delay)

    async def _outrun(self, slot: Slot, error: ClaimLostError) -> WakeOutcome:
        """Another host on this home was faster: no failure of the session's. What waits is looked at again soon."""
        await self._reread(slot)
        delay = self._retries.after_failure(slot, at_least=1)
        slot.text = f"another host has begun to start it; looked at again in {delay:.1f} s"
        log.info("container.claimed-elsewhere", session=slot.session.id, text=error.message)
        return WakeOutcome(kind="waiting", text=slot.text, retry_in_s=delay)

    async def _reread(self, slot: Slot) -> None:
        """No claim, or none that is known of: the next attempt begins from what the store says."""
        try:
            slot.session = await self._starter.reread(slot.session.id)
        except HermitcrabError as error:
            log.warning("session.not-read", session=slot.session.id, text=error.message)
        slot.life = Life(Phase.ABSENT, max(slot.session.generation, slot.life.generation))

    async def _clear_away(self, slot: Slot, explained: Callable[[ExitRecord | None], Ending]) -> bool:
        """Draw up the end of what did not come up; `explained` gets the engine's word of how it ended, if it did.

        False: the engine cannot be asked what is left of it; `recovery.py` clears it away once there is an answer.

        Anything else that is left, as when a foreign container has the name, the next attempt meets.
        """
        with anyio.CancelScope(shield=True):
            ending = explained(None)
            try:
                with Deadline(CLEARED_WITHIN_S, "removal", slot.name):
                    record = await self._ender.exit_of(slot)
                    ending = explained(record)
                    await self._ender.bury(slot, ending, record)
            except (HermitcrabError, OSError) as left:
                if isinstance(left, EngineError) and left.failure is Failure.RUNTIME_UNAVAILABLE:
                    slot.wanted_end, slot.end_text = ending.cause, ending.text
                    self._stopper.lost(slot, slot.life.generation, left.message)
                    return False
                log.warning("container.not-buried", session=slot.session.id, text=str(left))
        return True

    async def _tell_trouble(self, slot: Slot, text: str, after: int) -> None:
        if slot.failures >= after and not slot.troubled:
            slot.troubled = True
            await self._told.trouble(slot.session, f"I could not start: {text}. Your message is kept.")

    async def _thaw(self, slot: Slot) -> WakeOutcome:
        async with slot.lock:
            if slot.life.phase is Phase.READY:
                # It was being frozen and could not be, or somebody else has thawed it.
                await isolated(nudge, slot)
                return WakeOutcome(kind="live")
            if slot.life.phase is not Phase.FROZEN:
                slot.wanted = True
                return WakeOutcome(kind="waiting", text=f"the container is {slot.life.phase}")
            began = anyio.current_time()
            try:
                await self._engine.thaw(slot.name)
            except EngineError as error:
                slot.wanted = True
                log.warning("container.not-thawed", session=slot.session.id, text=error.message)
                # It may have ended, which no event has told.
                self._background.spawn(self._stopper.check, slot, slot.life.generation)
                return WakeOutcome(kind="failed", failure=error.failure, text=error.message)
            slot.wanted = False
            slot.take(Signal.THAWED)
            slot.active_at = anyio.current_time()
            if slot.exchange is not None:
                slot.exchange.pulse.thawed()
            await isolated(nudge, slot)
            slot.timings["thaw"] = (anyio.current_time() - began) * 1000
            self.last_timings[slot.session.id] = dict(slot.timings)
        return WakeOutcome(kind="thawed")


def failure_of(error: HermitcrabError | OSError) -> Failure:
    """What kind of failure it is that a start, or the way to one, ended with."""
    match error:
        case EngineError():
            return error.failure
        case NotFoundError():
            return Failure.SPEC_INVALID  # There is no such session, or its group is gone: no later attempt helps.
        case StoreError():
            return Failure.STORE_UNAVAILABLE
        case OSError(errno=number) if number in {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
            return Failure.RESOURCES_EXHAUSTED
        case _:
            return Failure.UNKNOWN


async def nudge(slot: Slot) -> None:
    """Push what waits in the mailbox, if the runner can be reached."""
    if slot.exchange is not None:
        slot.exchange.rows_may_wait()
        await slot.exchange.pump()
