"""What an earlier container left in the files, sorted by what the host still waits for. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from hermitcrab_runner.shim.ledger import Ack
from hermitcrab_runner.shim.times import parse_time
from hermitcrab_runner.shim.translate import InRow, OutRow


class Left(NamedTuple):
    answered: list[str]
    """Their answers are there; only that they are done did not reach the host."""
    unheard: list[str]
    """Answers to questions whose asker ended with its container."""
    again: list[str]
    """Begun and not answered: to be worked on once more."""
    said_before: list[OutRow]
    """What was said while those were in work; in the same words, it is not to be sent again."""


def sort_out(rows: Iterable[InRow], *, acks: Sequence[Ack], outs: Sequence[OutRow], seqs: Mapping[str, int]) -> Left:
    """`rows` are what the host waits for, `acks` and `outs` the newest in the file, `seqs` the rows' numbers there."""
    marks = {ack.id: ack for ack in acks}
    left = Left([], [], [], [])
    came_at: list[float] = []
    for row in rows:
        if row.kind == "system":
            left.unheard.append(row.id)
        elif row.id in marks:
            was_answered = answered_before(marks[row.id], acks, outs, seqs)
            (left.answered if was_answered else left.again).append(row.id)
            if not was_answered:
                came_at.append(parse_time(row.timestamp) or 0.0)
    if left.again:
        since = max(min(came_at), _last_ended(acks, before=left.again))
        left.said_before.extend(
            out
            for out in outs
            if out.in_reply_to in left.again or (out.in_reply_to is None and _was_said_since(out, since))
        )
    return left


def _last_ended(acks: Sequence[Ack], *, before: Collection[str]) -> float:
    """When the rows before these had their last mark: what was said until then was theirs.

    A row's own mark does not tell when its work began: one that it had then is gone with the next.
    """
    first = min(ack.order for ack in acks if ack.id in before)
    return max((ack.at or 0.0 for ack in acks if ack.order < first and ack.id not in before), default=0.0)


def _was_said_since(out: OutRow, moment: float) -> bool:
    at = parse_time(out.timestamp)
    # Older runners tell moments to the second only.
    return at is None or at >= (moment if "." in out.timestamp else math.floor(moment))


def answered_before(ack: Ack, acks: Iterable[Ack], outs: Iterable[OutRow], seqs: Mapping[str, int]) -> bool:
    """Whether a row that the host still waits for was answered in an earlier container, by what its files tell.

    `ack` is the row's own mark, `acks` the newest marks, `outs` the newest things said, `seqs` the numbers of the rows
    that came in. If in doubt, it was not: the row is then worked on once more, and what is said again in the same words
    is not sent again.
    """
    if ack.status == "processing":
        return False
    if any(each.status == "processing" and each.order < ack.order for each in acks):
        return False  # It was added to a turn that never came to its end.
    marked_later = any(each.order > ack.order for each in acks)
    for out in outs:
        if ack.at is not None and (said_at := parse_time(out.timestamp)) is not None and said_at < ack.at:
            continue
        # Older runners tell moments to the second only. That it replies to an older row says more.
        replies_to = out.in_reply_to or ""
        if replies_to == ack.id or (marked_later and seqs.get(replies_to, 0) > seqs.get(ack.id, 0)):
            return True
    return False
