"""One session's mailbox: inbound.db and outbound.db in a folder that only the host sees.

Accepting, finishing and saying are on the disk when they return (law 8). outbound.db says which rows are finished;
inbound.db repeats it, for other tools and so that what waits is found fast. If a crash comes between the two, the next
opening repeats what is missing, and until then nothing that is finished is ever given out again.

Synchronous and for one thread at a time; `mailboxes.py` brings it to the host's tasks.
"""

from __future__ import annotations

import heapq
import os
import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from hermitcrab.errors import ConflictError, DiskFullError, NotFoundError
from hermitcrab.mailbox import compaction, copies, deliveries, inbound, outbound
from hermitcrab.mailbox.counts import MailboxCounts, Standing, counted, greatest_seq
from hermitcrab.mailbox.files import Files
from hermitcrab.mailbox.ledger import Ledger
from hermitcrab.mailbox.outgoing import Outgoing
from hermitcrab.model.groups import Destination
from hermitcrab.model.ids import Generation, MessageId
from hermitcrab.model.lives import Entry, Life
from hermitcrab.model.messages import Address, InboundRow, OutboundRow
from hermitcrab.store.clock import timestamp
from hermitcrab.store.sqlite import snapshot
from hermitcrab_wire import faults

THIS_PROCESS = f"{os.getpid()}-{secrets.token_hex(6)}"
"""Marks what this process is sending: after a crash, another process finds a name that is not its own."""


AGAIN = "~again-"
"""Stands between the id of a message that failed and the number of its copy."""


class Mailbox(Outgoing):
    """Use as `with Mailbox.open(folder) as mailbox`. Methods raise StoreError when a database cannot be used."""

    def __init__(self, files: Files, *, process: str) -> None:
        super().__init__(files, process=process)
        self._behind = True
        """inbound.db may not repeat all that outbound.db says."""

    @classmethod
    def open(cls, folder: Path, *, process: str = THIS_PROCESS) -> Self:
        """The mailbox in `folder`, which is made with it. `process`: who sends, for the ledger."""
        mailbox = cls(Files.open(folder), process=process)
        try:
            mailbox._catch_up()
        except BaseException:
            mailbox.close()
            raise
        return mailbox

    @classmethod
    def at_rest(cls, folder: Path) -> Self | None:
        """The mailbox in `folder`, to be read only; None when it must be opened for that.

        For a look into one that nobody has open, while nobody opens it.
        """
        files = Files.at_rest(folder)
        return None if files is None else cls(files, process=THIS_PROCESS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What comes in.

    def accept(self, row: InboundRow) -> InboundRow | None:
        """The row as it was committed, with its seq. None: a row of that id was accepted before.

        Raises BadInputError for what cannot be kept whole, DiskFullError when nothing of it was kept.
        """
        with self._write_inbound():
            seq = self._greatest_seq() + 1
            seq += seq % 2  # even: said to the agent
            accepted = inbound.insert(self._in, row, seq)
            faults.point("inbound.before-commit")
        faults.point("inbound.committed")
        return replace(row, seq=seq, status="pending", tries=0) if accepted else None

    def pending(
        self,
        *,
        limit: int,
        excluding: Collection[str] = (),
        fresh_container: bool = False,
        on_wake_until: int = 0,
        now: datetime | None = None,
    ) -> list[InboundRow]:
        """Due rows that are not finished, oldest first, without those in `excluding`.

        Rows for a starting container only come with `fresh_container`, or as far as `on_wake_until`: those that waited
        when the container of now said hello are its own, later ones the next one's.
        """
        found: list[InboundRow] = []
        with self._read_inbound():
            for key, seq, _, on_wake in inbound.waiting(self._in, timestamp(now)):
                if len(found) >= limit:
                    break
                if key in excluding or (on_wake and not fresh_container and seq > on_wake_until):
                    continue
                if outbound.finished(self._out, key) is None and (row := inbound.by_id(self._in, key)) is not None:
                    found.append(row)
        return found

    def inbound(self, row_id: str) -> InboundRow | None:
        """The row of that id with its present status."""
        with self._read_inbound():
            row = inbound.by_id(self._in, row_id)
            if row is None:
                return None
            return replace(row, status=outbound.finished(self._out, row_id) or row.status)

    def numbered(self, seq: int) -> InboundRow | OutboundRow | None:
        """The message, of either direction, that the agent knows by this number."""
        with self._read_inbound(), self._read_outbound():
            return inbound.by_seq(self._in, seq) or outbound.by_seq(self._out, seq)

    # What the agent does with it.

    def claim(self, turn: str, ids: Sequence[MessageId], generation: Generation) -> list[MessageId]:
        """Note that a turn of that generation works on these rows. Returns those that it may have."""
        with self._read_inbound():
            known = inbound.known(self._in, ids)
        with self._write_outbound(durable=False):
            return [each for each in known if outbound.claim(self._out, each, turn, generation)]

    def release_claims(
        self, before: Generation, *, ended_by: str | None = None, counts: bool = True
    ) -> list[MessageId]:
        """Give back what generations older than `before` claimed and did not finish.

        `counts`: as a try of each row. `ended_by`: the cause for which the container ended, if it is known.
        """
        with self._read_outbound():
            ids = outbound.claimed_before(self._out, before)
        if not ids:
            return []
        # The other order would count a try twice after a crash in between, and give up a message too early.
        with self._write_outbound():
            for each in ids:
                outbound.release(self._out, each, ended_by if counts else None)
        if counts:
            with self._write_inbound(durable=False):
                for each in ids:
                    inbound.count_try(self._in, each)
        return ids

    def ends(self, row_id: str) -> dict[str, int]:
        """How many containers ended on their own while they had the row, by cause. Since it was last released."""
        with self._read_outbound():
            return outbound.ends(self._out, row_id)

    def quarantine(self, row_id: MessageId, notice: OutboundRow, reason: str) -> list[OutboundRow]:
        """Set a row aside, together with the notice about that. Returns the notice if it is new."""
        with self._write_outbound():
            said = self._say([notice])
            outbound.finish(self._out, row_id, f"quarantine-{row_id}", reason, status="quarantined")
        self._repeat_inbound([row_id], said)
        return said

    def release(self, row_id: MessageId) -> bool:
        """Have a row out of quarantine, to be answered as if it had just come. False: it is not in quarantine.

        In this order a crash in between leaves it where it was: outbound.db says what is finished.
        """
        with self._read_outbound():
            if outbound.finished(self._out, row_id) != "quarantined":
                return False
        with self._write_inbound():
            inbound.release(self._in, row_id)
        with self._write_outbound():
            return outbound.leave_quarantine(self._out, row_id)

    def finish(
        self, turn: str, ids: Sequence[MessageId], outs: Sequence[OutboundRow], failed: str | None
    ) -> list[OutboundRow]:
        """End rows `ids`, answered or `failed`, together with the turn's last words. Returns the words that are new.

        Repeating it changes nothing. Raises ConflictError, and changes nothing, when an id of `outs` was used before
        for something else. Ids without a row are passed over.
        """
        with self._read_inbound():
            known = inbound.known(self._in, ids)
        with self._write_outbound():
            said = self._say(outs)
            for each in known:
                outbound.finish(self._out, each, turn, failed)
            faults.point("outbound.before-commit")
        faults.point("outbound.committed")
        self._repeat_inbound(known, said)
        return said

    def append(self, outs: Sequence[OutboundRow]) -> list[OutboundRow]:
        """What was said in mid-turn, or by the host in the agent's place. Returns what is new. Raises as `finish`."""
        with self._write_outbound():
            said = self._say(outs)
            faults.point("outbound.before-commit")
        faults.point("outbound.committed")
        self._repeat_inbound((), said)
        return said

    def state(self) -> dict[str, str]:
        """The session's key-value state."""
        with self._read_outbound():
            return outbound.state(self._out)

    def set_state(self, key: str, value: str | None) -> None:
        """Set one key, or drop it. Raises BadInputError beyond the bound of the whole."""
        with self._write_outbound():
            outbound.set_state(self._out, key, value)

    # What people and other tools look at.

    def counts(self, *, now: datetime | None = None) -> MailboxCounts:
        with self._read_inbound(), self._read_outbound():
            return counted(self._in, self._out, timestamp(now))

    def standing(self) -> Standing:
        """All at once what a host that comes back asks of it."""
        with self._read_inbound(), self._read_outbound():
            return Standing(
                counts=counted(self._in, self._out, timestamp()),
                is_waiting=inbound.any_unfinished(self._in),
                state=outbound.state(self._out),
            )

    def last_seq(self) -> int:
        """How far the numbers of both directions go."""
        with self._read_inbound(), self._read_outbound():
            return self._greatest_seq()

    def is_waiting(self) -> bool:
        """Whether any row that came in is unfinished, due or not. Costs next to nothing."""
        with self._read_inbound():
            return inbound.any_unfinished(self._in)

    def has_work(self, *, now: datetime | None = None) -> bool:
        """Whether a due row wants an answer: the session needs a container."""
        return self.counts(now=now).pending_triggers > 0

    def history(self, before_seq: int | None, limit: int) -> list[InboundRow | OutboundRow]:
        """Both directions in one, newest first: up to `limit` rows before `before_seq` (None: from the newest)."""
        with self._read_inbound(), self._read_outbound():
            rows: Iterator[InboundRow | OutboundRow] = heapq.merge(
                inbound.newest(self._in, before_seq, limit),
                outbound.newest(self._out, before_seq, limit),
                key=lambda row: row.seq,
                reverse=True,
            )
            return [row for row, _ in zip(rows, range(limit), strict=False)]

    def copy(self, side: copies.Side) -> Iterator[bytes]:
        """Every row of one side, as `copies.fill` takes them. Nothing may change the mailbox before the last."""
        if side == "inbound":
            with self._read_inbound():
                yield from copies.lines(self._in)
        else:
            with self._read_outbound():
                yield from copies.lines(self._out)

    def compact(self, before: datetime) -> int:
        """Shrink a bounded number of finished messages older than that. How many were looked at; 0: it is done."""
        with self._write_inbound(durable=False):
            looked_at = compaction.compact(self._in, "messages_in", timestamp(before))
        with self._write_outbound(durable=False):
            return looked_at + compaction.compact(self._out, "messages_out", timestamp(before))

    def problems(self) -> list[str]:
        """What is wrong with the two databases, after a look at every page. Costs as much as they are long."""
        found: list[str] = []
        for connection, path in ((self._in, self._files.inbound_path), (self._out, self._files.outbound_path)):
            with snapshot(connection, path):
                rows = connection.execute("PRAGMA integrity_check(20)").fetchall()
            found += [f"{path.name}: {text}" for (text,) in rows if text != "ok"]
        return found

    def close_what_waits(self, reason: str) -> None:
        """End whatever is unfinished in either direction as failed, for that reason."""
        with self._read_inbound():
            waiting = inbound.unfinished_ids(self._in)
        if waiting:
            self.finish(f"closed-{waiting[0]}", waiting, [], reason)
        with self._read_outbound():
            undelivered = deliveries.unfinished_ids(self._out)
        for each in undelivered:
            self._end_delivery(each, "failed", reason)

    def entries(self, state: str | None, limit: int) -> list[Entry]:
        """The newest messages of both directions, or those in one state; newest first."""
        with self._read_inbound(), self._read_outbound():
            return Ledger(self._in, self._out).entries(state, limit)

    def unfinished(self, limit: int) -> list[Entry]:
        """What still waits in either direction, oldest first."""
        with self._read_inbound(), self._read_outbound():
            return Ledger(self._in, self._out).unfinished(limit)

    def life(self, row_id: str) -> Life | None:
        """Everything that happened to the message of that id."""
        with self._read_inbound(), self._read_outbound():
            return Ledger(self._in, self._out).life(row_id)

    def accept_again(self, row_id: MessageId) -> InboundRow | None:
        """A copy of a message that failed, to be answered anew. None: that copy was made before.

        Raises NotFoundError without such a message, ConflictError when it has not failed.
        """
        row = self.inbound(row_id)
        if row is None:
            raise NotFoundError(f"there is no message {row_id}")
        if row.content.get("compacted"):
            raise ConflictError(f"message {row_id} is too old to be repeated: only its first words were kept")
        if row.status != "failed":
            raise ConflictError(f"message {row_id} is {row.status}, so there is nothing to repeat")
        stem, _, number = row_id.partition(AGAIN)
        return self.accept(replace(row, id=MessageId(f"{stem}{AGAIN}{int(number or 1) + 1}"), trigger=True))

    def write_destinations(self, wanted: Sequence[Destination]) -> None:
        """What the agent may send to, for other tools to see."""
        with self._read_inbound():
            if inbound.destinations(self._in) == sorted(wanted, key=lambda each: each.name):
                return
        with self._write_inbound(durable=False):
            inbound.replace_destinations(self._in, wanted)

    def write_routing(self, address: Address | None) -> None:
        """The session's own chat, for other tools to see."""
        with self._read_inbound():
            if inbound.routing(self._in) == address:
                return
        with self._write_inbound(durable=False):
            inbound.replace_routing(self._in, address)

    # Inside.

    def _say(self, outs: Sequence[OutboundRow]) -> list[OutboundRow]:
        said: list[OutboundRow] = []
        seq = self._greatest_seq()
        for each in outs:
            odd = seq + 1 + seq % 2  # odd: said by the agent
            if not outbound.insert(self._out, each, odd):
                continue
            if each.files:
                outbound.insert_files(self._out, each)
            status = deliveries.enter(self._out, each, odd)
            said.append(replace(each, seq=odd, delivery=status, attempts=0))
            seq = odd
        return said

    def _greatest_seq(self) -> int:
        return greatest_seq(self._in, self._out)

    def _repeat_inbound(self, ids: Sequence[MessageId], said: Sequence[OutboundRow]) -> None:
        """Show in inbound.db what outbound.db has just committed. A full disk delays it and undoes nothing."""
        never_sent = [each.id for each in said if each.delivery in {"refused", "failed"}]
        if not ids and not never_sent:
            return
        try:
            self._catch_up()
            with self._write_inbound(durable=False):
                for each in ids:
                    if (status := outbound.finished(self._out, each)) is not None:
                        inbound.set_status(self._in, each, status)
                for row_id in never_sent:
                    inbound.mark_delivered(self._in, row_id, "failed", None)
        except DiskFullError:
            self._behind = True

    def _catch_up(self) -> None:
        """Repeat what an earlier process, or a full disk, left out. Work by what waits, not by history."""
        if not self._behind:
            return
        with self._read_inbound():
            ended = [
                (key, status)
                for key in inbound.unfinished_ids(self._in)
                if (status := outbound.finished(self._out, key)) is not None
            ]
        try:
            if ended:
                with self._write_inbound(durable=False):
                    for key, status in ended:
                        inbound.set_status(self._in, key, status)
            self._behind = False
        except DiskFullError:
            return
