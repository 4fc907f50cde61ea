"""The terminal as a chat platform: people at this machine's keyboard, through the control socket.

Every agent group has one address here, its folder. Nobody there is not a failure for good: the row stays queued, and
the moment somebody attaches, `on_attached` lets the host's delivery try again. A delivery counts only once the
client has acknowledged that it showed it. Called by the host's delivery on one side and by the control server's
`chat.*` methods on the other.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from hermitcrab.channels.base import ChannelHost, Delivery, Receipt, Traits
from hermitcrab.channels.terminal.manifest import CHANNEL_TYPE
from hermitcrab.channels.terminal.render import checked_text
from hermitcrab.errors import BadInputError, NobodyThereError, NotFoundError
from hermitcrab.logic.pieces import Shows
from hermitcrab.model.messages import Address, ChannelMessage, InFile

ACKNOWLEDGED_WITHIN_S = 30.0
"""How long a client may take to show one message before the delivery is tried again."""

EVENTS_WAITING = 256
"""Events that one client may leave unread. One that is slower misses typing marks, and its deliveries are retried."""

REMEMBERED_KEYS = 1024
"""Delivered keys kept per channel, so that a repeated delivery of a shown message is answered without showing it."""

ID_CHARACTERS_AT_MOST = 100

Event = dict[str, Any]


@dataclass(eq=False)
class Attachment:
    """One client at one address. It reads `events`; what it showed, it acknowledges."""

    id: str
    platform_id: str
    events: MemoryObjectReceiveStream[Event]
    _sender: MemoryObjectSendStream[Event]

    def offer(self, event: Event) -> bool:
        """Queue `event`; False when the client has left too many unread."""
        try:
            self._sender.send_nowait(event)
        except anyio.WouldBlock:
            return False
        return True

    def close(self) -> None:
        self._sender.close()
        self.events.close()


@dataclass(eq=False)
class _Waiting:
    """A delivery that was handed to clients and that none has acknowledged yet."""

    event: Event
    platform_id: str
    shown_by: str | None = None
    settled: anyio.Event = field(default_factory=anyio.Event)


class TerminalChannel:
    """A channel whose platform is whoever is attached now.

    It delivers from the start and receives once it is connected, because the host and its channels need each other.
    """

    type = CHANNEL_TYPE
    supports_idempotency = True
    supports_threads = False
    traits = Traits(
        reaches_operator=True, shows=Shows(edits=True, reactions=True, cards=True, questions=True, files=True)
    )

    def __init__(self, *, most_bytes: int = 262_144, acknowledged_within_s: float = ACKNOWLEDGED_WITHIN_S) -> None:
        self._host: ChannelHost | None = None
        self._on_attached: Callable[[str], None] = lambda _platform_id: None
        self._most_bytes = most_bytes
        self._acknowledged_within_s = acknowledged_within_s
        self._attachments: dict[str, dict[str, Attachment]] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._shown: OrderedDict[str, str] = OrderedDict()
        self._numbers = itertools.count(1)

    def connect(self, host: ChannelHost, *, on_attached: Callable[[str], None]) -> None:
        """Where messages go, and who is told at once when somebody comes to an address."""
        self._host, self._on_attached = host, on_attached

    def attached(self, platform_id: str) -> int:
        """How many clients are at that address."""
        return len(self._attachments.get(platform_id, ()))

    async def deliver(self, delivery: Delivery) -> str | None:
        """Hand it to every client at the address and wait until one has shown it."""
        if (shown := self._shown.get(delivery.key)) is not None:
            return shown
        platform_id = delivery.address.platform_id
        event: Event = {
            "kind": "message",
            "key": delivery.key,
            "message_kind": delivery.kind,
            "content": delivery.content,
            "in_reply_to": delivery.in_reply_to,
        }
        if delivery.files:
            # Whoever reaches the socket may read them there: it is the host's own user.
            event["files"] = [
                {"name": each.name, "path": str(each.path), "bytes": each.bytes, "sha256": each.sha256}
                for each in delivery.files
            ]
        waiting = self._waiting.get(delivery.key)
        if waiting is None:
            if not self._offer(platform_id, event):
                raise NobodyThereError("nobody is at the terminal", hint="crab chat")
            waiting = self._waiting[delivery.key] = _Waiting(event=event, platform_id=platform_id)
        try:
            with anyio.move_on_after(self._acknowledged_within_s):
                await waiting.settled.wait()
        finally:
            if self._waiting.get(delivery.key) is waiting:
                del self._waiting[delivery.key]
        if waiting.shown_by is None:
            raise NobodyThereError("nobody at the terminal showed the message", hint="crab chat")
        return waiting.shown_by

    async def typing(self, address: Address) -> None:
        self._offer(address.platform_id, {"kind": "typing"})

    async def say(
        self, *, platform_id: str, message_id: str, text: str, sender: str, files: tuple[InFile, ...] = ()
    ) -> Receipt:
        """Take in what a person typed. The same `message_id` again is recognised as a repeat.

        Raises BadInputError for what cannot be stored; then nothing was.
        """
        if self._host is None:
            raise NotFoundError("The terminal channel is not connected to a host yet.", hint="Try again in a moment.")
        if not 0 < len(message_id) <= ID_CHARACTERS_AT_MOST or not message_id.isprintable():
            raise BadInputError(f"A message id has 1 to {ID_CHARACTERS_AT_MOST} printable characters.")
        message = ChannelMessage(
            id=message_id,
            address=Address(channel_type=CHANNEL_TYPE, platform_id=platform_id),
            content={
                "text": text if files and not text else checked_text(text, most_bytes=self._most_bytes),
                "sender": sender,
                "senderId": f"{CHANNEL_TYPE}:{sender}",
            },
            timestamp=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            is_mention=True,
            files=files,
        )
        return await self._host.receive(message)

    @contextmanager
    def attach(self, platform_id: str) -> Iterator[Attachment]:
        """Be at that address for as long as the block lasts."""
        sender, events = anyio.create_memory_object_stream[Event](EVENTS_WAITING)
        attachment = Attachment(
            id=f"attachment-{next(self._numbers)}", platform_id=platform_id, events=events, _sender=sender
        )
        here = self._attachments.setdefault(platform_id, {})
        here[attachment.id] = attachment
        for waiting in self._waiting.values():
            if waiting.platform_id == platform_id:
                attachment.offer(waiting.event)
        self._on_attached(platform_id)
        try:
            yield attachment
        finally:
            attachment.close()
            del here[attachment.id]
            if not here:
                self._attachments.pop(platform_id, None)
                self._nobody_left(platform_id)

    def acknowledge(self, attachment_id: str, key: str) -> bool:
        """The client has shown the message `key`. False when nobody waits for that any more."""
        waiting = self._waiting.get(key)
        if waiting is None or attachment_id not in self._attachments.get(waiting.platform_id, ()):
            return False
        waiting.shown_by = f"{attachment_id}:{key}"
        waiting.settled.set()
        self._shown[key] = waiting.shown_by
        if len(self._shown) > REMEMBERED_KEYS:
            self._shown.popitem(last=False)
        return True

    def _offer(self, platform_id: str, event: Event) -> bool:
        """Whether at least one client took it."""
        taken = [each.offer(event) for each in self._attachments.get(platform_id, {}).values()]
        return any(taken)

    def _nobody_left(self, platform_id: str) -> None:
        """What waits for an acknowledgement that can no longer come fails at once instead of at its deadline."""
        for waiting in self._waiting.values():
            if waiting.platform_id == platform_id:
                waiting.settled.set()
