"""Between frames and rows: whatever either side writes, the other gets something it can live with."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hermitcrab_runner.prompt import Destination
from hermitcrab_runner.shim.times import iso_time, parse_time, sqlite_time
from hermitcrab_runner.shim.translate import (
    KINDS,
    OutRow,
    Place,
    Unsendable,
    Way,
    content_text,
    in_row,
    inbound_seq,
    out_row,
    way_of,
)
from hermitcrab_wire.codec import encode
from hermitcrab_wire.limits import MAX_FRAME_BYTES, MAX_NESTING

text = st.text(st.characters(codec="utf-8"), max_size=40)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
columns = st.none() | st.integers() | st.floats() | text | st.binary(max_size=20)
moments = st.floats(min_value=0, max_value=4_000_000_000)


@given(moments)
def test_both_ways_to_write_a_moment_are_read_again(at: float) -> None:
    seconds, milliseconds = parse_time(sqlite_time(at)), parse_time(iso_time(at))
    assert seconds is not None
    assert milliseconds is not None
    # To the microsecond, which is where Python rounds.
    assert -1 < seconds - at <= 1e-6
    assert -0.0011 < milliseconds - at <= 1e-6


def test_the_two_ways_are_those_of_sqlite_and_javascript() -> None:
    assert sqlite_time(1_795_000_000.5) == "2026-11-18 11:06:40"
    assert iso_time(1_795_000_000.5) == "2026-11-18T11:06:40.500Z"
    assert parse_time("2026-11-18T12:06:40+01:00") == 1_795_000_000
    assert parse_time("2026-11-18 11:06:40") == 1_795_000_000


@given(columns)
def test_what_is_no_moment_is_none(value: object) -> None:
    assert parse_time(value) is None or isinstance(value, str)


@given(st.none() | st.integers(1, 2**53).map(lambda n: 2 * (n // 2)), st.booleans(), st.integers(0, 2**53))
def test_the_host_numbers_rows_evenly(wanted: int | None, taken: bool, greatest: int) -> None:
    seq = inbound_seq(wanted, taken=taken, greatest=greatest)
    assert seq % 2 == 0
    if wanted is None or taken:
        assert greatest < seq <= greatest + 2
    else:
        assert seq == wanted


@given(json_values)
def test_a_content_is_compact_and_kills_no_runner(content: Any) -> None:
    written = content_text(content)
    value = json.loads(written)
    assert isinstance(value, dict)
    assert isinstance(value.get("text", ""), str)
    assert isinstance(value.get("sender", ""), str)
    assert written == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@given(text)
def test_an_answer_is_found_by_its_questions_id(key: str) -> None:
    written = content_text({"type": "question_response", "questionId": key, "selectedOption": "yes"})
    assert f'"questionId":{json.dumps(key, ensure_ascii=False)}' in written


@given(st.dictionaries(st.sampled_from(["id", "seq", "kind", "timestamp", "trigger", "tries", "content"]), json_values))
def test_any_inbound_frame_gives_a_row_or_nothing(message: dict[str, Any]) -> None:
    row = in_row(message, at="2026-11-18T11:06:40.500Z")
    if row is None:
        assert not isinstance(message.get("id"), str) or not 0 < len(message["id"]) <= 200
        return
    assert row.seq is None or row.seq % 2 == 0
    assert (row.trigger, row.on_wake) in {(0, 0), (1, 0)}
    assert row.kind in KINDS
    assert parse_time(row.timestamp) is not None
    assert row.process_after is None or parse_time(row.process_after) is not None


def test_a_row_that_the_runner_would_pass_over_in_silence_becomes_one_that_it_takes() -> None:
    odd = {"id": "m1", "kind": "poem", "timestamp": "yesterday", "process_after": "soon"}
    row = in_row(odd, at="2026-11-18T11:06:40.500Z")
    assert row is not None
    assert (row.kind, row.timestamp, row.process_after) == ("chat", "2026-11-18T11:06:40.500Z", None)
    offset = in_row({"id": "m1", "timestamp": "2026-11-18T12:06:40+01:00"}, at="")
    assert offset is not None
    assert offset.timestamp == "2026-11-18T11:06:40.000Z"


def test_every_column_comes_from_the_frame() -> None:
    message = {
        "id": "m1",
        "seq": 8,
        "kind": "task",
        "timestamp": "2026-11-18T11:06:40.500Z",
        "process_after": "2026-11-18T11:06:40.500Z",
        "recurrence": "0 9 * * *",
        "series_id": "task-1",
        "tries": 2,
        "trigger": False,
        "platform_id": "p",
        "channel_type": "c",
        "thread_id": "t",
        "content": {"prompt": "look"},
        "source_session_id": "s",
        "on_wake": True,
    }
    row = in_row(message, at="")
    assert row is not None
    assert row._asdict() == {**message, "content": '{"prompt":"look"}', "trigger": 0, "on_wake": 1}


@given(st.tuples(*[columns] * 9))
def test_any_row_that_an_agent_may_write_is_sendable_or_says_why_not(values: tuple[Any, ...]) -> None:
    found = out_row(values)
    if isinstance(found, Unsendable):
        assert found.reason
    else:
        assert 0 < len(found.id) <= 200
        assert isinstance(found.content, dict)


def test_what_is_nested_deeper_than_a_message_may_be_is_not_sent() -> None:
    def row(levels: int) -> OutRow | Unsendable:
        content = '{"card":' + "[" * levels + "]" * levels + "}"
        return out_row(("m", None, "2026-11-18 11:06:40", None, "chat", None, None, None, content))

    assert isinstance(row(MAX_NESTING - 1), OutRow)
    assert row(MAX_NESTING) == Unsendable("m", f"its content is nested more than {MAX_NESTING} deep")


@given(json_values, text)
def test_what_is_sendable_fits_into_a_frame(content: Any, kind: str) -> None:
    row = out_row(("m", None, "2026-11-18 11:06:40", None, kind, None, None, None, json.dumps(content)))
    if isinstance(row, OutRow) and not _has_great_integers(row.content):
        assert len(encode({"type": "out", "id": row.id, "kind": row.kind, "content": row.content})) < MAX_FRAME_BYTES


def _has_great_integers(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > 2**53


HOME = Place("terminal", "main")
GARDEN = Destination("garden", channel_type="terminal", platform_id="garden")
CHILD = Destination("child", type="agent", agent_group_id="ag-child")


def out(place: Place, in_reply_to: str | None = None) -> OutRow:
    return OutRow("m", in_reply_to, "", None, "chat", place, {"text": "x"})


def way(said: OutRow, *, answered: Place | None = None, latest: str | None = None) -> Way | None:
    return way_of(said, answered=answered, latest=latest, home=HOME, destinations=(GARDEN, CHILD))


def test_a_reply_goes_by_the_row_that_it_replies_to() -> None:
    assert way(out(HOME, "r1"), answered=HOME) == Way(None, "r1")


def test_a_reply_into_another_chat_does_not_go_by_the_row() -> None:
    assert way(out(Place("terminal", "garden"), "r1"), answered=HOME) == Way("garden", None)


def test_the_own_chat_needs_no_name() -> None:
    assert way(out(HOME)) == Way(None, None)


def test_another_agent_is_a_destination() -> None:
    assert way(out(Place("agent", "ag-child"))) == Way("child", None)


def test_a_chat_that_is_no_destination_goes_by_its_latest_row() -> None:
    assert way(out(Place("terminal", "elsewhere", "t")), latest="r9") == Way(None, "r9")


def test_a_chat_that_nobody_knows_is_nowhere() -> None:
    assert way(out(Place("terminal", "elsewhere"))) is None


def test_a_request_to_the_host_has_no_place() -> None:
    assert way(out(Place())) == Way(None, None)
