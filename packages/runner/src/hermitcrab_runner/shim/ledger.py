"""What the foreign runner has done with each row that the host gave it. Pure: sees changes and times, decides.

A v2 runner marks a row `completed` before its answer is written; and a message that comes while its stream is open,
before the model has even seen it. Taken at its word, it would lose both whenever it dies. Its marks tell more than it
means to say: each is a new row of its table, and at every result of the model it marks again the rows with which its
stream began. A row is answered when such a result came after its mark, and the runner has been quiet since.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from hermitcrab_runner.rows import text_of
from hermitcrab_runner.shim.times import parse_time
from hermitcrab_runner.shim.translate import InRow, OutRow

QUIET_AFTER_RESULT_S = 0.25
"""Between the first part of an answer and its last lie a few transactions."""

QUIET_AFTER_FOLLOW_UP_S = 2.0
"""A result may have been that of the turn before; then signs of life go on. And a runner that waits for its turn on a
busy machine may say an answer, of which nothing was seen yet, long after its mark."""

QUIET_AT_MOST_S = 60.0
"""A row that was marked, without a result that could be its own, counts as answered after so long a silence."""

_CLEARLY_IN_WORK_S = 1.0
"""A follow-up is claimed and marked at once; what stays claimed for longer has begun a stream of its own."""

_DONE_AT_MOST = 1024

_NO_COMMANDS = frozenset({"/help", "/login", "/logout", "/doctor", "/config", "/start"})
"""To a v2 runner they are words like others: its time's host let none of them through."""


class Ack(NamedTuple):
    """A row of processing_ack as it is now."""

    id: str
    status: str
    order: int
    """Greater in each newer mark."""
    at: float | None = None
    """When it was written, by the runner's own word."""


@dataclass(slots=True)
class Held:
    """A row that the host waits for."""

    row: InRow
    shown: bool = False
    """It lies in inbound.db."""
    claimed_at: float | None = None
    taken_at: float | None = None
    """The same, by the runner's own word."""
    marked_at: float | None = None
    """When it was first seen as completed or failed."""
    order: int = 0
    failed: bool = False
    began_stream: bool = False
    results: int = 0
    """Seen since it was marked."""
    was_replied_to: bool = False
    """Between two looks, the mark and the answer may both have come, and only the answer been seen."""


class Ledger:
    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        """Received and not completed, oldest first."""
        self._done: dict[str, None] = {}
        self._has_stream = False
        """The runner has begun to work: what it claims from now on it may have added to a stream that is open."""

    # What the rows are.

    @property
    def waiting(self) -> list[InRow]:
        return [each.row for each in self.held.values() if not each.shown and each.marked_at is None]

    @property
    def shown(self) -> list[Held]:
        """In the file, and not claimed yet."""
        return [each for each in self.held.values() if each.shown and each.claimed_at is None]

    @property
    def in_work(self) -> list[Held]:
        """Claimed, and without any sign of an answer."""
        return [each for each in self.claimed if not (each.results or (each.began_stream and each.marked_at))]

    @property
    def claimed(self) -> list[Held]:
        return [each for each in self.held.values() if each.claimed_at is not None]

    # What happens.

    def receive(self, row: InRow) -> bool:
        """False: it is known already, and nothing is to be done."""
        if row.id in self.held or row.id in self._done:
            return False
        self.held[row.id] = Held(row)
        return True

    def observe(self, acks: Iterable[Ack], now: float) -> list[Held]:
        """Take in new marks, oldest first. Returns the rows that were claimed by them."""
        claimed: list[Held] = []
        acks = sorted(acks, key=lambda each: each.order)
        if any(_is_command(held.row) for held in self._newly_claimed(acks)):
            self._stream_ended()
        for ack in acks:
            held = self.held.get(ack.id)
            if ack.id in self._done or (held is not None and held.marked_at is not None):
                if held is None or ack.order > held.order:
                    self._result(held, ack.order)
                continue
            if held is None:
                continue
            if held.claimed_at is None:
                held.claimed_at, held.taken_at = now, ack.at
                claimed.append(held)
                held.began_stream = not self._has_stream and held.row.kind != "system"
            if ack.status != "processing":
                self._marked(held, ack, now)
        # To clear a conversation takes no model.
        self._has_stream = self._has_stream or any(each.began_stream and not _is_clear(each.row) for each in claimed)
        return claimed

    def _newly_claimed(self, acks: Iterable[Ack]) -> Iterable[Held]:
        known = (self.held.get(ack.id) for ack in acks)
        return (held for held in known if held is not None and held.claimed_at is None)

    def _stream_ended(self) -> None:
        """What it took up and did not answer, it gave up."""
        self._has_stream = False
        for each in self.held.values():
            if each.marked_at is not None:
                each.results = max(each.results, 1)

    def _marked(self, held: Held, ack: Ack, now: float) -> None:
        held.marked_at, held.order, held.failed = now, ack.order, ack.status == "failed"
        if held.was_replied_to:
            held.results = max(held.results, 1)
        in_work_s = now - (held.claimed_at if held.claimed_at is not None else now)
        if in_work_s >= _CLEARLY_IN_WORK_S and held.row.kind not in {"task", "system"}:
            held.began_stream = True  # A task may run a script first.
        if held.began_stream:
            # The mark itself says that there was a result; for follow-ups that were marked before it, too.
            self._count_result(ack.order, but=held)

    def _result(self, held: Held | None, order: int) -> None:
        """A row was marked again, which only happens to those with which a stream began."""
        self._count_result(order, but=held)
        if held is not None:
            held.order = order
            held.began_stream = True

    def _count_result(self, order: int, *, but: Held | None) -> None:
        for each in self.held.values():
            if each is not but and each.marked_at is not None and not each.began_stream and each.order < order:
                each.results += 1

    def said(self, out: OutRow) -> None:
        """The runner said something: a sign of an answer for marked rows up to the one that it replies to."""
        replied = self.held.get(out.in_reply_to or "")
        if replied is None:
            return
        for each in self.claimed:
            if (each.row.seq or 0) <= (replied.row.seq or 0):
                each.was_replied_to = True
                if each.marked_at is not None:
                    each.results = max(each.results, 1)

    def addressed(self, out: OutRow) -> OutRow:
        """With the row that it is about.

        An error, or that a conversation was cleared, names none; what a tool sends in mid-turn, the one with which the
        stream began, however long ago.
        """
        replied = self.held.get(out.in_reply_to or "")
        if out.kind != "chat" or "operation" in out.content or replied in self.in_work:
            return out
        # Without a name, it comes between the two marks of its row, of which only the second may have been seen.
        said_at = None if out.in_reply_to is None else parse_time(out.timestamp)
        for each in reversed(self.claimed if out.in_reply_to is None else self.in_work):
            was_taken = each.taken_at is None or said_at is None or each.taken_at <= said_at
            if was_taken and each.row.kind != "system" and out.place == each.row.place:
                return out._replace(in_reply_to=each.row.id)
        return out

    def answered(self, now: float, *, active_at: float) -> tuple[list[Held], float | None]:
        """Rows that may be completed now, and when to look again. `active_at`: the runner's last sign of life."""
        ready: list[Held] = []
        again: float | None = None
        for each in self.held.values():
            if each.marked_at is None:
                continue
            due = max(each.marked_at, active_at) + _quiet_s(each)
            if each.results >= 2 or now >= due:
                ready.append(each)
            else:
                again = due if again is None else min(again, due)
        return ready, again

    def complete(self, ids: Iterable[str]) -> None:
        """They are done, one way or another."""
        for key in ids:
            self.held.pop(key, None)
            self._done[key] = None
        while len(self._done) > _DONE_AT_MOST:
            del self._done[next(iter(self._done))]

    def begin_again(self, answered: Collection[str] = ()) -> None:
        """A new process of the runner: it has no stream, no row, and nothing in its file. `answered` are to end."""
        self._has_stream = False
        for key, each in self.held.items():
            self.held[key] = Held(each.row)
            if key in answered:
                self.held[key].claimed_at = self.held[key].marked_at = 0.0
                self.held[key].results = 2


def _quiet_s(held: Held) -> float:
    if held.row.kind == "system" or held.failed or _is_clear(held.row):
        return 0.0  # Whoever asked has read it; what was given up or cleared has no answer to come.
    if held.began_stream:
        return QUIET_AFTER_RESULT_S if held.results else QUIET_AFTER_FOLLOW_UP_S
    return QUIET_AFTER_FOLLOW_UP_S if held.results else QUIET_AT_MOST_S


def _is_clear(row: InRow) -> bool:
    return _words(row).startswith("/clear")


def _is_command(row: InRow) -> bool:
    """A v2 runner ends its stream for such a row, whatever its model is at, and begins another with it."""
    command, *_ = _words(row).split(maxsplit=1) or [""]
    return row.kind in {"chat", "chat-sdk"} and command.startswith("/") and command not in _NO_COMMANDS


def _words(row: InRow) -> str:
    return text_of(json.loads(row.content).get("text")).strip().lower()
