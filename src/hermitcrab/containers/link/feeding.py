"""Rows on their way to a runner: what was pushed, what it has claimed, and what waits until there is room for it.

The half of an exchange that knows of rows only. A row is pushed in its order and once on each connection; what came of
it, the mailbox says.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import anyio

from hermitcrab.containers.link.server import Connection
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import Generation, MessageId
from hermitcrab.model.messages import Address, InboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.store.clock import utc_now
from hermitcrab_wire import faults, frames
from hermitcrab_wire.limits import INBOUND_WINDOW, MAX_INTEGER, MAX_ROWS_IN_A_FRAME

UNKNOWN = -10
"""No seq follows this one: rows are numbered 2, 4, 6, ..."""


@dataclass(slots=True)
class Flow:
    connection: Connection | None = None
    outstanding: dict[MessageId, InboundRow | None] = field(default_factory=dict)
    """Pushed and not completed. None: held by a runner that was adopted, its row not read yet."""
    last_seq: int = UNKNOWN
    """The greatest seq that was pushed on this connection."""
    more_waits: bool = True
    """Rows may be in the mailbox that were not pushed."""
    news: int = 0
    """How often rows were committed that could not be pushed at once."""
    taken: set[MessageId] = field(default_factory=set)
    """Claimed and not completed."""
    claimed: dict[str, list[MessageId]] = field(default_factory=dict)
    """Turns that run, and are not on disk yet as such: only the count of tries depends on that."""


class Feed:
    def __init__(self, session: Session, generation: Generation, *, mailboxes: Mailboxes, careful: bool) -> None:
        """`careful`: hand it one row to answer after the other, so that it is known which of them ends it."""
        self._careful = careful
        self.session = session
        self.generation = generation
        self._mailboxes = mailboxes
        self._flow = Flow()
        self._pumping = anyio.Lock(fast_acquire=True)
        self._on_wake_until = 0
        """Words for a fresh container up to this seq are for the one of this exchange."""

    @property
    def connected(self) -> bool:
        return self._flow.connection is not None

    @property
    def outstanding(self) -> int:
        """Rows that the runner has and has not completed."""
        return len(self._flow.outstanding)

    @property
    def has_work(self) -> bool:
        """Whether the runner has rows to work on, or may get some in a moment."""
        flow = self._flow
        return bool(flow.outstanding) or flow.more_waits or self._pumping.locked()

    @property
    def is_behind(self) -> bool:
        """Whether rows may wait that could be pushed now: reading them failed."""
        flow = self._flow
        could = flow.connection is not None and self._room() > 0
        return could and flow.more_waits and not self._pumping.locked()

    async def offer(self, row: InboundRow) -> None:
        """A row was committed to the mailbox. Push it now if the link is up and everything before it was pushed."""
        flow = self._flow
        if flow.connection is None:
            flow.news += 1
            return
        if row.id in flow.outstanding:
            return
        in_order = row.seq == flow.last_seq + 2 and not self._careful
        if not in_order or flow.more_waits or self._pumping.locked() or len(flow.outstanding) >= INBOUND_WINDOW:
            # Something came before it, or it was pushed and even completed already: the mailbox knows.
            flow.more_waits = True
            await self.pump()
            return
        self._push([row])

    def rows_may_wait(self) -> None:
        """Rows were committed while nothing could be pushed."""
        self._flow.news += 1
        self._flow.more_waits = True

    async def pump(self) -> None:
        """Push what waits in the mailbox, as far as the window allows."""
        flow = self._flow
        async with self._pumping:
            while flow.connection is not None and flow.more_waits:
                room = self._room()
                if room <= 0:
                    return
                waiting = functools.partial(
                    Mailbox.pending,
                    limit=room,
                    excluding=frozenset(flow.outstanding),
                    on_wake_until=self._on_wake_until,
                    now=utc_now(),
                )
                flow.more_waits = False
                try:
                    rows = await self._mailboxes.run(self.session, waiting)
                except BaseException:
                    flow.more_waits = True  # Whoever comes next finds what was not read now.
                    raise
                rows = [row for row in rows if row.id not in flow.outstanding]
                if rows and flow.connection is not None:
                    whole = len(rows)
                    if self._careful:
                        rows = _up_to_one_that_triggers(rows)
                    self._push(rows)
                    flow.more_waits = flow.more_waits or whole == room or len(rows) < whole

    def _room(self) -> int:
        """How many rows may be pushed at once now."""
        outstanding = self._flow.outstanding
        if self._careful and any(row is None or row.trigger for row in outstanding.values()):
            return 0
        return min(INBOUND_WINDOW - len(outstanding), MAX_ROWS_IN_A_FRAME)

    def _push(self, rows: list[InboundRow]) -> None:
        flow = self._flow
        if flow.connection is None:
            return
        # A frame is bounded: what does not fit with others goes alone, which the limit on one message allows.
        for row in rows:
            flow.outstanding[row.id] = row
            flow.last_seq = max(flow.last_seq, row.seq)
            flow.connection.send(frames.Inbound(rows=[row_json(row)]))
        faults.point("link.pushed")

    async def note_claims(self) -> None:
        """Put on disk which rows the runner has in its turns.

        Not done at the claim itself: most turns of a fast provider would be over before. When the container ends, this
        is called before the rows are given back, so that the try counts.
        """
        claimed = self._flow.claimed
        for turn, ids in list(claimed.items()):
            await self._mailboxes.run(
                self.session, functools.partial(Mailbox.claim, turn=turn, ids=ids, generation=self.generation)
            )
            claimed.pop(turn, None)

    def note_suspect(self) -> None:
        """The runner ended by itself and had claimed nothing: the first row that it was to answer counts as claimed."""
        flow = self._flow
        suspect = next((key for key, row in flow.outstanding.items() if row is not None and row.trigger), None)
        if not flow.taken and suspect is not None:
            flow.claimed[f"received-{suspect}"] = [suspect]


def _up_to_one_that_triggers(rows: list[InboundRow]) -> list[InboundRow]:
    count = next((number for number, row in enumerate(rows, start=1) if row.trigger), len(rows))
    return rows[:count]


def row_json(row: InboundRow) -> dict[str, Any]:
    address = row.address
    return {
        "id": row.id,
        "seq": row.seq,
        "kind": row.kind,
        "timestamp": row.timestamp,
        "trigger": row.trigger,
        "tries": row.tries,
        "on_wake": row.on_wake,
        "content": _with_plain_numbers(row.content),
        **place_json(address),
    }


def place_json(address: Address | None) -> dict[str, Any]:
    return {
        "channel_type": address.channel_type if address else None,
        "platform_id": address.platform_id if address else None,
        "thread_id": address.thread_id if address else None,
    }


def _with_plain_numbers(value: Any) -> Any:
    """Numbers beyond what the link takes become text: ids of some platforms are such numbers."""
    match value:
        case dict():
            return {key: _with_plain_numbers(each) for key, each in value.items()}
        case list():
            return [_with_plain_numbers(each) for each in value]
        case int() if abs(value) > MAX_INTEGER:
            return str(value)
        case _:
            return value
