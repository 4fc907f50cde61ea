"""How commands print: one JSON document with --json, tables for people otherwise, colour only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from hermitcrab.channels.terminal.render import one_line
from hermitcrab.settings.home import Home

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPED_WIDTH = 10_000
"""Into a pipe, nothing is wrapped or cut."""

GivenHome = Annotated[Home, Parameter(parse=False)]
"""The home that `main` resolved."""

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON document.")]

Session = Annotated[str, Parameter(help="The session's id, or a group's name for its newest session.")]

Style = Literal["plain", "good", "bad", "warning", "quiet"]

_NOTHING = "-"
_GAP = 2
"""Blanks between columns."""

_STYLES: dict[Style, str] = {"plain": "", "good": "green", "bad": "bold red", "warning": "yellow", "quiet": "dim"}


def print_json(value: object) -> None:
    """The only thing on stdout of a command with --json."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    # Half a surrogate pair cannot be written as UTF-8; escaped it is still the same JSON.
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
    sys.stdout.flush()


def console(*, stderr: bool = False) -> Console:
    """It decides on colour by the stream, NO_COLOR and TERM."""
    from rich.console import Console  # noqa: PLC0415  # not needed for --json

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, highlight=False, markup=False, emoji=False, width=None if stream.isatty() else PIPED_WIDTH
    )


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table without frames; cells are shown on one line each, and never obeyed by the terminal.

    A terminal that is too narrow for a word of it, such as an id, gets each row as a block of lines instead.
    """
    from rich.cells import cell_len  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    cells = [[_cell(each) for each in row] for row in rows]
    if not cells:
        print(empty)
        return
    columns_down = zip(columns, *cells, strict=True)
    longest = [max(cell_len(word) for text in column for word in text.split() or [""]) for column in columns_down]
    if sum(longest) + _GAP * (len(columns) - 1) > console().width:
        _print_blocks(columns, cells)
        return
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column, width in zip(columns, longest, strict=True):
        table.add_column(column, min_width=width)  # Otherwise rich cuts one word to have another column on fewer lines.
    for row in cells:
        table.add_row(*(Text(each) for each in row))
    print_trimmed(table)


def _print_blocks(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> None:
    """What a row has of each column, on lines of their own. No line is broken: what is copied is whole."""
    for number, row in enumerate(cells):
        if number:
            print()
        print_fields((name, cell) for name, cell in zip(columns, row, strict=True) if cell != _NOTHING)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """`name  value` lines; what is None or empty is left out."""
    kept = [(name, _cell(value)) for name, value in fields if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        print(f"{name:<{width}}  {value}")


def print_line(text: str, style: Style = "plain", *, stderr: bool = False) -> None:
    from rich.text import Text  # noqa: PLC0415

    console(stderr=stderr).print(Text(text, style=_STYLES[style]), soft_wrap=True)


def styled(text: str, style: Style) -> Any:
    from rich.text import Text  # noqa: PLC0415

    return Text(text, style=_STYLES[style])


def print_trimmed(renderable: RenderableType) -> None:
    """Into a pipe without the blanks that pad a table's last column."""
    target = console()
    if target.is_terminal:
        target.print(renderable)
        return
    with target.capture() as captured:
        target.print(renderable)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _cell(value: object) -> str:
    match value:
        case None:
            return _NOTHING
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case str():
            return one_line(value)
        case list() | tuple():
            return ", ".join(one_line(str(each)) for each in value) or _NOTHING
        case _:
            return one_line(str(value))
