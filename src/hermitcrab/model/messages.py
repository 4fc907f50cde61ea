"""Rows of a mailbox: what came in, and what the agent said."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hermitcrab.model.ids import MessageId, SessionId

InboundStatus = Literal["pending", "paused", "completed", "failed", "quarantined"]
DeliveryStatus = Literal[
    "scheduled", "queued", "sending", "delivered", "confirmed", "failed", "refused", "unknown-after-crash"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a message came from or goes to."""

    channel_type: str
    platform_id: str
    thread_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InFile:
    """A file that came with a message, where its channel has put it. The host copies it before it says "received"."""

    name: str
    """As its sender calls it: nothing but a caption."""
    path: Path
    """In a folder that no agent writes."""
    bytes: int
    kind: str = "file"
    """file, image, audio, video, or what else the platform calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelMessage:
    """One event of a channel, as its adapter gives it to the router."""

    id: str
    """The platform's own id, unique in its chat; a repeat of it is a redelivery, not a new message."""
    address: Address
    content: dict[str, Any]
    """`text`, `sender`, `senderId`, and what else reference/container.md section 3.2 lists."""
    timestamp: str
    kind: Literal["chat", "chat-sdk"] = "chat"
    is_mention: bool = False
    is_group: bool = False
    files: tuple[InFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundRow:
    """A row of messages_in."""

    id: MessageId
    kind: str
    timestamp: str
    content: dict[str, Any]
    address: Address | None = None
    seq: int = 0
    """Even, ascending; given by the mailbox."""
    trigger: bool = True
    """False: context that rides along with the next row that triggers."""
    on_wake: bool = False
    """True: only for a container that starts after this row was written."""
    status: InboundStatus = "pending"
    tries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutFile:
    """A file that an agent sends with a message."""

    handle: str
    """Its name in the session's folder of outgoing files, which the host chose."""
    name: str
    """What people see. Safe as the name of a file."""
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundRow:
    """A row of messages_out, with what is known of its delivery."""

    id: MessageId
    kind: str
    timestamp: str
    content: dict[str, Any]
    address: Address | None = None
    in_reply_to: str | None = None
    seq: int = 0
    """Odd, ascending; given by the mailbox."""
    deliver_after: str | None = None
    """When it may be sent at the earliest, in UTC."""
    files: tuple[OutFile, ...] = ()
    """Read only where a message is about to be sent."""
    answers: InboundRow | OutboundRow | None = None
    """The row that `in_reply_to` names, if there is one. Read only where a message is about to be sent."""
    delivery: DeliveryStatus = "queued"
    attempts: int = 0
    reason: str | None = None
    parts_sent: int = 0
    """Parts of a message, too long for its platform as a whole, that have arrived."""
    queued_at: str = ""
    """Since when it waits to be sent: how long is too long counts from here."""
    platform_message_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneHead:
    """The message that is next at one address."""

    lane: str
    id: MessageId
    due_at: str | None
    """None: now."""
    address: Address | None


def delivery_key(session_id: SessionId, row_id: MessageId) -> str:
    """Names a message of an agent towards channels: ids of rows are unique in their session only."""
    return f"{session_id}/{row_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """What a session's runner is told at hello: key-value state that outlives containers."""

    session_id: SessionId
    values: dict[str, str] = field(default_factory=dict)
