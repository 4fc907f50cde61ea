"""From committed rows to channels: in order within a session, in parallel across sessions, each attempt on record.

The rule for a row that was being sent when the host died: a channel with idempotency keys gets it again under the same
key; for any other channel it becomes `unknown-after-crash` and is not repeated, since nobody wants an answer twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from sqlite3 import Connection

import anyio
import anyio.abc
import structlog

from hermitcrab.channels.base import Channel, Delivery
from hermitcrab.errors import ChannelError, HermitcrabError
from hermitcrab.logic.retry import DELIVERY
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import SessionId
from hermitcrab.model.messages import Address, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.store import destinations, messaging_groups
from hermitcrab.store.database import Store
from hermitcrab_wire import faults

AT_ONCE = 32
"""Rows under way to one channel at the same time; a slow channel holds back its own rows and no other's."""

ATTEMPT_WITHIN_S = 60.0

UNEXPECTED_AT_MOST = 5
"""Attempts at a row for which a channel fails as no channel should; then it counts as undeliverable."""

Change = Callable[[Mailbox], object]

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Outbox:
    session: Session
    busy: bool = False
    again: bool = False
    at_once: bool = False
    """What was postponed is due now."""
    retry_at: float | None = None
    """On the monotonic clock: when the one timer that counts goes off."""
    failures: int = 0
    """Times in a row that the mailbox could not be used."""
    waiting: set[Address] = field(default_factory=set)
    """Addresses with a postponed row."""
    waits_somewhere: bool = False
    """An earlier host, or an earlier outbox, postponed rows to addresses that are not known here."""
    unrecorded: list[Change] = field(default_factory=list)
    """What became of rows, and could not be written down yet."""


class Deliverer:
    """Use as: `await tasks.start(deliverer.run)`, then `notify` whenever a session has new rows."""

    def __init__(self, store: Store, mailboxes: Mailboxes, channels: Mapping[str, Channel]) -> None:
        self._store, self._mailboxes, self._channels = store, mailboxes, channels
        self._outboxes: dict[str, _Outbox] = {}
        self._limiters = {name: anyio.Semaphore(AT_ONCE) for name in channels}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._recovered: set[SessionId] = set()
        """Sessions whose interrupted rows of an earlier host were seen to."""
        self._own_chat: dict[SessionId, tuple[str, str]] = {}

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            task_status.started()
            await anyio.sleep_forever()

    def notify(self, session: Session) -> None:
        """Rows of this session may be due. Returns at once."""
        outbox = self._outboxes.setdefault(session.id, _Outbox(session))
        outbox.again = True
        if not outbox.busy and self._tasks is not None:
            outbox.busy = True
            self._tasks.start_soon(self._drain, outbox)

    def notify_waiting(self, address_matches: Callable[[Address], bool]) -> None:
        """A channel that could not deliver can now: try what waits for such an address at once."""
        for outbox in list(self._outboxes.values()):
            if outbox.waits_somewhere or any(address_matches(each) for each in outbox.waiting):
                outbox.at_once = True
                self.notify(outbox.session)

    async def _drain(self, outbox: _Outbox) -> None:
        try:
            while outbox.again:
                outbox.again = False
                await self._deliver_due(outbox)
            outbox.failures = 0
        except Exception as error:  # the edge of one session's deliveries: nothing of it may end the others'
            # The mailbox cannot be read or written; its rows stay as they are and are tried later.
            outbox.failures += 1
            delay_s = DELIVERY.delay_s(outbox.failures + 2, random.random())  # noqa: S311
            foreseen = isinstance(error, (HermitcrabError, OSError))
            log.error("delivery.halted", session=outbox.session.id, text=str(error), exc_info=not foreseen)
            outbox.again = False
            self._retry(outbox, delay_s)
        finally:
            outbox.busy = False
            if outbox.again and self._tasks is not None:
                self.notify(outbox.session)
            elif outbox.retry_at is None:
                self._outboxes.pop(outbox.session.id, None)

    async def _deliver_due(self, outbox: _Outbox) -> None:
        session, run = outbox.session, self._mailboxes.run
        while outbox.unrecorded:
            await run(session, outbox.unrecorded[0])
            del outbox.unrecorded[0]
        if session.id not in self._recovered:
            await self._recover(session)
            self._recovered.add(session.id)
        if outbox.at_once:
            outbox.at_once = False
            outbox.waiting.clear()
            await run(session, Mailbox.deliver_now)
        # What was postponed holds back what was said after it to the same address; the mailbox sees to that.
        while True:
            saturated = frozenset(name for name, limiter in self._limiters.items() if limiter.value == 0)
            begun = await run(session, lambda mailbox, saturated=saturated: _begin_next(mailbox, saturated))  # type: ignore[misc]
            match begun:
                case OutboundRow():
                    faults.point("delivery.sending")
                    async with self._limiter(_channel_of(begun)):
                        await self._deliver(outbox, begun)
                case _Saturated():
                    async with self._limiter(begun.channel):
                        pass  # There is room again; the row is begun only then.
                case _:
                    break
        # Rows that an earlier host postponed are due some day too, and nobody else remembers them.
        outbox.waits_somewhere = begun is not None and not outbox.waiting
        if begun is not None:
            self._retry(outbox, max(0.0, (begun - datetime.now(UTC)).total_seconds()))
        else:
            outbox.waiting.clear()

    def _limiter(self, channel: str) -> anyio.Semaphore:
        return self._limiters.setdefault(channel, anyio.Semaphore(AT_ONCE))

    async def _record(self, outbox: _Outbox, change: Change) -> None:
        """Write down what became of a row. If that fails it is repeated before anything else of the session is sent."""
        outbox.unrecorded.append(change)
        await self._mailboxes.run(outbox.session, change)
        outbox.unrecorded.remove(change)

    async def _recover(self, session: Session) -> None:
        """Rows that were being sent when the host died."""
        for row in await self._mailboxes.run(session, lambda mailbox: mailbox.interrupted()):
            channel = self._channels.get(row.address.channel_type) if row.address else None
            if channel is not None and channel.supports_idempotency:
                reason = "the host died while it was sent; sent again under the same key"
                await self._mailboxes.run(
                    session,
                    lambda mailbox, row=row, reason=reason: mailbox.delivery_failed(  # type: ignore[misc]
                        row.id, reason, datetime.now(UTC)
                    ),
                )
            else:
                await self._mailboxes.run(
                    session,
                    lambda mailbox, row=row: mailbox.delivery_unknown(row.id),  # type: ignore[misc]
                )
                log.warning("delivery.unknown-after-crash", session=session.id, row=row.id)

    async def _deliver(self, outbox: _Outbox, row: OutboundRow) -> None:
        """One attempt at a row that is on record as being sent."""
        session = outbox.session
        try:
            refusal = await self._refusal(session, row)
        except (HermitcrabError, OSError) as error:
            await self._postpone(outbox, row, f"the grant could not be looked up: {error}")
            return
        if refusal is not None or row.address is None:
            await self._record(outbox, lambda mailbox: mailbox.refused(row.id, refusal or "it has no address"))
            log.warning("delivery.refused", session=session.id, row=row.id, reason=refusal)
            return
        channel = self._channels.get(row.address.channel_type)
        if channel is None:
            await self._postpone(outbox, row, f"channel {row.address.channel_type!r} is not set up")
            return
        delivery = Delivery(
            key=row.id, address=row.address, kind=row.kind, content=row.content, in_reply_to=row.in_reply_to
        )
        try:
            with anyio.move_on_after(ATTEMPT_WITHIN_S) as attempt:
                platform_id = await channel.deliver(delivery)
        except ChannelError as error:
            await self._failed(outbox, row, error.message, again=error.transient)
            return
        except Exception as error:  # a channel is a plugin: whatever it raises costs this attempt
            log.exception("channel.broken", channel=channel.type, session=session.id, row=row.id)
            again = channel.supports_idempotency and row.attempts < UNEXPECTED_AT_MOST
            await self._failed(outbox, row, f"the channel failed: {error!r}"[:500], again=again)
            return
        if attempt.cancelled_caught:
            # It may have arrived. Only a channel that recognises the key shows it once all the same.
            reason = f"the channel did not answer in {ATTEMPT_WITHIN_S:g} s"
            await self._failed(outbox, row, reason, again=channel.supports_idempotency)
            return
        faults.point("delivery.sent")
        await self._record(outbox, lambda mailbox: mailbox.delivered(row.id, platform_id))
        faults.point("delivery.recorded")

    async def _failed(self, outbox: _Outbox, row: OutboundRow, reason: str, *, again: bool) -> None:
        if again:
            await self._postpone(outbox, row, reason)
            return
        await self._record(outbox, lambda mailbox: mailbox.delivery_failed(row.id, reason, None))
        log.error("delivery.failed", session=outbox.session.id, row=row.id, reason=reason)

    async def _refusal(self, session: Session, row: OutboundRow) -> str | None:
        """Why the agent may not send there, checked at the moment of sending. None: it may."""
        address = row.address
        if address is None:
            return "it has no address"
        place = (address.channel_type, address.platform_id)
        if self._own_chat.get(session.id) == place:
            return None  # A session's own chat never changes; grants to other places may.

        def granted(connection: Connection) -> bool:
            chat = messaging_groups.by_address(connection, address)
            if chat is None:
                return False
            if chat.id == session.messaging_group_id:
                self._own_chat[session.id] = place
                return True
            return any(
                each.type == "channel" and (each.channel_type, each.platform_id) == place
                for each in destinations.for_agent_group(connection, session.agent_group_id)
            )

        if await self._store.read(granted):
            return None
        return f"the agent has no destination {address.channel_type}:{address.platform_id}"

    async def _postpone(self, outbox: _Outbox, row: OutboundRow, reason: str) -> None:
        delay_s = DELIVERY.delay_s(row.attempts, random.random())  # noqa: S311
        retry_at = datetime.now(UTC) + timedelta(seconds=delay_s)
        if row.address is not None:
            outbox.waiting.add(row.address)
        await self._record(outbox, lambda mailbox: mailbox.delivery_failed(row.id, reason, retry_at))
        log.info("delivery.postponed", session=outbox.session.id, row=row.id, reason=reason, retry_in_s=round(delay_s))

    def _retry(self, outbox: _Outbox, delay_s: float) -> None:
        """Look again then, or earlier if that was wanted before."""
        at = time.monotonic() + delay_s
        if self._tasks is not None and (outbox.retry_at is None or at < outbox.retry_at):
            outbox.retry_at = at
            self._tasks.start_soon(self._notify_at, outbox, at)

    async def _notify_at(self, outbox: _Outbox, at: float) -> None:
        await anyio.sleep(at - time.monotonic())
        if outbox.retry_at == at:
            outbox.retry_at = None
            self.notify(outbox.session)


@dataclass(frozen=True, slots=True)
class _Saturated:
    """The next row is for a channel that has as much under way as it may have."""

    channel: str


def _begin_next(mailbox: Mailbox, saturated: frozenset[str]) -> OutboundRow | _Saturated | datetime | None:
    """The next row, on record as being sent; else when the first postponed one is due; else None."""
    found = mailbox.undelivered(1)
    if not found:
        at = mailbox.next_delivery_at()
        return None if at is None else datetime.fromisoformat(at)
    if (channel := _channel_of(found[0])) in saturated:
        return _Saturated(channel)
    mailbox.begin_delivery(found[0].id)
    return replace(found[0], delivery="sending", attempts=found[0].attempts + 1)


def _channel_of(row: OutboundRow) -> str:
    return row.address.channel_type if row.address is not None else ""
