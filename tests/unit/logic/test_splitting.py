"""Long texts in parts: joined they are the text, none is too long, and no character or fitting block of code is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.splitting import SHORTEST_PART, _code_blocks, _is_boundary, parts

SIZES = {
    "characters": len,
    "utf-16": lambda text: len(text.encode("utf-16-le", "surrogatepass")) // 2,
    "bytes": lambda text: len(text.encode("utf-8", "surrogatepass")),
}
UNITS = st.sampled_from(sorted(SIZES))
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
WORDS = st.sampled_from(
    [
        "word",
        " ",
        "\n",
        "\n\n",
        "```",
        "~~~~",
        "```py\n",
        "e\u0301",
        FAMILY,
        "\U0001f1e9\U0001f1ea",
        "\r\n",
        "ab",
        "\U0001f44d\U0001f3fd",
    ]
)
TEXTS = st.lists(WORDS | st.characters(), max_size=120).map("".join)


@given(TEXTS, st.integers(SHORTEST_PART, 60), UNITS)
def test_parts_joined_are_the_text_and_none_is_too_long(text: str, most: int, unit: str) -> None:
    found = parts(text, most, unit)  # type: ignore[arg-type]
    assert "".join(found) == text
    assert all(SIZES[unit](each) <= most for each in found)
    assert all(found) or text == ""


@given(st.lists(WORDS, max_size=100).map("".join), st.integers(40, 90))
def test_no_part_ends_within_a_character_or_a_block_that_fits(text: str, most: int) -> None:
    blocks = [each for each in _code_blocks(text) if each[1] - each[0] <= most]
    at = 0
    for each in parts(text, most)[:-1]:
        at += len(each)
        assert _is_boundary(text, at)
        assert not any(first < at < last for first, last in blocks)


def test_a_text_that_fits_is_left_alone() -> None:
    assert parts("short", 100) == ["short"]
    assert parts("", 100) == [""]


def test_paragraphs_go_before_lines_and_lines_before_words() -> None:
    assert parts("first words\n\nsecond line\nthird", 20) == ["first words\n\n", "second line\nthird"]
    assert parts("first words second\nthird line", 22) == ["first words second\n", "third line"]
    assert parts("one two three four", 10) == ["one two ", "three four"]


def test_a_block_of_code_stays_whole() -> None:
    code = "```py\n" + "x = 1\n" * 5 + "```"
    found = parts(f"Some words before it.\n{code}\nAnd after.", 50)
    assert found[0] == "Some words before it.\n"
    assert found[1].startswith(code)


@pytest.mark.parametrize(
    "whole", [FAMILY, "\U0001f1e9\U0001f1ea", "e\u0301\u0302", "\U0001f44d\U0001f3fd", "\r\n", "각"]
)
def test_what_people_see_as_one_character_is_not_cut(whole: str) -> None:
    text = "x" * 15 + whole + "y" * 15
    for most in range(SHORTEST_PART, 30):
        assert any(whole in each for each in parts(text, most)) or len(whole) > most


def test_a_megabyte_is_cut_in_reasonable_work() -> None:
    text = ("word " * 30 + "\n") * 7000
    assert "".join(parts(text, 2000)) == text
    assert "".join(parts("```" * 300_000, 2000)) == "```" * 300_000
    assert "".join(parts("\U0001f1e9" * 20_000, 2000)) == "\U0001f1e9" * 20_000
