"""The half of a mailbox that delivery works on: what waits at each address, and what became of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Literal

from hermitcrab.errors import ConflictError
from hermitcrab.mailbox import deliveries, inbound, outbound
from hermitcrab.mailbox.files import Files
from hermitcrab.model.ids import MessageId
from hermitcrab.model.messages import InboundRow, LaneHead, OutboundRow, OutFile
from hermitcrab.store.clock import timestamp
from hermitcrab.store.sqlite import snapshot, transaction


class Outgoing:
    def __init__(self, files: Files, *, process: str) -> None:
        self._files = files
        self._in, self._out = files.inbound, files.outbound
        self._process = process

    def close(self) -> None:
        self._files.close()

    # What waits.

    def lanes(self, *, now: datetime | None = None) -> tuple[list[LaneHead], str | None]:
        """What is next at each address, and when the first scheduled message is due."""
        moment = timestamp(now)
        with self._read_outbound():
            scheduled_at = deliveries.next_scheduled_at(self._out)
            if scheduled_at is None or scheduled_at > moment:
                return deliveries.heads(self._out, moment), scheduled_at
        with self._write_outbound(durable=False):
            deliveries.queue_scheduled(self._out, moment)
        with self._read_outbound():
            return deliveries.heads(self._out, moment), deliveries.next_scheduled_at(self._out)

    def begin_in_lane(self, lane: str, *, now: datetime | None = None) -> OutboundRow | None:
        """The lane's first message, on record as being sent; None when none is due."""
        with self._write_outbound():
            found = deliveries.head(self._out, lane, timestamp(now))
            if found is None:
                return None
            files = outbound.files_of(self._out, found.id) if "files" in found.content else ()
            answers = None if found.in_reply_to is None else self._named(found.in_reply_to)
            deliveries.begin(self._out, found.id, self._process)
        return replace(found, delivery="sending", attempts=found.attempts + 1, files=files, answers=answers)

    def waits_in(self, lane: str) -> bool:
        """Whether something waits there, due or not."""
        with self._read_outbound():
            return deliveries.waits_in(self._out, lane)

    def undelivered(self, limit: int, *, now: datetime | None = None) -> list[OutboundRow]:
        """What can be sent now, in order. A postponed row holds back what was said after it to the same address."""
        with self._read_outbound():
            return deliveries.due(self._out, timestamp(now), limit)

    def next_delivery_at(self) -> str | None:
        """When the first of the postponed rows is due; None: nothing is postponed."""
        with self._read_outbound():
            return deliveries.next_attempt_at(self._out)

    def deliver_now(self, lane: str | None = None) -> None:
        """What was postponed is due at once: in one lane, or in all."""
        with self._write_outbound(durable=False):
            deliveries.make_due(self._out, lane)

    def outbound(self, row_id: str) -> OutboundRow | None:
        """What was said under that id, and what became of it."""
        with self._read_outbound():
            return outbound.by_id(self._out, row_id)

    def newest_said(self, limit: int) -> list[OutboundRow]:
        """The last things that were said, newest first, with what became of each."""
        with self._read_outbound():
            return outbound.newest(self._out, None, limit)

    def named(self, row_id: str) -> InboundRow | OutboundRow | None:
        """The message of that id, of either direction, as it was written."""
        with self._read_outbound():
            return self._named(row_id)

    # What becomes of it.

    def begin_delivery(self, row_id: MessageId) -> None:
        """On record before the channel is called. Raises ConflictError when the row does not wait any more."""
        with self._write_outbound():
            deliveries.begin(self._out, row_id, self._process)

    def part_sent(self, row_id: MessageId, parts: int, platform_message_id: str | None) -> None:
        """The first `parts` parts of a long message have arrived: another attempt begins after them."""
        with self._write_outbound():
            deliveries.part_sent(self._out, row_id, parts, platform_message_id)

    def delivered(self, row_id: MessageId, platform_message_id: str | None) -> None:
        self._end_delivery(row_id, "delivered", None, platform_message_id)

    def delivery_failed(self, row_id: MessageId, reason: str, retry_at: datetime | None, *, tell: bool = False) -> None:
        """It is tried again at `retry_at`; None: it never is."""
        if retry_at is None:
            self._end_delivery(row_id, "failed", reason, tell=tell)
            return
        with self._write_outbound():
            deliveries.postpone(self._out, row_id, reason, timestamp(retry_at))

    def refused(self, row_id: MessageId, reason: str, *, tell: bool = False) -> None:
        """The agent may not send that there."""
        self._end_delivery(row_id, "refused", reason, tell=tell)

    def delivery_unknown(self, row_id: MessageId, *, tell: bool = False) -> None:
        """The host died while it was sent, and it is not sent again."""
        self._end_delivery(row_id, "unknown-after-crash", "the host died while it was sent", tell=tell)

    def settle_later(
        self, row_id: MessageId, status: Literal["confirmed", "failed"], reason: str | None, *, tell: bool = False
    ) -> bool:
        """What the platform says of a message that it had taken. False: that does not fit what is known of it."""
        with self._write_outbound():
            changed = deliveries.settle_later(self._out, row_id, status, reason, tell=tell)
        if changed and status == "failed":
            self._mark_delivered(row_id, "failed", None)
        return changed

    def retry_delivery(self, row_id: MessageId) -> None:
        """A message that ended badly waits anew. Raises ConflictError when it did not, or is not kept whole."""
        row = self.outbound(row_id)
        if row is not None and row.content.get("compacted"):
            raise ConflictError(f"message {row_id} is too old to be sent: only its first words were kept")
        with self._write_outbound():
            deliveries.retry(self._out, row_id)

    def untold(self) -> list[OutboundRow]:
        """Messages that ended badly, and of which those concerned were not told yet."""
        with self._read_outbound():
            return deliveries.untold(self._out)

    def told(self, row_id: MessageId) -> None:
        with self._write_outbound(durable=False):
            deliveries.told(self._out, row_id)

    def forget_files(self, row_id: MessageId) -> tuple[OutFile, ...]:
        """The files of a message that nobody will be sent any more; from now on the mailbox knows none of them."""
        with self._read_outbound():
            found = outbound.files_of(self._out, row_id)
        if found:
            with self._write_outbound(durable=False):
                outbound.forget_files(self._out, row_id)
        return found

    def kept_files(self) -> frozenset[str]:
        """Handles of the files of all messages that are not delivered."""
        with self._read_outbound():
            return outbound.kept_files(self._out)

    def interrupted(self) -> list[OutboundRow]:
        """Rows that a process which is gone was sending, oldest first. Which of them arrived, nobody knows."""
        with self._read_outbound():
            found = deliveries.interrupted(self._out, self._process)
        unknown: list[OutboundRow] = []
        for row in found:
            with self._read_inbound():
                marked = inbound.marked_delivered(self._in, row.id)
            if marked is None:
                unknown.append(row)
            else:
                # The crash came after the channel had confirmed it.
                self._end_delivery(row.id, "delivered", None, marked[0])
        return unknown

    def _end_delivery(
        self,
        row_id: MessageId,
        status: Literal["delivered", "failed", "refused", "unknown-after-crash"],
        reason: str | None,
        platform_message_id: str | None = None,
        *,
        tell: bool = False,
    ) -> None:
        if status == "delivered":
            # First where it is only repeated: after a crash between the two, `interrupted` finds the mark.
            self._mark_delivered(row_id, "delivered", platform_message_id)
        with self._write_outbound():
            deliveries.end(self._out, row_id, status, reason, platform_message_id, tell=tell)
        if status != "delivered":
            self._mark_delivered(row_id, "failed", None)

    def _mark_delivered(self, row_id: str, mark: Literal["delivered", "failed"], platform_id: str | None) -> None:
        with self._write_inbound(durable=False):
            inbound.mark_delivered(self._in, row_id, mark, platform_id)

    def _named(self, row_id: str) -> InboundRow | OutboundRow | None:
        if (said := outbound.by_id(self._out, row_id)) is not None:
            return said
        with self._read_inbound():
            return inbound.by_id(self._in, row_id)

    # Transactions.

    @contextmanager
    def _write_inbound(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        with transaction(self._in, self._files.inbound_path, durable=durable):
            yield self._in

    @contextmanager
    def _write_outbound(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        with transaction(self._out, self._files.outbound_path, durable=durable):
            yield self._out

    @contextmanager
    def _read_inbound(self) -> Iterator[sqlite3.Connection]:
        with snapshot(self._in, self._files.inbound_path):
            yield self._in

    @contextmanager
    def _read_outbound(self) -> Iterator[sqlite3.Connection]:
        with snapshot(self._out, self._files.outbound_path):
            yield self._out
