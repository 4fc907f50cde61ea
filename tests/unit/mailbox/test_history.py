"""A long history costs what a short one costs, and grows no further than its rule says."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.mailbox import compaction
from hermitcrab.mailbox.compaction import KEPT_NEWEST, ROWS_AT_MOST, shrunk
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import AgentGroupId, Generation, MessageId, SessionId
from hermitcrab.model.messages import InboundRow, OutboundRow
from hermitcrab.model.sessions import Session

In = Callable[..., InboundRow]
Out = Callable[..., OutboundRow]

SMALL_TABLES = {
    "destinations",
    "session_routing",
    "session_state",
    "container_state",
    "compaction",
    "schema_migrations",
}
"""These do not grow with the history."""

LATER = datetime.now(UTC) + timedelta(days=1)


def exchange(mailbox: Mailbox, inbound: In, outbound: Out, number: int, text: str) -> None:
    key, answer = MessageId(f"m{number}"), MessageId(f"o{number}")
    mailbox.accept(inbound(key, content={"text": text, "sender": "Ann"}))
    mailbox.pending(limit=10)
    mailbox.claim(f"t{number}", [key], Generation(1))
    mailbox.finish(f"t{number}", [key], [outbound(answer, content={"text": text}, in_reply_to=key)], None)
    (lane,), _ = mailbox.lanes()
    begun = mailbox.begin_in_lane(lane.lane)
    assert begun is not None
    assert begun.id == answer
    mailbox.delivered(answer, f"platform-{number}")


def test_no_statement_on_a_messages_road_looks_through_the_history(
    mailbox: Mailbox, inbound: In, outbound: Out
) -> None:
    said: list[tuple[sqlite3.Connection, str]] = []
    for connection in (mailbox._in, mailbox._out):
        connection.set_trace_callback(lambda statement, connection=connection: said.append((connection, statement)))
    for number in range(3):
        exchange(mailbox, inbound, outbound, number, "x" * 1000)
    mailbox.release_claims(Generation(2))
    mailbox.counts()
    mailbox.interrupted()
    mailbox.next_delivery_at()
    mailbox.deliver_now()
    mailbox.history(None, 10)
    mailbox._behind = True
    mailbox._catch_up()
    mailbox.compact(LATER)
    for connection in (mailbox._in, mailbox._out):
        connection.set_trace_callback(None)
    looked: list[str] = []
    for connection, statement in dict.fromkeys(said):
        if not re.match(r"(SELECT|INSERT|UPDATE|DELETE)", statement):
            continue
        for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {statement}"):
            table = re.match(r"SCAN (\w+)", step)
            # A partial index holds only what waits.
            bounded = ("messages_in_waiting", "messages_in_quarantined", "_claimed", "deliveries_")
            is_bounded = any(each in step for each in bounded)
            if table is not None and table[1] not in SMALL_TABLES and not is_bounded and "LIMIT" not in statement:
                looked.append(f"{step}: {statement}")
    assert len(said) > 50
    assert looked == []


def test_old_messages_shrink_and_can_still_be_answered_edited_and_reacted_to(
    tmp_path: Path, inbound: In, outbound: Out
) -> None:
    count = KEPT_NEWEST + 5
    with Mailbox.open(tmp_path) as mailbox:
        for number in range(count):
            exchange(mailbox, inbound, outbound, number, f"{number} " + "long " * 400)
        assert mailbox.compact(LATER) == 2 * 5
        assert mailbox.compact(LATER) == 0
        old, answer = mailbox.inbound("m0"), mailbox.outbound("o0")
        assert old is not None
        assert answer is not None
        assert old.content["compacted"] is True
        assert old.content["sender"] == "Ann"
        assert old.content["text"].startswith("0 long")
        assert len(json.dumps(answer.content)) < 400
        assert (answer.in_reply_to, answer.delivery) == ("m0", "delivered")
        kept = mailbox.inbound("m5")
        assert kept is not None
        assert kept.content["text"] == "5 " + "long " * 400
        # Its id is still taken, and the platform's id of it is still known.
        assert mailbox.accept(inbound("m0")) is None
        found = mailbox._out.execute(
            "SELECT platform_message_id FROM deliveries WHERE message_out_id = 'o0'"
        ).fetchone()
        assert found == ("platform-0",)


def test_what_is_young_or_unfinished_is_left_whole_and_so_is_what_came_after_it(
    mailbox: Mailbox, inbound: In, outbound: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "KEPT_NEWEST", 0)
    text = "long " * 400
    exchange(mailbox, inbound, outbound, 0, text)
    mailbox.accept(inbound("waits", content={"text": text}))
    exchange(mailbox, inbound, outbound, 1, text)
    assert mailbox.compact(datetime(2020, 1, 1, tzinfo=UTC)) == 0
    mailbox.compact(LATER)
    assert [row.content.get("compacted", False) for key in ("m0", "waits", "m1") if (row := mailbox.inbound(key))] == [
        True,
        False,
        False,
    ]
    mailbox.finish("t", [MessageId("waits")], [], None)
    mailbox.compact(LATER)
    assert all(row.content["compacted"] for key in ("waits", "m1") if (row := mailbox.inbound(key)))


def test_one_compaction_looks_at_a_bounded_number_of_rows(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "KEPT_NEWEST", 0)
    mailbox._in.executemany(
        "INSERT INTO messages_in (id, seq, kind, timestamp, status, content) VALUES (?, ?, 'chat', '2020', 'completed', '{}')",
        [(f"m{number}", 2 * number) for number in range(1, ROWS_AT_MOST + 10)],
    )
    assert [mailbox.compact(LATER) for _ in range(3)] == [ROWS_AT_MOST, 9, 0]


async def test_a_mailbox_that_is_closed_after_use_is_compacted(
    tmp_path: Path, inbound: In, outbound: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "KEPT_NEWEST", 0)
    session = Session(id=SessionId("s"), agent_group_id=AgentGroupId("ag"), messaging_group_id=None)
    async with Mailboxes(lambda _: tmp_path / "mailbox", whole_for=timedelta(days=1)) as mailboxes:
        await mailboxes.run(session, lambda mailbox: exchange(mailbox, inbound, outbound, 0, "long " * 400))
    with Mailbox.open(tmp_path / "mailbox") as mailbox:
        row = mailbox.inbound("m0")
        assert row is not None
        assert row.content["compacted"]


@given(
    st.text(max_size=1500)
    | st.dictionaries(st.sampled_from(["text", "sender", "other"]), st.text(max_size=900) | st.integers()).map(
        json.dumps
    )
)
def test_shrinking_gives_an_object_that_does_not_shrink_again(content: str) -> None:
    small = shrunk(content)
    if small is not None:
        assert len(small.encode()) < 4 * len(content.encode())
        assert json.loads(small)["compacted"] is True
        again = shrunk(small)
        assert again is None or json.loads(again) == json.loads(small)
