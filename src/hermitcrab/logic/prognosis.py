"""What happens next to a message that is not where it should be, and whether it is stuck. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from hermitcrab.logic.delivery import WAITS
from hermitcrab.model.lives import Entry

PATIENCE_S = 60.0
"""A message that waits longer, and for nothing that is as it should be, is stuck."""

RESTING = frozenset({"ready", "frozen", "starting", "preparing", "created", "admitted", "queued", "draining"})
"""Phases of a container in which its messages will be taken without anybody doing anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prognosis:
    stuck: bool
    next: str
    next_at: str | None = None


def of_outgoing(
    entry: Entry, *, now: datetime, waited_s: float, give_up_after_s: float, under_way: bool, held_back: bool
) -> Prognosis:
    """`under_way`: its address is being sent to now. `held_back`: something before it at its address has trouble."""
    if entry.state == "scheduled":
        return Prognosis(stuck=False, next="is sent at its time", next_at=entry.next_attempt_at)
    if entry.state == "sending":
        if under_way:
            return Prognosis(stuck=False, next="its channel has it now")
        return Prognosis(
            stuck=True, next="an earlier host was sending it: settled by the rule when the host looks at it"
        )
    if held_back:
        return Prognosis(stuck=waited_s > PATIENCE_S, next="sent after what was said before it to the same address")
    if under_way:
        return Prognosis(stuck=False, next="is about to be sent")
    if entry.reason is not None and entry.reason.startswith(WAITS):
        return Prognosis(stuck=False, next="sent as soon as somebody is there", next_at=entry.next_attempt_at)
    if entry.next_attempt_at is None:
        return Prognosis(stuck=waited_s > PATIENCE_S, next="is sent as soon as the host looks at it")
    left_s = max(0.0, give_up_after_s - waited_s)
    give_up_at = (now + timedelta(seconds=left_s)).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Prognosis(
        stuck=waited_s > PATIENCE_S,
        next=f"attempt {entry.attempts + 1}; given up at the first attempt after {give_up_at}",
        next_at=entry.next_attempt_at,
    )


def of_incoming(entry: Entry, *, waited_s: float, phase: str | None, text: str) -> Prognosis:
    """`phase`: that of the session's container; None: it has none and wants none. `text`: what is known of it."""
    if not entry.trigger:
        return Prognosis(stuck=False, next="read with the next message that wants an answer")
    if entry.state == "claimed":
        return Prognosis(stuck=False, next="its agent works on it")
    if phase is None:
        return Prognosis(stuck=waited_s > PATIENCE_S, next="nobody attends its session; crab messages retry wakes it")
    if phase in RESTING:
        return Prognosis(stuck=False, next=f"taken by its container, which is {phase}")
    return Prognosis(stuck=True, next=f"its container is {phase}" + (f": {text}" if text else ""))
