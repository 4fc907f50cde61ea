"""Which rows a foreign runner may see: in order, whole, never more than it takes at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hermitcrab_runner.shim.feed import KEPT_CONTEXT, portion
from hermitcrab_runner.shim.translate import InRow, in_row


def rows(kinds: str) -> list[InRow]:
    """t: triggers; c: context; s: an answer to a question."""
    found = []
    for number, kind in enumerate(kinds):
        message = {"id": str(number), "seq": 2 * number + 2, "trigger": kind == "t", "content": {"text": kind}}
        row = in_row({**message, "kind": "system" if kind == "s" else "chat"}, at="")
        assert row is not None
        found.append(row)
    return found


def shown(kinds: str, *, already: int = 0, most: int = 10) -> str:
    return "".join(row.id for row in portion(rows(kinds), shown=already, most=most).now)


def test_context_waits_for_the_row_that_triggers() -> None:
    assert shown("cc") == ""
    assert shown("cct") == "012"
    assert shown("cctc") == "012"


def test_no_more_is_shown_than_the_runner_takes_at_once() -> None:
    assert shown("tttt", most=2) == "01"
    assert shown("tttt", already=1, most=2) == "0"
    assert shown("tttt", already=2, most=2) == ""


def test_an_answer_to_a_question_never_waits() -> None:
    assert shown("tts", already=2, most=2) == "2"


def test_of_too_much_context_the_newest_is_shown() -> None:
    found = portion(rows("ccccct"), shown=0, most=3)
    assert [row.id for row in found.now] == ["3", "4", "5"]
    assert [row.id for row in found.let_go] == ["0", "1", "2"]


def test_context_that_nobody_asks_for_is_let_go_some_day() -> None:
    found = portion(rows("c" * (KEPT_CONTEXT + 3)), shown=0, most=10)
    assert [row.id for row in found.let_go] == ["0", "1", "2"]
    assert len(found.later) == KEPT_CONTEXT


@given(st.text("tcs", max_size=60), st.integers(0, 12), st.integers(1, 12))
def test_rows_are_neither_lost_nor_doubled_and_stay_in_order(kinds: str, already: int, most: int) -> None:
    waiting = rows(kinds)
    found = portion(waiting, shown=already, most=most)
    parts = [*found.now, *found.let_go, *found.later]
    assert sorted(parts, key=lambda row: row.seq or 0) == waiting
    chats = [row for row in found.now if row.kind == "chat"]
    assert chats == sorted(chats, key=lambda row: row.seq or 0)
    assert not chats or chats[-1].trigger
    assert len(chats) + already <= max(most, already) or not already
    assert not any(row.kind == "system" for row in found.later)


@given(st.text("tc", max_size=60), st.integers(1, 12))
def test_every_trigger_is_shown_in_the_end(kinds: str, most: int) -> None:
    waiting = list(rows(kinds))
    seen: list[InRow] = []
    while (found := portion(waiting, shown=0, most=most)).now:
        seen += found.now
        waiting = list(found.later)
    assert [row for row in seen if row.trigger] == [row for row in rows(kinds) if row.trigger]
