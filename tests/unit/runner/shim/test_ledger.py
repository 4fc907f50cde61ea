"""What a runner's marks mean: when a row counts as answered, live and after a crash."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab_runner.shim.ledger import (
    QUIET_AFTER_FOLLOW_UP_S,
    QUIET_AFTER_RESULT_S,
    QUIET_AT_MOST_S,
    Ack,
    Ledger,
)
from hermitcrab_runner.shim.recovery import answered_before, sort_out
from hermitcrab_runner.shim.translate import OutRow, Place, in_row


def ledger(*keys: str, text: str = "hello") -> Ledger:
    found = Ledger()
    for number, key in enumerate(keys):
        row = in_row({"id": key, "seq": 2 * number + 2, "content": {"text": text}}, at="")
        assert row is not None
        found.receive(row)
    return found


def ready(found: Ledger, now: float, active_at: float) -> list[str]:
    return [held.row.id for held in found.answered(now, active_at=active_at)[0]]


def said(in_reply_to: str | None, timestamp: str = "2026-11-18 11:06:40") -> OutRow:
    return OutRow("out", in_reply_to, timestamp, None, "chat", Place("c", "p"), {"text": "x"})


def test_the_first_row_is_answered_when_it_is_marked_and_the_runner_is_quiet() -> None:
    found = ledger("a")
    assert [held.row.id for held in found.observe([Ack("a", "processing", 1)], 10.0)] == ["a"]
    assert found.observe([Ack("a", "completed", 2)], 20.0) == []
    assert ready(found, 20.1, 20.0) == []
    assert found.answered(20.1, active_at=20.0)[1] == 20.0 + QUIET_AFTER_FOLLOW_UP_S
    found.said(said("a"))
    assert found.answered(20.1, active_at=20.0)[1] == 20.0 + QUIET_AFTER_RESULT_S
    # Its answer is still being written.
    assert ready(found, 20.3, 20.2) == []
    assert ready(found, 20.5, 20.2) == ["a"]


def test_an_answer_that_is_long_in_coming_is_waited_for() -> None:
    found = ledger("a")
    found.observe([Ack("a", "processing", 1)], 10.0)
    found.observe([Ack("a", "completed", 2)], 20.0)
    assert ready(found, 20.0 + QUIET_AFTER_FOLLOW_UP_S - 0.1, 20.0) == []
    # One that says nothing has ended all the same.
    assert ready(found, 20.0 + QUIET_AFTER_FOLLOW_UP_S, 20.0) == ["a"]


def follow_up() -> Ledger:
    found = ledger("a", "b")
    found.observe([Ack("a", "processing", 1)], 10.0)
    found.observe([Ack("b", "completed", 3)], 12.0)
    return found


def test_a_follow_up_is_not_answered_by_its_own_mark() -> None:
    found = follow_up()
    assert ready(found, 12 + QUIET_AT_MOST_S - 1, 12.0) == []
    assert ready(found, 12 + QUIET_AT_MOST_S, 12.0) == ["b"]


def test_a_follow_up_is_answered_by_a_result_after_it_and_silence() -> None:
    found = follow_up()
    found.observe([Ack("a", "completed", 4)], 20.0)
    found.said(said("a"))
    assert ready(found, 20.0 + QUIET_AFTER_RESULT_S, 20.0) == ["a"]
    found.complete(["a"])
    assert ready(found, 21.0, 20.0) == []
    assert ready(found, 20.0 + QUIET_AFTER_FOLLOW_UP_S, 20.0) == ["b"]


def test_a_follow_up_whose_runner_goes_on_waits_for_the_next_result() -> None:
    found = follow_up()
    found.observe([Ack("a", "completed", 4)], 20.0)
    found.complete(["a"])
    assert ready(found, 40.0, 39.0) == []
    # The first row is marked again at every result of its stream.
    found.observe([Ack("a", "completed", 5)], 40.0)
    assert ready(found, 40.0, 40.0) == ["b"]


def test_a_mark_that_is_seen_twice_is_one_result() -> None:
    found = follow_up()
    for _ in range(3):
        found.observe([Ack("a", "completed", 4), Ack("b", "completed", 3)], 20.0)
    found.complete(["a"])
    assert ready(found, 20.1, 20.0) == []


def test_a_row_that_stays_in_work_has_begun_a_stream_of_its_own() -> None:
    found = ledger("a", "b")
    found.observe([Ack("a", "completed", 2)], 1.0)
    found.complete(["a"])
    found.observe([Ack("b", "processing", 3)], 10.0)
    found.observe([Ack("b", "completed", 4)], 15.0)
    assert ready(found, 15.0 + QUIET_AFTER_FOLLOW_UP_S, 15.0) == ["b"]


def test_a_cleared_conversation_has_no_answer_to_wait_for() -> None:
    found = ledger("a", "b", text=" /CLEAR ")
    found.observe([Ack("a", "completed", 2)], 1.0)
    found.observe([Ack("b", "completed", 4)], 5.0)
    assert "b" in ready(found, 5.0, 5.0)


acks = st.builds(
    Ack, st.sampled_from("abcd"), st.sampled_from(["processing", "completed", "failed"]), st.integers(1, 40)
)


def test_a_command_begins_a_stream_of_its_own_and_ends_the_one_before() -> None:
    found = ledger("a", "b")
    command = in_row({"id": "c", "seq": 6, "content": {"text": "/compact now"}}, at="")
    assert command is not None
    found.receive(command)
    found.observe([Ack("a", "processing", 1), Ack("b", "completed", 3)], 10.0)
    found.observe([Ack("a", "completed", 4), Ack("c", "completed", 6)], 10.2)
    # None waits for a minute: two were given up, and the third is done when it is marked.
    assert ready(found, 10.2 + QUIET_AFTER_FOLLOW_UP_S, 10.2) == ["a", "b", "c"]


def test_after_a_clear_the_next_row_begins_a_stream() -> None:
    found = ledger("a", text="/clear")
    found.observe([Ack("a", "completed", 2)], 10.0)
    assert ready(found, 10.0, 10.0) == ["a"]
    found.complete(["a"])
    row = in_row({"id": "b", "seq": 8, "content": {"text": "/help me"}}, at="")
    assert row is not None
    found.receive(row)
    found.observe([Ack("b", "completed", 4)], 11.0)
    assert ready(found, 11.0 + QUIET_AFTER_FOLLOW_UP_S, 11.0) == ["b"]


def test_an_answer_that_is_seen_before_its_mark_counts_when_the_mark_is_seen() -> None:
    found = ledger("a", "b")
    found.observe([Ack("a", "processing", 1)], 10.0)
    found.observe([Ack("b", "processing", 2)], 11.0)
    found.said(said("b"))
    assert ready(found, 12.0, 12.0) == []
    found.observe([Ack("b", "completed", 4)], 11.5)
    assert "b" in ready(found, 11.5 + QUIET_AFTER_FOLLOW_UP_S, 11.5)


def test_what_was_given_up_is_not_waited_for() -> None:
    found = follow_up()
    found.receive(task := ledger("t").held["t"].row)
    found.observe([Ack(task.id, "failed", 5)], 13.0)
    assert ready(found, 13.0, 13.0) == [task.id]


def test_what_names_no_row_in_work_is_about_the_newest_of_its_chat_that_is() -> None:
    found = Ledger()
    for number, (key, chat) in enumerate([("a", "p"), ("b", "p"), ("c", "garden"), ("d", "p")]):
        row = in_row({"id": key, "seq": 2 * number + 2, "channel_type": "c", "platform_id": chat}, at="")
        assert row is not None
        found.receive(row)
    found.observe([Ack(key, "processing", number, AT + number) for number, key in enumerate("abc")], 10.0)
    later = "2026-11-18 11:06:50"

    def about(out: OutRow) -> str | None:
        return found.addressed(out).in_reply_to

    assert about(said(None, later)) == "b"
    assert about(said("a", later)) == "a"
    assert about(said("done-long-ago", later)) == "b"
    # Said before the runner had taken that one.
    assert about(said("done-long-ago", "2026-11-18T11:06:40.999Z")) == "a"
    assert about(said("done-long-ago", "2026-11-18T11:06:39.999Z")) == "done-long-ago"
    assert about(said(None, later)._replace(place=Place("c", "p", "a thread"))) is None
    assert about(said(None, later)._replace(kind="chat-sdk")) is None
    assert about(said(None, later)._replace(content={"operation": "edit"})) is None
    # The last words on what the runner has just marked come after the mark.
    found.observe([Ack(key, "completed", 9, AT + 10) for key in "ab"], 20.0)
    assert about(said("b", later)) == "b"
    assert about(said(None, later)) == "b"
    # Written between the marks of its row; only the second of them was seen.
    found.observe([Ack("d", "completed", 12, AT + 30)], 30.0)
    assert about(said(None, later)) == "d"
    assert about(said("done-long-ago", later)) == "done-long-ago"


@given(st.lists(st.tuples(st.lists(acks, max_size=4), st.floats(0, 5), st.booleans()), max_size=20))
def test_rows_end_once_and_never_before_their_mark(steps: list[tuple[list[Ack], float, bool]]) -> None:
    found = ledger(*"abcd")
    done: list[str] = []
    marked: set[str] = set()
    now = 0.0
    for marks, passed, complete in steps:
        now += passed
        found.observe(marks, now)
        marked |= {ack.id for ack in marks if ack.status != "processing"}
        if complete:
            ended = ready(found, now, now)
            assert set(ended) <= marked
            found.complete(ended)
            done += ended
    assert len(done) == len(set(done))
    assert set(found.held) == set("abcd") - set(done)
    # However it went: what was marked is answered after a long silence.
    assert set(ready(found, now + QUIET_AT_MOST_S, now)) == marked - set(done)


SEQS = {"a": 2, "b": 4}
AT = 1_795_000_000.0  # 11:06:40


def test_a_row_that_was_in_work_was_not_answered() -> None:
    assert not answered_before(Ack("a", "processing", 1, AT), [], [said("a")], SEQS)


def test_a_row_with_a_reply_after_its_mark_was_answered() -> None:
    ack = Ack("a", "completed", 2, AT)
    assert answered_before(ack, [ack], [said("a")], SEQS)
    assert not answered_before(ack, [ack], [said("a", "2026-11-18 11:06:39")], SEQS)
    assert not answered_before(ack, [ack], [said(None)], SEQS)
    assert not answered_before(ack, [ack], [], SEQS)


def test_a_follow_up_to_a_turn_that_never_ended_was_not_answered() -> None:
    ack = Ack("b", "completed", 3, AT)
    assert not answered_before(ack, [Ack("a", "processing", 1, AT), ack], [said("b")], SEQS)


def test_a_follow_up_was_answered_by_a_later_result_that_replies_to_a_later_row() -> None:
    ack = Ack("a", "completed", 3, AT)
    later = Ack("first", "completed", 4, AT)
    assert answered_before(ack, [ack, later], [said("b")], SEQS)
    assert not answered_before(ack, [ack], [said("b")], SEQS)
    assert not answered_before(Ack("b", "completed", 3, AT), [ack, later], [said("a")], SEQS)


def test_what_is_left_is_sorted_by_what_the_host_waits_for() -> None:
    held = ledger("a", "b", "c")
    question = in_row({"id": "q", "seq": 8, "kind": "system", "content": {}}, at="")
    assert question is not None
    marks = [Ack("a", "completed", 1, AT), Ack("b", "processing", 2, AT)]
    early = said(None, "2026-11-18 11:06:39")
    # What replies to a row that begins again belongs to it, whenever it was said: a mark tells only of itself.
    outs = [said("a"), said(None), early, said("b", "2026-11-18 11:06:38")]
    left = sort_out([*(each.row for each in held.held.values()), question], acks=marks, outs=outs, seqs=SEQS)
    assert (left.answered, left.unheard, left.again) == (["a"], ["q"], ["b"])
    assert left.said_before == [outs[1], outs[3]]


@pytest.mark.parametrize(
    ("came", "said_at", "counts"),
    [
        # In the very moment of its arrival; older runners tell it to the second only.
        ("2026-11-18T11:06:40.500Z", "2026-11-18T11:06:40.500Z", True),
        ("2026-11-18T11:06:40.500Z", "2026-11-18 11:06:40", True),
        ("2026-11-18T11:06:40.500Z", "2026-11-18T11:06:40.499Z", False),
        # The turn before it ended at 11:06:40.
        ("2026-11-18T11:00:00.000Z", "2026-11-18T11:06:39.999Z", False),
        ("2026-11-18T11:00:00.000Z", "2026-11-18T11:06:40.001Z", True),
    ],
)
def test_what_names_no_row_belongs_to_a_turn_by_its_time(came: str, said_at: str, counts: bool) -> None:
    row = in_row({"id": "b", "seq": 4, "timestamp": came, "content": {"text": "x"}}, at="")
    assert row is not None
    marks = [Ack("a", "completed", 1, AT), Ack("b", "completed", 3, AT + 60)]
    left = sort_out([row], acks=marks, outs=[said(None, said_at)], seqs=SEQS)
    assert left.again == ["b"]
    assert bool(left.said_before) is counts
