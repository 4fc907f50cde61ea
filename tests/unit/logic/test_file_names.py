"""Names that agents give files: whatever they are, people see one that is safe."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.file_names import LONGEST_BYTES, NAMELESS, shown_name


@given(st.text(alphabet=st.characters() | st.sampled_from("/\\.\0\u202e\n "), max_size=300))
def test_any_name_becomes_one_that_stays_in_its_folder(name: str) -> None:
    shown = shown_name(name)
    assert shown == shown_name(shown)
    assert 0 < len(shown.encode()) <= LONGEST_BYTES + 30
    assert not set(shown) & set('/\\\0\n<>:"|?*')
    assert shown.strip(" .") not in {"", ".."}
    assert Path("/folder", shown).parent == Path("/folder")
    assert not any(unicodedata.category(each) == "Cc" or each in "\u202e\u200f" for each in shown)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/", NAMELESS),
        ("..", NAMELESS),
        ("", NAMELESS),
        ("\0", NAMELESS),
        ("photo\u202egpj.exe", "photogpj.exe"),
        ("a" * 4096 + ".pdf", "a" * (LONGEST_BYTES - 4) + ".pdf"),
        ("straße übung.txt", "straße übung.txt"),
        ("with\nnewline.txt", "withnewline.txt"),
    ],
)
def test_names_people_may_meet(name: str, shown: str) -> None:
    assert shown_name(name) == shown
