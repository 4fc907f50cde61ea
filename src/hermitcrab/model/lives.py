"""What became of a message, in either direction: its state now, and everything that happened to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hermitcrab.model.messages import Address, DeliveryStatus

InboundState = Literal["received", "claimed", "paused", "completed", "failed", "quarantined"]
Direction = Literal["in", "out"]

INBOUND_STATES: tuple[InboundState, ...] = get_args(InboundState)
OUTBOUND_STATES: tuple[DeliveryStatus, ...] = get_args(DeliveryStatus)
STATES: tuple[str, ...] = tuple(dict.fromkeys((*INBOUND_STATES, *OUTBOUND_STATES)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One message in the ledger."""

    id: str
    seq: int
    direction: Direction
    kind: str
    state: str
    at: str
    """When the host had it; of a message that another system kept, what that says."""
    changed_at: str | None
    """When it came to be in this state, if that is known."""
    address: Address | None
    text: str
    attempts: int
    """Attempts to deliver it, or times that an agent had it: each but the last was ended by its container's end."""
    reason: str | None = None
    next_attempt_at: str | None = None
    queued_at: str | None = None
    in_reply_to: str | None = None
    trigger: bool = True
    platform_message_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a message."""

    at: str | None
    what: str
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """A message's whole life, with what it answered or what it was answered by."""

    entry: Entry
    events: tuple[Event, ...]
    linked: tuple[Entry, ...]
