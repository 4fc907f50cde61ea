from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.channels.terminal.render import checked_text, decoded, one_line, plain, text_of
from hermitcrab.errors import BadInputError

ESCAPES = st.sampled_from(
    [
        "\x1b[31m",
        "\x1b]0;title\x07",
        "\x1b]52;c;aGk=\x1b\\",
        "\x9b2J",
        "\x1bc",
        "\x1bP1q\x1b\\",
        "\x1b(B",
        "\x1b",
        "\x9d",
    ]
)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain text, ünïcode, 🦀, 日本\ttab\nline", "plain text, ünïcode, 🦀, 日本\ttab\nline"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;you are root\x07hello", "hello"),
        ("\x1b]52;c;ZXZpbA==\x1b\\hello", "hello"),
        ("\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\", "click"),
        ("\x9b2Jgone?", "gone?"),
        ("\x1bP+q544e\x1b\\x", "x"),
        ("over\rwrite", "over\nwrite"),
        ("a\r\nb", "a\nb"),
        ("bell\x07 back\x08space del\x7f nul\x00", "bell backspace del nul"),
        ("\u202egnp.exe", "gnp.exe"),
        ("unfinished \x1b]0;text that must stay", "unfinished 0;text that must stay"),
        ("half \ud800 pair", "half \ufffd pair"),
    ],
)
def test_nothing_that_a_terminal_would_obey_is_left(said: str, shown: str) -> None:
    assert plain(said) == shown


@given(st.lists(st.text(st.characters()) | ESCAPES).map("".join))
def test_shown_text_has_no_control_character_and_showing_it_again_changes_nothing(text: str) -> None:
    shown = plain(text)
    assert all(unicodedata.category(each) not in {"Cc", "Cs"} or each in "\t\n" for each in shown)
    assert plain(shown) == shown


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"])))
def test_plain_text_is_shown_as_it_was_said(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize("part", ["\x1b]", "\x9d", "\x1b[", "\x1bP", "\x1b", "\x1b[0;", "a\x1b]b"])
def test_a_megabyte_of_unfinished_sequences_is_shown_before_anybody_gives_up(part: str) -> None:
    # Were the work quadratic, this would outlast the test's deadline by far.
    assert "\x1b" not in plain(part * (1_000_000 // len(part)))


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ({"text": "hello"}, "hello"),
        ({"text": "hello", "files": ["a.txt", "b\x1b[31m.txt"]}, "hello\n[file: a.txt]\n[file: b.txt]"),
        ({"files": ["a.txt"]}, "[file: a.txt]"),
        ({"type": "card"}, "[card]"),
        ({"operation": "edit\x1b[2J"}, "[edit]"),
        ({}, "[a message without text]"),
        ({"text": None, "files": "no list", "type": 3}, "[a message without text]"),
        ({"text": ""}, "[a message without text]"),
    ],
)
def test_any_content_is_described(content: dict[str, object], shown: str) -> None:
    assert text_of(content) == shown


@given(st.text(st.characters()), st.integers(2, 50))
def test_a_cell_is_one_line_of_bounded_width(text: str, width: int) -> None:
    line = one_line(text, width=width)
    assert "\n" not in line
    assert len(line) <= width


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\0b", "NUL"),
        ("\udcff", "UTF-8"),
        ("x" * 11, "11 bytes"),
        ("ü" * 6, "12 bytes"),
        ("", "empty"),
        (" \n", "empty"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_one_sentence_with_the_fix(text: str, words: str) -> None:
    with pytest.raises(BadInputError, match=words) as raised:
        checked_text(text, most_bytes=10)
    assert raised.value.hint
    assert raised.value.exit_code == 2


def test_a_message_of_exactly_the_limit_is_sent() -> None:
    assert checked_text("x" * 10, most_bytes=10) == "x" * 10


@given(st.text())
def test_utf_8_is_read_as_it_is(text: str) -> None:
    assert decoded(text.encode()) == text


@given(st.text(), st.sampled_from([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x80"]))
def test_anything_else_is_refused_with_the_place(text: str, rest: bytes) -> None:
    with pytest.raises(BadInputError, match=f"byte {len(text.encode())} is 0x{rest[0]:02x}"):
        decoded(text.encode() + rest)
