"""One attempt to deliver one message: whether the agent may, through which channel, and what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Literal, TypeVar

import anyio
import structlog

from hermitcrab.channels.base import Channel, Delivery
from hermitcrab.errors import ChannelError, HermitcrabError, NobodyThereError
from hermitcrab.logic.delivery import Trouble, plain_platform_id, plain_reason
from hermitcrab.model.ids import SessionId
from hermitcrab.model.messages import OutboundRow, delivery_key
from hermitcrab.model.sessions import Session
from hermitcrab.store import destinations, messaging_groups
from hermitcrab.store.database import Store
from hermitcrab_wire import faults

Found = TypeVar("Found")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sent:
    """The channel took it."""

    platform_id: str | None


@dataclass(frozen=True, slots=True)
class NotGranted:
    """The agent may not send that there."""

    reason: str


class Sender:
    def __init__(self, store: Store, channels: Mapping[str, Channel], *, deadline_s: float) -> None:
        self._store, self._channels, self._deadline_s = store, channels, deadline_s
        self._own_chat: dict[SessionId, tuple[str, str]] = {}

    def is_idempotent(self, row: OutboundRow) -> bool:
        """Whether the row may be repeated after an attempt of which nobody knows what came of it."""
        channel = self._channel(row)
        return channel is not None and channel.supports_idempotency

    async def send(self, session: Session, row: OutboundRow) -> Sent | NotGranted | Trouble:
        """One attempt at a row that is on record as being sent. Raises nothing of the channel's."""
        try:
            refusal = await self._refusal(session, row)
        except (HermitcrabError, OSError) as error:
            return Trouble(kind="transient", reason=f"the grant could not be looked up: {error}")
        if refusal is not None or row.address is None:
            return NotGranted(refusal or "it has no address")
        channel = self._channel(row)
        if channel is None:
            return Trouble(kind="transient", reason=f"channel {row.address.channel_type!r} is not set up")
        delivery = Delivery(
            key=delivery_key(session.id, row.id),
            address=row.address,
            kind=row.kind,
            content=row.content,
            in_reply_to=row.in_reply_to,
        )
        return await self._call(channel, delivery)

    async def _call(self, channel: Channel, delivery: Delivery) -> Sent | Trouble:
        try:
            with anyio.move_on_after(self._deadline_s) as attempt:
                platform_id = await _contained(lambda: channel.deliver(delivery))
                faults.point("delivery.sent")
                return Sent(plain_platform_id(platform_id))
        except NobodyThereError as error:
            return Trouble(kind="nobody", reason=plain_reason(error.message))
        except ChannelError as error:
            kind: Literal["transient", "permanent"] = "transient" if error.transient else "permanent"
            return Trouble(kind=kind, reason=plain_reason(error.message), retry_after_s=error.retry_after_s)
        except Exception as error:  # a channel is a plugin: whatever it raises costs this attempt
            log.exception("channel.broken", channel=channel.type, key=delivery.key)
            return Trouble(kind="broken", reason=plain_reason(f"the channel failed: {error!r}"))
        assert attempt.cancelled_caught
        return Trouble(kind="uncertain", reason=f"the channel did not answer in {self._deadline_s:g} s")

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

    def _channel(self, row: OutboundRow) -> Channel | None:
        return self._channels.get(row.address.channel_type) if row.address is not None else None


class _ChannelGaveUpError(Exception):
    """A channel raised what is meant to end a task or a process, and nobody here was to end."""


async def _contained(function: Callable[[], Awaitable[Found]]) -> Found:
    """What `function` returns. A cancellation that is not ours, or an exit, is an error like any other here."""
    try:
        return await function()
    except anyio.get_cancelled_exc_class() as error:
        if anyio.current_effective_deadline() == float("-inf"):
            raise
        raise _ChannelGaveUpError("something in the channel was cancelled") from error
    except (SystemExit, GeneratorExit) as error:
        raise _ChannelGaveUpError(f"the channel raised {type(error).__name__}") from error
