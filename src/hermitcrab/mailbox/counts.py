"""How much is unfinished in a mailbox. Costs as much as there is unfinished, whatever lies there besides."""

from __future__ import annotations

from dataclasses import dataclass
from sqlite3 import Connection

from hermitcrab.mailbox import deliveries, inbound, outbound


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxCounts:
    """What is unfinished, and how far the numbers of both directions go."""

    pending: int
    """Due rows that nobody has finished, those that are being worked on among them."""
    pending_triggers: int
    """Those of `pending` that want an answer."""
    claimed: int
    undelivered: int
    """Queued, postponed and being sent, and what ended badly and nobody was told of yet."""
    last_seq: int
    quarantined: int = 0
    """Set aside until a person releases them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a mailbox stands for a host that comes back: what is unfinished, and what its runner is greeted with."""

    counts: MailboxCounts
    is_waiting: bool
    """Whether any row that came in is unfinished, due or not."""
    state: dict[str, str]
    """The session's key-value state."""


def counted(incoming: Connection, outgoing: Connection, due_at: str) -> MailboxCounts:
    """Of the two databases. Rows that come later than `due_at` are not counted yet."""
    waiting = [
        trigger for key, _, trigger, _ in inbound.waiting(incoming, due_at) if outbound.finished(outgoing, key) is None
    ]
    return MailboxCounts(
        pending=len(waiting),
        pending_triggers=sum(waiting),
        claimed=outbound.claimed_count(outgoing),
        undelivered=deliveries.open_count(outgoing),
        last_seq=greatest_seq(incoming, outgoing),
        quarantined=inbound.quarantined_count(incoming),
    )


def greatest_seq(incoming: Connection, outgoing: Connection) -> int:
    """How far the numbers of both directions go."""
    return max(inbound.greatest_seq(incoming), outbound.greatest_seq(outgoing))
