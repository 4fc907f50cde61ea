from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.cli.output import print_fields, print_json, print_line, print_table


def test_json_is_one_document_that_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": "ünïcode 🦀\n\x1b[31m", "half": "\udcff", "none": None}
    print_json(value)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert json.loads(out)["text"] == value["text"]


def test_a_table_into_a_pipe_is_neither_cut_nor_coloured_nor_padded(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "TEXT"), [("a", "x" * 300), ("b", "[bold]no markup[/]")], empty="nothing")
    assert capsys.readouterr().out.splitlines() == ["NAME  TEXT", f"a     {'x' * 199}…", "b     [bold]no markup[/]"]


def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 columns. To be called in the test: what stdout is there is not what it is in a fixture."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"COLUMNS": "40", "LINES": "25", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)


def test_a_terminal_that_is_too_narrow_for_an_id_gets_it_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow_terminal(monkeypatch)
    print_table(("ID", "NOTE", "WHY"), [("i" * 36, None, "one"), ("j" * 50, "n", "two")], empty="")
    assert capsys.readouterr().out.splitlines() == [
        f"ID   {'i' * 36}",
        "WHY  one",
        "",
        f"ID    {'j' * 50}",
        "NOTE  n",
        "WHY   two",
    ]


def test_a_table_that_only_has_much_text_is_wrapped_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow_terminal(monkeypatch)
    print_table(("ID", "WHY"), [("i" * 20, "a reason of many words")], empty="")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [f"ID{' ' * 20}WHY", f"{'i' * 20}  a reason of many", f"{' ' * 22}words"]


def test_no_part_of_a_list_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"NAME_{number}" for number in range(60)]
    print_fields([("environment", names)])
    assert capsys.readouterr().out == f"environment  {', '.join(names)}\n"


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME",), [], empty="There is none yet.")
    assert capsys.readouterr().out == "There is none yet.\n"


def test_cells_cannot_break_the_table_or_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "B"), [("one\ntwo", "\x1b]0;title\x07x"), (True, None), (1.5, ["p", "q"])], empty="")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["A", "B"],
        ["one", "two", "x"],
        ["yes", "-"],
        ["1.5", "p,", "q"],
    ]


def test_fields_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields([("one", 1), ("nothing", None), ("empty", ""), ("three", False)])
    assert capsys.readouterr().out == "one    1\nthree  no\n"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_line_is_printed_as_text_whatever_is_in_it(text: str) -> None:
    print_line(text.replace("\x1b", ""), "bad")
