"""Rows, commands and ids: whatever comes in is read, and the same work has the same ids."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab_runner.commands import command_of
from hermitcrab_runner.digest import out_id, turn_id
from hermitcrab_runner.rows import Row, parse_row

NATIVE = frozenset({"/compact"})


@pytest.mark.parametrize("key", [None, "", 7, "x" * 201, ["a"]])
def test_a_row_without_a_usable_id_is_no_row(key: object) -> None:
    assert parse_row({"id": key, "content": {"text": "hi"}}) is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"text": "hi"}, "hi"),
        ({"text": None}, ""),
        ({"text": 12}, "12"),
        ({"text": True}, ""),
        ({"text": ["no"]}, ""),
        ({}, ""),
        (None, ""),
        ("plain", "plain"),
        ('{"text": "encoded"}', "encoded"),
        ("[1]", ""),
        ([1, 2], ""),
        (3.5, "3.5"),
    ],
)
def test_any_content_has_a_text(content: object, text: str) -> None:
    row = parse_row({"id": "r", "content": content})
    assert row is not None
    assert row.text == text


def test_a_row_triggers_unless_it_says_otherwise() -> None:
    triggers = [parse_row({"id": "r", **fields}) for fields in ({}, {"trigger": 1}, {"trigger": 0}, {"trigger": False})]
    assert [row.trigger for row in triggers if row] == [True, True, False, False]


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/clear", "/clear"),
        ("  /CLEAR \n", "/clear"),
        ("/clear now", "/clear"),
        ("/clearance sale", None),
        ("/clear-all", None),
        ("please /clear", None),
        ("/compact keep the names", "/compact"),
        ("/compactor", None),
        ("/etc/passwd is a file", None),
        ("/", None),
        ("", None),
    ],
)
def test_a_command_is_an_exact_word(text: str, command: str | None) -> None:
    assert command_of(Row("r", "chat", {"text": text}), NATIVE) == command


def test_only_a_chat_row_that_triggers_gives_commands() -> None:
    assert command_of(Row("r", "task", {"text": "/clear"}), NATIVE) is None
    assert command_of(Row("r", "chat", {"text": "/clear"}, trigger=False), NATIVE) is None


KEY = st.text(max_size=10)


@given(KEY, st.none() | KEY, st.dictionaries(KEY, KEY, max_size=3), st.integers(1, 9))
def test_ids_are_found_again_and_are_short(first: str, to: str | None, content: dict[str, Any], count: int) -> None:
    assert out_id(first, to, content, count) == out_id(first, to, dict(reversed(content.items())), count)
    assert len(out_id(first, to, content, count)) == len("out-") + 24
    assert len(turn_id(first)) == len("turn-") + 24


def test_ids_differ_wherever_something_differs() -> None:
    hi: dict[str, Any] = {"text": "hi"}
    ids = {
        out_id("r1", None, hi, 1),
        out_id("r2", None, hi, 1),
        out_id("r1", "main", hi, 1),
        out_id("r1", "", hi, 1),
        out_id("r1", None, {"text": "ho"}, 1),
        out_id("r1", None, hi, 2),
        out_id("r", "1", hi, 1),
    }
    assert len(ids) == 7


def test_ids_stay_the_same_from_version_to_version() -> None:
    """A container of the next version may repeat what one of this version had begun to say."""
    assert turn_id("msg-1") == "turn-" + hashlib.sha256(b"5:msg-1").hexdigest()[:24]
    parts = b'5:msg-10:13:{"text":"hi"}1:1'
    assert out_id("msg-1", None, {"text": "hi"}, 1) == "out-" + hashlib.sha256(parts).hexdigest()[:24]
