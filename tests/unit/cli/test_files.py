"""Lines that send a file, as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.cli.conversation import split_file
from hermitcrab.errors import BadInputError


@pytest.mark.parametrize(
    ("line", "words", "paths"),
    [
        ("hello", "hello", []),
        ("/files are nice", "/files are nice", []),
        ("see /file a.txt", "see /file a.txt", []),
        ("/file a.txt", "", ["a.txt"]),
        ("  /file   a.txt   what's this?  ", "what's this?", ["a.txt"]),
        ("/file 'my report.pdf' look", "look", ["my report.pdf"]),
        ('/file "it\'s.pdf"', "", ["it's.pdf"]),
        ("/file my\\ report.pdf two\nlines", "two\nlines", ["my report.pdf"]),
        ("/file C:\\\\x", "", ["C:\\x"]),
    ],
)
def test_a_line_names_a_file_and_words_for_it(line: str, words: str, paths: list[str]) -> None:
    assert split_file(line) == (words, paths)


@pytest.mark.parametrize("line", ["/file", "/file  ", "/file 'half", '/file "" x', "/file \\"])
def test_a_line_without_a_path_says_how_it_is_done(line: str) -> None:
    with pytest.raises(BadInputError, match="Which file"):
        split_file(line)


@given(st.text(max_size=60))
def test_no_line_breaks_it(text: str) -> None:
    try:
        words, paths = split_file(f"/file {text}")
    except BadInputError:
        return
    assert paths == [] or paths[0]
    assert isinstance(words, str)
