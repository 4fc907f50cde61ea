"""The codec and the frames: whatever is said comes out as it went in, and garbage raises WireError and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab_wire import codec, frames
from hermitcrab_wire.codec import LineBuffer, WireError
from hermitcrab_wire.limits import MAX_INTEGER
from hermitcrab_wire.parsing import parse

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
INTEGER = st.integers(-MAX_INTEGER, MAX_INTEGER)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INTEGER | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=5)
KEY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "str": KEY,
    "str | None": st.none() | KEY,
    "int": INTEGER,
    "int | None": st.none() | INTEGER,
    "bool": st.booleans(),
    "Json": OBJECT,
    "Json | None": st.none() | OBJECT,
    "list[str]": st.lists(KEY, max_size=5),
    "list[str] | None": st.none() | st.lists(KEY, max_size=5),
    "list[Json]": st.lists(OBJECT, max_size=5),
}
EVERY_FRAME = {**frames.FROM_RUNNER, **frames.FROM_HOST}


def any_frame() -> st.SearchStrategy[frames.Frame]:
    return st.one_of(
        *(st.builds(cls, **{name: BY_TYPE[kind] for name, kind in cls.FIELDS.items()}) for cls in EVERY_FRAME.values())
    )


@given(OBJECT)
def test_any_object_comes_back_as_it_was(value: dict[str, Any]) -> None:
    line = codec.encode(value)
    assert line.count(b"\n") == 1
    assert codec.decode(line[:-1]) == value


@given(any_frame())
def test_any_frame_comes_back_as_it_was(frame: frames.Frame) -> None:
    message = codec.decode(codec.encode(frame.to_json())[:-1])
    assert parse(message, EVERY_FRAME) == frame


@given(st.binary(max_size=200))
def test_garbage_raises_a_wire_error_and_nothing_else(line: bytes) -> None:
    try:
        value = codec.decode(line)
        parse(value, frames.FROM_RUNNER)
    except WireError:
        return
    assert isinstance(value, dict)


@given(any_frame(), st.data())
@settings(max_examples=300)
def test_a_mutated_frame_is_a_frame_or_a_wire_error(frame: frames.Frame, data: st.DataObject) -> None:
    line = bytearray(codec.encode(frame.to_json())[:-1])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(line) - 1))
        line[position] = data.draw(st.integers(0, 255))
    try:
        parsed = parse(codec.decode(bytes(line)), EVERY_FRAME)
    except WireError:
        return
    assert isinstance(parsed, frames.Frame)


@given(st.lists(st.binary(min_size=1, max_size=30).filter(lambda each: b"\n" not in each), max_size=8), st.data())
def test_lines_are_the_same_however_the_stream_is_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    buffer, found = LineBuffer(limit=64), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += buffer.feed(stream[begin:end])
    assert found == lines


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"", "not-json"),
        (b"nonsense", "not-json"),
        (b"[1]", "not-an-object"),
        (b'{"a": NaN}', "not-json"),
        (b'{"a": Infinity}', "not-json"),
        (b'{"a": 99999999999999999999}', "integer-too-large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "integer-too-large"),
        (b'{"a": "\\ud800"}', "not-unicode"),
        (b'{"\\udfff": 1}', "not-unicode"),
        (b'{"a": "\xff"}', "not-json"),
        (b"[" * 100_000, "not-json"),
        (b'{"a":' * 100_000, "not-json"),
    ],
)
def test_hostile_lines_are_refused_by_name(line: bytes, code: str) -> None:
    with pytest.raises(WireError) as caught:
        codec.decode(line)
    assert caught.value.code == code


def test_a_line_over_the_limit_is_refused_before_it_is_complete() -> None:
    buffer = LineBuffer(limit=10)
    assert buffer.feed(b"12345") == []
    with pytest.raises(WireError, match="limit"):
        buffer.feed(b"67890")


def test_a_frame_over_the_limit_is_not_sent() -> None:
    with pytest.raises(WireError) as caught:
        codec.encode({"text": "x" * 100}, limit=50)
    assert caught.value.code == "too-large"


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": 3},
        {"type": "claim", "turn": "t"},
        {"type": "claim", "turn": "t", "ids": "a"},
        {"type": "claim", "turn": "t", "ids": [1]},
        {"type": "claim", "turn": "", "ids": []},
        {"type": "claim", "turn": "t" * 201, "ids": []},
        {"type": "claim", "turn": "t", "ids": ["x"] * 257},
        {"type": "hello", "protocol": True, "generation": 1, "provider": "echo", "version": "1"},
        {"type": "complete", "turn": "t", "ids": [], "outs": [{}] * 17},
    ],
)
def test_malformed_frames_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(WireError) as caught:
        parse(message, frames.FROM_RUNNER)
    assert caught.value.code == "malformed"


def test_an_unknown_type_is_told_apart_from_a_malformed_frame() -> None:
    with pytest.raises(WireError) as caught:
        parse({"type": "teleport"}, frames.FROM_RUNNER)
    assert caught.value.code == "unknown-type"


def test_fields_of_a_newer_peer_are_passed_over() -> None:
    message = {"type": "bye", "reason": "done", "mood": "cheerful"}
    assert parse(message, frames.FROM_RUNNER) == frames.Bye(reason="done")


def test_absent_values_do_not_travel() -> None:
    assert json.loads(codec.encode(frames.Beat(activity="idle").to_json())) == {"type": "beat", "activity": "idle"}


@pytest.mark.parametrize(
    "line",
    [
        b'{"a":"\xed\xa0\x80"}',
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        '{"a":1}'.encode("utf-32-be"),
        b'\xef\xbb\xbf{"a":1}',
    ],
)
def test_only_utf_8_is_text_however_json_would_read_it(line: bytes) -> None:
    with pytest.raises(WireError):
        codec.decode(line)
