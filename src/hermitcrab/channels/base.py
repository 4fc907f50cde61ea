"""The port between the host and a chat platform. Each channel is a folder beside this file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hermitcrab.logic.pieces import Shows
from hermitcrab.logic.rate import Rate
from hermitcrab.model.messages import Address, ChannelMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a platform can do. The host never asks a channel for more."""

    shows: Shows = field(default_factory=Shows)
    """Which kinds it has; what it lacks, the host puts into words."""
    rate: Rate | None = None
    """How fast it takes messages in all. None: as fast as they come."""
    chat_rate: Rate | None = None
    """How fast it takes messages for one chat."""
    reaches_operator: bool = False
    """Whoever is there runs this installation, and may learn what became of any agent's messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message on its way out."""

    key: str
    """The idempotency key, unique over all sessions: the same message has the same key, however often it is tried."""
    address: Address
    kind: str
    content: dict[str, Any]
    """One of the shapes of `logic/kinds.py` that the channel's traits allow, short enough for it."""
    in_reply_to: str | None = None
    """The row that it answers."""
    reply_to: str | None = None
    """The platform's id of the message that it answers."""
    target: str | None = None
    """The platform's id of the message that an edit or a reaction is about."""
    files: tuple[SentFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """A file of the agent's, on the host's disk for as long as the delivery is tried. Not to be changed."""

    name: str
    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of a received message. `accepted` means that it is on disk."""

    accepted: bool
    reason: str | None = None
    """Why it was not accepted, or that it was a repeat."""
    row_ids: tuple[str, ...] = ()
    """One row for each agent that heard it."""
    session_ids: tuple[str, ...] = ()
    persisted_at: float | None = None
    """On the monotonic clock: when the last of the rows was on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Somebody's answer to a question that an agent asked."""

    key: str
    """That of the delivery which showed the question."""
    option: str | int
    """The chosen option's value, or its place in the list."""
    user_id: str


class Channel(Protocol):
    """One platform, as the host uses it."""

    type: str
    """What `Address.channel_type` names."""
    supports_idempotency: bool
    """True: delivering the same key twice shows the message once, so an uncertain delivery may be repeated."""
    supports_threads: bool
    traits: Traits

    async def deliver(self, delivery: Delivery) -> str | None:
        """Send it; return the platform's id of the message.

        Raises ChannelError, transient or not, or NobodyThereError. May be called for several chats at once. A platform
        that asks to wait names the time in the error, and whether it means this chat or the whole channel.
        """

    async def typing(self, address: Address) -> None:
        """Show that somebody is writing, for a few seconds. Failure is of no consequence."""


class ChannelHost(Protocol):
    """The host, as a channel uses it."""

    async def receive(self, message: ChannelMessage) -> Receipt:
        """Take a message in. When this returns accepted, the message is on disk."""

    async def choose(self, choice: Choice) -> Receipt:
        """Take the answer to a question in. The first one counts; when this returns accepted, it is on disk."""

    async def settled(self, key: str, *, failed: str | None) -> None:
        """What became later of a delivery that the platform had taken: a person has it, or why it `failed`."""
