"""From committed rows to channels: in order within a session, in parallel across sessions, each attempt on record.

The rule for a row that was being sent when the host died: a channel with idempotency keys gets it again under the same
key; for any other channel it becomes `unknown-after-crash` and is not repeated, since nobody wants an answer twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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

SESSIONS_AT_ONCE = 32
"""Sessions whose rows are under way at the same time; one slow channel holds back no more than its own."""

ATTEMPT_WITHIN_S = 60.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Outbox:
    session: Session
    busy: bool = False
    again: bool = False
    retry_scheduled: bool = False
    at_once: bool = False
    """What was postponed is due now."""
    waiting: set[Address] = field(default_factory=set)
    """Addresses with a postponed row."""


class Deliverer:
    """Use as: `await tasks.start(deliverer.run)`, then `notify` whenever a session has new rows."""

    def __init__(self, store: Store, mailboxes: Mailboxes, channels: Mapping[str, Channel]) -> None:
        self._store, self._mailboxes, self._channels = store, mailboxes, channels
        self._outboxes: dict[str, _Outbox] = {}
        self._limiter = anyio.Semaphore(SESSIONS_AT_ONCE)
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
            if any(address_matches(each) for each in outbox.waiting):
                outbox.waiting.clear()
                outbox.at_once = True
                self.notify(outbox.session)

    async def _drain(self, outbox: _Outbox) -> None:
        try:
            async with self._limiter:
                while outbox.again:
                    outbox.again = False
                    await self._deliver_due(outbox)
        except (HermitcrabError, OSError) as error:
            # The mailbox cannot be read or written; its rows stay as they are and are tried later.
            log.error("delivery.halted", session=outbox.session.id, text=str(error))
            self._retry(outbox, 5.0)
        finally:
            outbox.busy = False
            if outbox.again and self._tasks is not None:
                self.notify(outbox.session)
            elif not outbox.retry_scheduled:
                self._outboxes.pop(outbox.session.id, None)

    async def _deliver_due(self, outbox: _Outbox) -> None:
        session = outbox.session
        if session.id not in self._recovered:
            await self._recover(session)
            self._recovered.add(session.id)
        if outbox.at_once:
            outbox.at_once = False
            await self._mailboxes.run(session, Mailbox.deliver_now)
        # What was postponed holds back what was said after it to the same address; the mailbox sees to that.
        while (row := await self._mailboxes.run(session, Mailbox.begin_next_delivery)) is not None:
            faults.point("delivery.sending")
            await self._deliver(outbox, row)

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
        session, run = outbox.session, self._mailboxes.run
        refusal = await self._refusal(session, row)
        if refusal is not None or row.address is None:
            await run(session, lambda mailbox: mailbox.refused(row.id, refusal or "it has no address"))
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
            with anyio.fail_after(ATTEMPT_WITHIN_S):
                platform_id = await channel.deliver(delivery)
        except ChannelError as error:
            reason = error.message
            if error.transient:
                await self._postpone(outbox, row, reason)
            else:
                await run(session, lambda mailbox: mailbox.delivery_failed(row.id, reason, None))
                log.error("delivery.failed", session=session.id, row=row.id, reason=reason)
            return
        except TimeoutError:
            await self._postpone(outbox, row, f"the channel did not answer in {ATTEMPT_WITHIN_S:g} s")
            return
        faults.point("delivery.sent")
        await run(session, lambda mailbox: mailbox.delivered(row.id, platform_id))
        faults.point("delivery.recorded")

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
        await self._mailboxes.run(outbox.session, lambda mailbox: mailbox.delivery_failed(row.id, reason, retry_at))
        log.info("delivery.postponed", session=outbox.session.id, row=row.id, reason=reason, retry_in_s=round(delay_s))
        if row.address is not None:
            outbox.waiting.add(row.address)
        self._retry(outbox, delay_s)

    def _retry(self, outbox: _Outbox, delay_s: float) -> None:
        if self._tasks is not None and not outbox.retry_scheduled:
            outbox.retry_scheduled = True
            self._tasks.start_soon(self._notify_later, outbox, delay_s)

    async def _notify_later(self, outbox: _Outbox, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        outbox.retry_scheduled = False
        self.notify(outbox.session)
