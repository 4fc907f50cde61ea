"""From committed rows to channels: in order to each address, side by side to all others, each attempt on record.

Every address of a session that has something waiting gets a lane: a task that sends one row after the other and ends
with the last. The rule for a row that was being sent when the host died: a channel with idempotency keys gets it again
under the same key; for any other channel it becomes `unknown-after-crash` and is not repeated, since nobody wants an
answer twice.
"""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.abc
import structlog

from hermitcrab.channels.base import Channel
from hermitcrab.conversation.failures import Failures
from hermitcrab.conversation.pace import Pace
from hermitcrab.conversation.sending import NotGranted, Sender, Sent
from hermitcrab.errors import ConflictError, HermitcrabError, NotFoundError
from hermitcrab.logic.delivery import Later, Trouble, channel_pause_s, verdict
from hermitcrab.logic.retry import DELIVERY, Backoff
from hermitcrab.mailbox.deliveries import lane_of
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import MessageId, SessionId
from hermitcrab.model.messages import Address, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.observe.supervision import isolated
from hermitcrab.settings.model import DeliverySettings
from hermitcrab.store.clock import utc_now
from hermitcrab.store.database import Store
from hermitcrab_wire import faults

LONGEST_WAIT_S = 600.0
"""A timer that is set for later looks again earlier: clocks of machines change."""

Change = Callable[[Mailbox], object]

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Lane:
    """What is being sent to one address."""

    name: str
    address: Address | None
    again: bool = False
    """Something was said there meanwhile."""


@dataclass(slots=True, eq=False)
class _Outbox:
    session: Session
    looking: bool = False
    again: bool = False
    at_once: bool = False
    """What was postponed is due now."""
    lanes: dict[str, _Lane] = field(default_factory=dict)
    waiting: dict[str, Address | None] = field(default_factory=dict)
    """Lanes with a postponed row."""
    postponed: dict[MessageId, float] = field(default_factory=dict)
    """When rows that this process postponed are due, on the monotonic clock: the ledger's may have been set back."""
    retry_at: float | None = None
    """On the monotonic clock: when the one timer that counts goes off."""
    failures: int = 0
    """Times in a row that the mailbox could not be used."""
    untold: int = 0
    """Not 0: something ended badly of which those concerned may not have heard. It grows with each vain attempt."""


class Deliverer:
    """Use as: `await tasks.start(deliverer.run)`, then `notify` whenever a session has new rows."""

    def __init__(
        self,
        store: Store,
        mailboxes: Mailboxes,
        channels: Mapping[str, Channel],
        settings: DeliverySettings | None = None,
        *,
        outbox_of: Callable[[Session], Path],
        backoff: Backoff = DELIVERY,
        at_rest: Callable[[Session], object] = lambda _session: None,
        ended: Callable[[Session, OutboundRow], object] = lambda _session, _row: None,
    ) -> None:
        """`outbox_of`: where the files lie that a session's agent sends.

        `at_rest`: told of a session of which nothing waits to be sent any more; `ended`: told what became of each
        message. Both return at once.
        """
        self._told_of_end = ended
        self._settings = settings or DeliverySettings()
        self._mailboxes, self._backoff, self._told_of_rest = mailboxes, backoff, at_rest
        self._pace = Pace(channels)
        self._sender = Sender(
            store, mailboxes, channels, outbox_of=outbox_of, deadline_s=self._settings.attempt_deadline_s
        )
        self._failures = Failures(store, mailboxes, channels)
        self._outboxes: dict[SessionId, _Outbox] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._recovered: set[SessionId] = set()
        """Sessions whose interrupted rows of an earlier host were seen to."""
        self._closing = False
        self._at_rest = anyio.Event()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            task_status.started()
            await anyio.sleep_forever()

    async def close(self, *, within_s: float) -> None:
        """Begin nothing any more, and wait for what is under way: what is cut off may have arrived or not."""
        self._closing = True
        with anyio.move_on_after(within_s):
            while any(outbox.lanes for outbox in self._outboxes.values()):
                self._at_rest = anyio.Event()
                await self._at_rest.wait()

    def notify(self, session: Session, said: Sequence[OutboundRow] = ()) -> None:
        """Rows of this session may be due. Returns at once. `said`: they are these, and nothing else is new."""
        outbox = self._outboxes.setdefault(session.id, _Outbox(session))
        if said and session.id in self._recovered and all(row.delivery == "queued" for row in said):
            # Their lanes are known: no need to look what waits, and where.
            for row in said:
                self._open_lane(outbox, lane_of(row.address), row.address)
            return
        outbox.again = True
        if not outbox.looking and self._tasks is not None and not self._closing:
            outbox.looking = True
            self._tasks.start_soon(self._look, outbox)

    def notify_waiting(self, address_matches: Callable[[Address], bool]) -> None:
        """A channel that could not deliver can now: try what waits for such an address at once."""
        for outbox in list(self._outboxes.values()):
            if any(each is not None and address_matches(each) for each in outbox.waiting.values()):
                outbox.at_once = True
                self.notify(outbox.session)

    def failed_later(self, session: Session, row: OutboundRow) -> None:
        """A message that its platform had taken has failed: those concerned are told. Returns at once."""
        self._told_of_end(session, row)
        self._outboxes.setdefault(session.id, _Outbox(session)).untold += 1
        self.notify(session)

    def under_way(self) -> dict[SessionId, list[str]]:
        """The lanes that are being sent in, by session."""
        return {key: list(outbox.lanes) for key, outbox in self._outboxes.items() if outbox.lanes}

    def paused(self) -> dict[str, float]:
        """Channels that take nothing for now, as their platforms asked, each with the seconds that are left."""
        return self._pace.paused()

    async def _look(self, outbox: _Outbox) -> None:
        """Give each address with something due a lane, and set the timer for what is due later."""
        try:
            while outbox.again:
                outbox.again = False
                await self._look_once(outbox)
            outbox.failures = 0
        except Exception as error:  # noqa: BLE001  # the edge of one session's deliveries: it may end no other's
            self._halted(outbox, error)
        finally:
            outbox.looking = False
            self._forget(outbox)

    async def _look_once(self, outbox: _Outbox) -> None:
        session, run = outbox.session, self._mailboxes.run
        if session.id not in self._recovered:
            await self._recover(session)
            self._recovered.add(session.id)
            outbox.untold += 1
        if outbox.untold:
            await self._tell(outbox)
        if outbox.at_once:
            await run(session, lambda mailbox: mailbox.deliver_now())
            outbox.at_once = False
        heads, scheduled_at = await run(session, lambda mailbox: mailbox.lanes())
        now = utc_now()
        due_at = [] if scheduled_at is None else [_moment(scheduled_at, now)]
        outbox.waiting.clear()
        for head in heads:
            if (at := _moment(head.due_at, now)) > now:
                if time.monotonic() < outbox.postponed.get(head.id, math.inf):
                    outbox.waiting[head.lane] = head.address
                    due_at.append(at)
                    continue
                await run(session, functools.partial(Mailbox.deliver_now, lane=head.lane))
            self._open_lane(outbox, head.lane, head.address)
        if due_at:
            self._retry(outbox, (min(due_at) - now).total_seconds())

    def _open_lane(self, outbox: _Outbox, name: str, address: Address | None) -> None:
        if (lane := outbox.lanes.get(name)) is not None:
            lane.again = True
        elif self._tasks is not None and not self._closing:
            lane = outbox.lanes[name] = _Lane(name, address)
            self._tasks.start_soon(self._drain, outbox, lane)

    async def _drain(self, outbox: _Outbox, lane: _Lane) -> None:
        """Send what waits in one lane, one after the other, until nothing is due there."""
        try:
            more = True
            while (more or lane.again) and not self._closing:
                lane.again = False
                async with self._pace.turn(lane.address):
                    row = await self._mailboxes.run(outbox.session, lambda mailbox: mailbox.begin_in_lane(lane.name))
                    if row is None and more:
                        # What waits there is due later, and no timer may be set for that yet.
                        outbox.again = True
                    more = row is not None and await self._deliver(outbox, lane, row)
            outbox.failures = 0
        except Exception as error:  # noqa: BLE001  # the edge of one lane, as above
            self._halted(outbox, error)
        finally:
            del outbox.lanes[lane.name]
            self._at_rest.set()
            self._forget(outbox)

    async def _deliver(self, outbox: _Outbox, lane: _Lane, row: OutboundRow) -> bool:
        """One attempt at a row that is on record as being sent, and what follows. Whether more waits behind it."""
        session = outbox.session
        outbox.postponed.pop(row.id, None)
        faults.point("delivery.sending")

        async def note(parts: int, platform_id: str | None) -> None:
            await self._record(outbox, lane, lambda mailbox: mailbox.part_sent(row.id, parts, platform_id))

        came_of_it = await self._sender.send(session, row, note)
        match came_of_it:
            case Sent(platform_id):
                more = await self._record(outbox, lane, lambda mailbox: mailbox.delivered(row.id, platform_id))
                self._told_of_end(session, replace(row, delivery="delivered", platform_message_id=platform_id))
                await isolated(self._sender.forget_files, session, row)
                faults.point("delivery.recorded")
                return more
            case NotGranted(reason):
                log.warning("delivery.refused", session=session.id, row=row.id, reason=reason)
                more = await self._record(outbox, lane, lambda mailbox: mailbox.refused(row.id, reason, tell=True))
                self._told_of_end(session, replace(row, delivery="refused", reason=reason))
                await isolated(self._sender.forget_files, session, row)
                await self._tell(outbox)
                return more
            case Trouble():
                return await self._failed(outbox, lane, row, came_of_it)

    async def _failed(self, outbox: _Outbox, lane: _Lane, row: OutboundRow, trouble: Trouble) -> bool:
        now = utc_now()
        if (pause_s := channel_pause_s(trouble)) > 0 and lane.address is not None:
            self._pace.pause(lane.address.channel_type, pause_s)
        decided = verdict(
            trouble,
            attempts=row.attempts,
            waited_s=(now - _moment(row.queued_at, now)).total_seconds(),
            give_up_after_s=self._settings.give_up_after_s,
            idempotent=self._sender.is_idempotent(row),
            jitter=random.random(),  # noqa: S311
            backoff=self._backoff,
        )
        if isinstance(decided, Later):
            retry_at = now + timedelta(seconds=decided.in_s)
            outbox.waiting[lane.name] = lane.address
            outbox.postponed[row.id] = time.monotonic() + decided.in_s
            await self._record(outbox, lane, lambda mailbox: mailbox.delivery_failed(row.id, decided.reason, retry_at))
            log.info(
                "delivery.postponed",
                session=outbox.session.id,
                row=row.id,
                reason=decided.reason,
                retry_in_s=round(decided.in_s),
            )
            self._retry(outbox, decided.in_s)
            return False
        log.error("delivery.failed", session=outbox.session.id, row=row.id, reason=decided.reason)
        more = await self._record(
            outbox, lane, lambda mailbox: mailbox.delivery_failed(row.id, decided.reason, None, tell=True)
        )
        self._told_of_end(outbox.session, replace(row, delivery="failed", reason=decided.reason))
        await self._tell(outbox)
        return more

    async def _record(self, outbox: _Outbox, lane: _Lane, change: Change) -> bool:
        """Write down what became of a row, however often it takes: nothing else is sent in the lane before.

        Returns whether more waits in the lane.
        """

        def work(mailbox: Mailbox) -> bool:
            change(mailbox)
            return mailbox.waits_in(lane.name)

        failures = 0
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    return await self._mailboxes.run(outbox.session, work)
            except (ConflictError, NotFoundError) as error:
                # Somebody else settled it meanwhile; repeating this would change nothing.
                log.error("delivery.settled-otherwise", session=outbox.session.id, text=error.message)
                return True
            except (HermitcrabError, OSError) as error:
                failures += 1
                log.error("delivery.not-recorded", session=outbox.session.id, text=str(error))
                await anyio.sleep(self._backoff.delay_s(failures, random.random()))  # noqa: S311

    async def _tell(self, outbox: _Outbox) -> None:
        """Those concerned hear of what ended badly, if not now then later."""
        try:
            noticed = await self._failures.tell(outbox.session)
        except (HermitcrabError, OSError) as error:
            log.error("failure.not-told", session=outbox.session.id, text=str(error))
            outbox.untold += 1
            self._retry(outbox, self._backoff.delay_s(outbox.untold + 2, random.random()))  # noqa: S311
            return
        outbox.untold = 0
        if noticed:
            self.notify(outbox.session)

    async def _recover(self, session: Session) -> None:
        """Rows that were being sent when the host died."""
        run = self._mailboxes.run
        for row in await run(session, lambda mailbox: mailbox.interrupted()):
            key: MessageId = row.id
            if self._sender.is_idempotent(row):
                reason, at = "the host died while it was sent; sent again under the same key", utc_now()
                await run(session, lambda mailbox, key=key, at=at: mailbox.delivery_failed(key, reason, at))  # type: ignore[misc]  # noqa: B023
            else:
                await run(session, lambda mailbox, key=key: mailbox.delivery_unknown(key, tell=True))  # type: ignore[misc]
                log.warning("delivery.unknown-after-crash", session=session.id, row=key)

    def _halted(self, outbox: _Outbox, error: Exception) -> None:
        """The mailbox cannot be read or written; its rows stay as they are and are tried later."""
        outbox.failures += 1
        foreseen = isinstance(error, (HermitcrabError, OSError))
        log.error("delivery.halted", session=outbox.session.id, text=str(error), exc_info=not foreseen)
        outbox.again = False
        self._retry(outbox, self._backoff.delay_s(outbox.failures + 2, random.random()))  # noqa: S311

    def _retry(self, outbox: _Outbox, delay_s: float) -> None:
        """Look again then, or earlier if that was wanted before."""
        at = time.monotonic() + min(max(0.0, delay_s), LONGEST_WAIT_S)
        if self._tasks is not None and not self._closing and (outbox.retry_at is None or at < outbox.retry_at):
            outbox.retry_at = at
            self._tasks.start_soon(self._notify_at, outbox, at)

    async def _notify_at(self, outbox: _Outbox, at: float) -> None:
        await anyio.sleep(max(0.0, at - time.monotonic()))
        if outbox.retry_at == at:
            outbox.retry_at = None
            self.notify(outbox.session)

    def _forget(self, outbox: _Outbox) -> None:
        """Keep nothing of a session that has nothing to deliver; look again if that was wanted meanwhile."""
        if outbox.looking:
            return
        if outbox.again:
            self.notify(outbox.session)
        elif not outbox.lanes and outbox.retry_at is None:
            self._outboxes.pop(outbox.session.id, None)
            self._told_of_rest(outbox.session)


def _moment(text: str | None, now: datetime) -> datetime:
    """A time as the ledger has it. None, and what cannot be read, is now: better early than never."""
    if text is None:
        return now
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return now
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
