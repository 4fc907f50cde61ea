"""What comes in, what the agent does with it, and what is seen of it afterwards."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hermitcrab.errors import BadInputError, ConflictError
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.groups import Destination
from hermitcrab.model.ids import Generation, MessageId
from hermitcrab.model.messages import Address, InboundRow, OutboundRow
from hermitcrab_wire.limits import MAX_CONTENT_BYTES, MAX_NESTING, MAX_STATE_BYTES

In = Callable[..., InboundRow]
Out = Callable[..., OutboundRow]

G1, G2, G3 = Generation(1), Generation(2), Generation(3)


def ids(rows: list[InboundRow] | list[OutboundRow]) -> list[str]:
    return [row.id for row in rows]


def test_what_was_accepted_waits_in_order_as_it_was(mailbox: Mailbox, inbound: In) -> None:
    rows = [inbound(each) for each in ("b", "a", "c")]
    accepted = [mailbox.accept(row) for row in rows]
    assert accepted == [replace(row, seq=seq) for row, seq in zip(rows, (2, 4, 6), strict=True)]
    assert mailbox.pending(limit=10) == accepted
    assert ids(mailbox.pending(limit=2)) == ["b", "a"]
    assert ids(mailbox.pending(limit=2, excluding={"b"})) == ["a", "c"]


def test_a_repeat_is_recognised_and_changes_nothing(mailbox: Mailbox, inbound: In) -> None:
    first = mailbox.accept(inbound("m"))
    assert mailbox.accept(inbound("m", content={"text": "other"})) is None
    assert mailbox.pending(limit=10) == [first]


def test_a_message_that_was_answered_and_comes_again_is_recognised(mailbox: Mailbox, inbound: In) -> None:
    mailbox.accept(inbound("m"))
    mailbox.finish("t", [MessageId("m")], [], None)
    assert mailbox.accept(inbound("m")) is None
    assert mailbox.pending(limit=10) == []


@pytest.mark.parametrize(
    "content",
    [
        {"text": "a\0b"},
        {"text": "👩‍🚀 ünïcödé \u202e rtl \u2028 line"},
        {"text": "x" * (MAX_CONTENT_BYTES - 20)},
        {"text": "'; DROP TABLE messages_in; --", "nested": {"list": [1, 2.5, None, True, {"deep": "\t"}]}},
        {"text": "x", "more": json.loads("[" * (MAX_NESTING - 1) + "]" * (MAX_NESTING - 1))},
        {},
    ],
    ids=["nul", "emoji", "1 MB", "sql", "deep", "empty"],
)
def test_content_comes_back_as_it_was(mailbox: Mailbox, inbound: In, outbound: Out, content: dict[str, object]) -> None:
    mailbox.accept(inbound("m", content=content))
    (row,) = mailbox.pending(limit=1)
    assert row.content == content
    mailbox.finish("t", [row.id], [outbound("o", content=content)], None)
    assert mailbox.undelivered(1)[0].content == content


@pytest.mark.parametrize(
    "changes",
    [
        {"content": {"text": "half \ud83d"}},
        {"content": {"half \ud83d": 1}},
        {"content": {"text": float("nan")}},
        {"content": {"text": object()}},
        {"content": {"text": "x" * MAX_CONTENT_BYTES}},
        {"content": {"text": "x", "more": json.loads("[" * MAX_NESTING + "]" * MAX_NESTING)}},
        {"address": Address(channel_type="test", platform_id="half \ud83d")},
    ],
    ids=["surrogate", "surrogate key", "nan", "object", "too large", "too deep", "surrogate address"],
)
def test_what_cannot_be_kept_whole_is_refused_and_leaves_nothing(
    mailbox: Mailbox, inbound: In, outbound: Out, changes: dict[str, object]
) -> None:
    with pytest.raises(BadInputError):
        mailbox.accept(inbound("m", **changes))
    with pytest.raises(BadInputError):
        mailbox.append([outbound("good"), outbound("bad", **changes)])
    assert mailbox.history(None, 10) == []
    assert mailbox.accept(inbound("m")) is not None


def test_both_directions_share_one_row_of_numbers(mailbox: Mailbox, inbound: In, outbound: Out) -> None:
    mailbox.accept(inbound("m1"))
    said = mailbox.finish("t1", [MessageId("m1")], [outbound("o1"), outbound("o2")], None)
    mailbox.accept(inbound("m2"))
    mailbox.accept(inbound("m3"))
    said += mailbox.append([outbound("o3")])
    assert [row.seq for row in said] == [3, 5, 9]
    assert [(row.id, row.seq) for row in mailbox.history(None, 10)] == [
        ("o3", 9), ("m3", 8), ("m2", 6), ("o2", 5), ("o1", 3), ("m1", 2),
    ]  # fmt: skip
    assert [row.id for row in mailbox.history(6, 2)] == ["o2", "o1"]
    assert mailbox.counts().last_seq == 9


def test_the_first_to_speak_may_be_the_agent(mailbox: Mailbox, inbound: In, outbound: Out) -> None:
    assert mailbox.append([outbound("o")])[0].seq == 1
    accepted = mailbox.accept(inbound("m"))
    assert accepted is not None
    assert accepted.seq == 2


def test_rows_for_a_starting_container_wait_for_one(mailbox: Mailbox, inbound: In) -> None:
    mailbox.accept(inbound("w", on_wake=True))
    mailbox.accept(inbound("m"))
    assert ids(mailbox.pending(limit=10)) == ["m"]
    assert ids(mailbox.pending(limit=10, fresh_container=True)) == ["w", "m"]


def test_rows_that_are_not_due_wait(mailbox: Mailbox, inbound: In, tmp_path: Path) -> None:
    for key in ("later", "reference-style", "nonsense"):
        mailbox.accept(inbound(key))
    other = sqlite3.connect(tmp_path / "mailbox" / "inbound.db")
    other.execute("UPDATE messages_in SET process_after = '2026-05-05T12:00:00.000Z' WHERE id = 'later'")
    other.execute("UPDATE messages_in SET process_after = '2026-05-05 11:00:00' WHERE id = 'reference-style'")
    other.execute("UPDATE messages_in SET process_after = 'soon' WHERE id = 'nonsense'")
    other.commit()
    other.close()

    def at(hour: int, minute: int = 0) -> list[str]:
        return ids(mailbox.pending(limit=10, now=datetime(2026, 5, 5, hour, minute, tzinfo=UTC)))

    assert at(10, 59) == ["nonsense"]
    assert at(11) == ["reference-style", "nonsense"]
    assert at(12) == ["later", "reference-style", "nonsense"]
    assert mailbox.counts(now=datetime(2026, 5, 5, 10, tzinfo=UTC)).pending_triggers == 1
    assert mailbox.has_work(now=datetime(2026, 5, 5, 10, tzinfo=UTC))


def test_a_finished_row_is_never_given_out_again(mailbox: Mailbox, inbound: In, outbound: Out) -> None:
    for key in ("m1", "m2", "m3"):
        mailbox.accept(inbound(key))
    mailbox.claim("t", [MessageId("m1"), MessageId("m2")], G1)
    said = mailbox.finish("t", [MessageId("m1")], [outbound("o1", in_reply_to="m1")], None)
    mailbox.finish("u", [MessageId("m2")], [], "the model refused")
    assert ids(said) == ["o1"]
    assert ids(mailbox.pending(limit=10)) == ["m3"]
    statuses = {key: row.status for key in ("m1", "m2", "m3") if (row := mailbox.inbound(key))}
    assert statuses == {"m1": "completed", "m2": "failed", "m3": "pending"}


def test_finishing_again_changes_nothing(mailbox: Mailbox, inbound: In, outbound: Out) -> None:
    mailbox.accept(inbound("m"))
    assert len(mailbox.finish("t", [MessageId("m")], [outbound("o")], None)) == 1
    before = mailbox.history(None, 10)
    later = outbound("o", timestamp="2027-01-01T00:00:00.000Z", address=None)
    assert mailbox.finish("t", [MessageId("m")], [later], None) == []
    assert mailbox.finish("t2", [MessageId("m")], [], "a late failure") == []
    assert mailbox.history(None, 10) == before


@pytest.mark.parametrize("changes", [{"content": {"text": "other"}}, {"kind": "system"}, {"in_reply_to": "m"}])
def test_an_id_that_stood_for_something_else_undoes_the_whole(
    mailbox: Mailbox, inbound: In, outbound: Out, changes: dict[str, object]
) -> None:
    mailbox.accept(inbound("m"))
    mailbox.append([outbound("o")])
    with pytest.raises(ConflictError, match="under the id o"):
        mailbox.finish("t", [MessageId("m")], [outbound("new"), outbound("o", **changes)], None)
    assert ids(mailbox.pending(limit=10)) == ["m"]
    assert ids(mailbox.undelivered(10)) == ["o"]


def test_rows_that_nobody_sent_are_passed_over(mailbox: Mailbox, inbound: In) -> None:
    mailbox.accept(inbound("m"))
    assert mailbox.claim("t", [MessageId("ghost"), MessageId("m"), MessageId("m")], G1) == ["m"]
    mailbox.finish("t", [MessageId("ghost")], [], None)
    assert mailbox.counts().claimed == 1
    assert mailbox.accept(inbound("ghost")) is not None
    assert "ghost" in ids(mailbox.pending(limit=10))


def test_what_an_older_generation_claimed_is_given_back_and_counts_as_a_try(mailbox: Mailbox, inbound: In) -> None:
    for key in ("m1", "m2", "m3"):
        mailbox.accept(inbound(key))
    mailbox.claim("t1", [MessageId("m1")], G1)
    mailbox.claim("t2", [MessageId("m2")], G2)
    mailbox.claim("t3", [MessageId("m3")], G1)
    mailbox.finish("t3", [MessageId("m3")], [], None)
    assert mailbox.release_claims(G2) == ["m1"]
    assert mailbox.release_claims(G2) == []
    assert mailbox.counts().claimed == 1
    assert [(row.id, row.tries) for row in mailbox.pending(limit=10)] == [("m1", 1), ("m2", 0)]
    assert mailbox.release_claims(G3) == ["m2"]


def test_an_older_generation_cannot_take_a_claim_from_a_newer_one(mailbox: Mailbox, inbound: In) -> None:
    mailbox.accept(inbound("m"))
    assert mailbox.claim("t2", [MessageId("m")], G2) == ["m"]
    assert mailbox.claim("t1", [MessageId("m")], G1) == []
    assert mailbox.claim("t3", [MessageId("m")], G3) == ["m"]
    mailbox.finish("t3", [MessageId("m")], [], None)
    assert mailbox.claim("t4", [MessageId("m")], Generation(4)) == []


def test_counts_tell_what_is_unfinished(mailbox: Mailbox, inbound: In, outbound: Out) -> None:
    assert not mailbox.has_work()
    mailbox.accept(inbound("context", trigger=False))
    assert not mailbox.has_work()
    mailbox.accept(inbound("m"))
    mailbox.claim("t", [MessageId("m")], G1)
    mailbox.append([outbound("o1"), outbound("o2")])
    mailbox.begin_delivery(MessageId("o1"))
    counts = mailbox.counts()
    assert (counts.pending, counts.pending_triggers, counts.claimed, counts.undelivered) == (2, 1, 1, 2)
    assert mailbox.has_work()
    mailbox.finish("t", [MessageId("m"), MessageId("context")], [], None)
    mailbox.delivered(MessageId("o1"), None)
    counts = mailbox.counts()
    assert (counts.pending, counts.pending_triggers, counts.claimed, counts.undelivered) == (0, 0, 0, 1)


def test_state_is_kept_by_key_and_bounded(mailbox: Mailbox, tmp_path: Path) -> None:
    mailbox.set_state("b", "1\0é")
    mailbox.set_state("a", "2")
    mailbox.set_state("a", "3")
    assert mailbox.state() == {"a": "3", "b": "1\0é"}
    with pytest.raises(BadInputError, match="bytes"):
        mailbox.set_state("c", "x" * MAX_STATE_BYTES)
    mailbox.set_state("b", None)
    mailbox.set_state("never there", None)
    with Mailbox.open(tmp_path / "mailbox") as again:
        assert again.state() == {"a": "3"}


def test_other_tools_see_the_reference_s_tables(mailbox: Mailbox, inbound: In, outbound: Out, tmp_path: Path) -> None:
    mailbox.accept(inbound("m"))
    mailbox.claim("t", [MessageId("m")], G1)
    mailbox.finish("t", [MessageId("m")], [outbound("o"), outbound("no", delivery="refused", reason="why")], None)
    mailbox.begin_delivery(MessageId("o"))
    mailbox.delivered(MessageId("o"), "platform-7")
    destination = Destination(name="home", type="channel", channel_type="test", platform_id="chat-1")
    mailbox.write_destinations([destination])
    mailbox.write_destinations([destination])
    mailbox.write_routing(Address(channel_type="test", platform_id="chat-1", thread_id="t"))
    mailbox.write_routing(None)
    mailbox.close()
    incoming = sqlite3.connect(tmp_path / "mailbox" / "inbound.db")
    outgoing = sqlite3.connect(tmp_path / "mailbox" / "outbound.db")
    assert incoming.execute("SELECT id, seq, status, tries, trigger, on_wake FROM messages_in").fetchall() == [
        ("m", 2, "completed", 0, 1, 0)
    ]
    assert incoming.execute(
        "SELECT message_out_id, platform_message_id, status FROM delivered ORDER BY 1"
    ).fetchall() == [
        ("no", None, "failed"),
        ("o", "platform-7", "delivered"),
    ]
    assert incoming.execute("SELECT name, type, platform_id FROM destinations").fetchall() == [
        ("home", "channel", "chat-1")
    ]
    assert incoming.execute("SELECT * FROM session_routing").fetchall() == [(1, None, None, None)]
    assert outgoing.execute("SELECT message_id, status FROM processing_ack").fetchall() == [("m", "completed")]
    assert outgoing.execute("SELECT id, seq, content FROM messages_out ORDER BY seq").fetchall() == [
        ("o", 3, '{"text":"answer o"}'),
        ("no", 5, '{"text":"answer no"}'),
    ]
    incoming.close()
    outgoing.close()


def test_files_are_for_their_owner_alone_and_few_when_closed(mailbox: Mailbox, inbound: In, tmp_path: Path) -> None:
    mailbox.accept(inbound("m"))
    folder = tmp_path / "mailbox"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in folder.iterdir()} == {0o600}
    mailbox.close()
    assert sorted(each.name for each in folder.iterdir()) == ["inbound.db", "outbound.db"]


def test_no_query_looks_through_the_history(mailbox: Mailbox, inbound: In, outbound: Out) -> None:
    run: list[tuple[sqlite3.Connection, str]] = []
    for connection in (mailbox._in, mailbox._out):
        connection.set_trace_callback(lambda query, connection=connection: run.append((connection, query)))  # type: ignore[misc]
    for key in ("m1", "m2"):
        mailbox.accept(inbound(key))
    mailbox.pending(limit=10, excluding={"m1"}, fresh_container=True)
    mailbox.inbound("m1")
    mailbox.claim("t", [MessageId("m1"), MessageId("m2")], G1)
    mailbox.release_claims(G2)
    mailbox.finish("t", [MessageId("m1")], [outbound("o1"), outbound("o2"), outbound("o3")], None)
    mailbox.undelivered(10)
    mailbox.next_delivery_at()
    mailbox.deliver_now()
    mailbox.begin_delivery(MessageId("o1"))
    mailbox.delivered(MessageId("o1"), "p")
    mailbox.begin_delivery(MessageId("o2"))
    mailbox.delivery_failed(MessageId("o2"), "busy", datetime.now(UTC))
    mailbox.refused(MessageId("o3"), "no", tell=True)
    mailbox.interrupted()
    mailbox.lanes()
    mailbox.begin_in_lane("test\x1fchat-1\x1f")
    mailbox.part_sent(MessageId("o2"), 1, "p")
    mailbox.settle_later(MessageId("o1"), "confirmed", None)
    mailbox.untold()
    mailbox.told(MessageId("o3"))
    mailbox.retry_delivery(MessageId("o3"))
    mailbox.waits_in("test\x1fchat-1\x1f")
    mailbox.outbound("o1")
    mailbox.counts()
    mailbox.history(None, 5)
    mailbox._behind = True
    mailbox._catch_up()
    for connection in (mailbox._in, mailbox._out):
        connection.set_trace_callback(None)
    # Partial indexes hold only what is unfinished, and these tables are bounded: walking along them is no scan of history.
    bounded = (
        "messages_in_waiting",
        "messages_in_quarantined",
        "processing_ack_claimed",
        "deliveries_queued",
        "deliveries_scheduled",
        "deliveries_sending",
        "deliveries_untold",
        "lanes",  # as many as there are addresses with something waiting
    )
    explained = 0
    for connection, query in run:
        if not query.lstrip().startswith(("SELECT", "UPDATE", "INSERT", "DELETE", "WITH")):
            continue
        for step in (row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")):
            explained += 1
            assert not step.startswith("SCAN") or any(name in step for name in bounded), f"{query}: {step}"
            assert "TEMP B-TREE" not in step, f"{query}: {step}"
    assert explained > 30
