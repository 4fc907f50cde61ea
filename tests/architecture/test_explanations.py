"""Tables of explanation pages name functions and tests: each of them is there, and no row goes without."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from hermitcrab.logic.ending import Cause
from hermitcrab.settings.model import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs/explanation").glob("*.md"))
SOURCES = (ROOT / "src/hermitcrab", ROOT / "packages/runner/src")
"""Where the dotted names of functions begin."""

FUNCTIONS, TESTS = "Our function", "Shown by"
"""The columns whose names are looked up."""
HONEST = "not shown:"
CHECKLIST = [*range(1, 55)]
"""Numbers of the attacks on containers: their names and images, their files, their databases, their life and resources."""


class Row(NamedTuple):
    page: str
    line: int
    cells: dict[str, str]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def rows(name: str, text: str) -> Iterator[Row]:
    """Every row of every table, by the heads of its columns. Raises for a row with more or fewer cells than that."""
    head: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|"):
            head = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
        if head is None:
            head = cells
        elif not set(line) <= set("|-: "):
            yield Row(name, number, dict(zip(head, cells, strict=True)))


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@cache
def defined(path: Path) -> frozenset[str]:
    """Names of functions, classes with their methods and attributes, and constants: `Waker`, `Waker.wake`."""
    found: set[str] = set()

    def look(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    found.add(prefix + name)
                case ast.ClassDef(name=name, body=body):
                    found.add(prefix + name)
                    look(body, f"{prefix}{name}.")
                case ast.Assign(targets=targets):
                    found.update(prefix + each.id for each in targets if isinstance(each, ast.Name))
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(prefix + name)
                case _:
                    pass

    look(ast.parse(path.read_text()).body, "")
    return frozenset(found)


def function_exists(dotted: str) -> bool:
    """`containers.lifecycle.waking.Waker.wake`: a module below one of the sources, and what is defined in it."""
    parts = dotted.split(".")
    for count in range(len(parts) - 1, 0, -1):
        for source in SOURCES:
            module = source.joinpath(*parts[:count]).with_suffix(".py")
            if module.is_file():
                return ".".join(parts[count:]) in defined(module)
    return False


def shows(name: str) -> bool:
    """`path::test` or `path::Class::test`, of a file that pytest collects or of a suite that one of them runs."""
    path, _, test = name.partition("::")
    file = ROOT / path
    if not file.is_file() or not path.startswith(("tests/", "src/hermitcrab/testing/")):
        return False
    return test.rpartition("::")[2].startswith(("test_", "Test")) and test.replace("::", ".") in defined(file)


def faults(row: Row) -> list[str]:
    told = []
    functions, tests = row.cells.get(FUNCTIONS), row.cells.get(TESTS)
    if functions is not None:
        told += [f"{row}: there is no function {each}" for each in names_in(functions) if not function_exists(each)]
    if tests is not None:
        told += [f"{row}: there is no test {each}" for each in names_in(tests) if not shows(each)]
        if not names_in(tests) and HONEST not in tests:
            told.append(f"{row}: neither a test nor {HONEST!r}")
    return told


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_functions_and_tests_that_a_table_names_exist(page: Path) -> None:
    assert [fault for row in rows(page.name, page.read_text()) for fault in faults(row)] == []


@pytest.mark.parametrize(("page", "at_least"), [("parity.md", 90), ("attacks.md", 54), ("life-and-ends.md", 16)])
def test_the_tables_are_found(page: str, at_least: int) -> None:
    found = list(rows(page, (ROOT / "docs/explanation" / page).read_text()))
    assert len([row for row in found if TESTS in row.cells]) >= at_least


def test_every_attack_of_the_checklist_has_its_row() -> None:
    text = (ROOT / "docs/explanation/attacks.md").read_text()
    assert [int(row.cells["No."]) for row in rows("attacks.md", text) if "No." in row.cells] == CHECKLIST


def test_every_cause_of_an_end_is_explained_and_every_setting_is_one() -> None:
    text = (ROOT / "docs/explanation/life-and-ends.md").read_text()
    found = list(rows("life-and-ends.md", text))
    causes = [name for row in found for name in names_in(row.cells.get("Cause", ""))]
    assert sorted(causes) == sorted(Cause)
    for name in (name for row in found for name in names_in(row.cells.get("Setting", ""))):
        section, key = name.split(".")
        assert key in type(getattr(Settings(), section)).model_fields, name


PAGE = """
| What | Our function | Shown by |
|---|---|---|
| good | `containers.lifecycle.waking.Waker.wake`, a note | `tests/architecture/test_explanations.py::test_a_page_that_lies_is_found` |
| honest | | not shown: it is too hard |
| no such method | `containers.lifecycle.waking.Waker.sleep` | not shown: x |
| no such module | `containers.dreaming.Waker` | not shown: x |
| no such test | | `tests/architecture/test_explanations.py::test_nothing` |
| no such file | | `tests/architecture/test_nothing.py::test_nothing` |
| no test | | `src/hermitcrab/app.py::open_host` |
| silent | `containers.lifecycle.waking.Waker` | |
"""


def test_a_page_that_lies_is_found() -> None:
    told = {row.cells["What"]: len(faults(row)) for row in rows("page", PAGE)}
    bad = ["no such method", "no such module", "no such test", "no such file", "no test", "silent"]
    assert told == {"good": 0, "honest": 0, **dict.fromkeys(bad, 1)}
    with pytest.raises(ValueError, match="zip"):
        list(rows("page", "| a | b |\n|---|---|\n| one |\n"))
