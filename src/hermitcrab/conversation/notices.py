"""What the host itself says in a chat: that somebody is writing, and in one sentence when something went wrong."""

from __future__ import annotations

import time
from collections.abc import Mapping

import anyio
import anyio.abc
import structlog

from hermitcrab.channels.base import Channel, Delivery
from hermitcrab.conversation.delivery import Deliverer
from hermitcrab.errors import ChannelError, HermitcrabError
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.container import Finding
from hermitcrab.model.ids import MessageId, SessionId, new_id
from hermitcrab.model.messages import Address, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.observe.supervision import isolated
from hermitcrab.store import messaging_groups, sessions
from hermitcrab.store.clock import utc_now
from hermitcrab.store.database import Store

TYPING_INTERVAL_S = 4.0
"""Platforms show "is writing" for about five seconds."""

SAID_WITHIN_S = 10.0

log = structlog.get_logger(__name__)


class Notices:
    def __init__(
        self, store: Store, mailboxes: Mailboxes, deliverer: Deliverer, channels: Mapping[str, Channel]
    ) -> None:
        self._store, self._mailboxes, self._deliverer, self._channels = store, mailboxes, deliverer, channels
        self._typed_at: dict[SessionId, float] = {}
        self._chats: dict[SessionId, Address] = {}
        """Of sessions that have typed: a session's own chat never changes."""
        self._tasks: anyio.abc.TaskGroup | None = None

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            task_status.started()
            await anyio.sleep_forever()

    def working(self, session: Session) -> None:
        """The runner works on a turn: show it, at most every few seconds. Returns at once."""
        now = time.monotonic()
        if self._tasks is None or now - self._typed_at.get(session.id, -TYPING_INTERVAL_S) < TYPING_INTERVAL_S:
            return
        self._typed_at[session.id] = now
        self._tasks.start_soon(isolated, self._type, session)

    def resting(self, session: Session) -> None:
        """The session's container is gone."""
        self._typed_at.pop(session.id, None)
        self._chats.pop(session.id, None)

    def finding(self, session_id: SessionId, finding: Finding) -> None:
        """Something of the gateway's that the people of a session should know. Returns at once."""
        if self._tasks is not None:
            self._tasks.start_soon(
                isolated, self._tell_finding, session_id, f"{finding.text[:1].upper()}{finding.text[1:]}."
            )

    async def _tell_finding(self, session_id: SessionId, text: str) -> None:
        session = await self._store.read(lambda connection: sessions.by_id(connection, session_id))
        if session is not None:
            await self.trouble(session, text)

    async def trouble(self, session: Session, text: str) -> None:
        """One sentence to the session's chat, kept and delivered like the agent's own words. Never raises."""
        now = utc_now()
        address: Address | None = None
        try:
            address = await self._address(session)
            row = OutboundRow(
                id=MessageId(new_id("notice", int(now.timestamp() * 1000))),
                kind="chat",
                timestamp=now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                content={"text": text, "notice": True},
                address=address,
            )
            await self._mailboxes.run(session, lambda mailbox: mailbox.append([row]))
        except (HermitcrabError, OSError) as error:
            # Often the very trouble that it tells of: then it is said once, without being kept.
            log.error("notice.not-kept", session=session.id, text=text, reason=str(error))
            await isolated(self._say_at_once, address, text, f"notice-{session.id}-{int(now.timestamp() * 1000)}")
            return
        self._deliverer.notify(session)

    async def _say_at_once(self, address: Address | None, text: str, key: str) -> None:
        channel = self._channels.get(address.channel_type) if address is not None else None
        if channel is None or address is None:
            return
        content = {"text": text, "notice": True}
        with anyio.move_on_after(SAID_WITHIN_S):
            await channel.deliver(Delivery(key=key, address=address, kind="chat", content=content))

    async def _type(self, session: Session) -> None:
        address = self._chats.get(session.id) or await self._address(session)
        channel = self._channels.get(address.channel_type) if address is not None else None
        if channel is None or address is None:
            return
        if session.id in self._typed_at:
            self._chats[session.id] = address
        try:
            with anyio.move_on_after(TYPING_INTERVAL_S):
                await channel.typing(address)
        except ChannelError as error:
            log.debug("typing.failed", session=session.id, text=error.message)

    async def _address(self, session: Session) -> Address | None:
        group_id = session.messaging_group_id
        if group_id is None:
            return None
        chat = await self._store.read(lambda connection: messaging_groups.by_id(connection, group_id))
        if chat is None:
            return None
        return Address(channel_type=chat.channel_type, platform_id=chat.platform_id, thread_id=session.thread_id)
