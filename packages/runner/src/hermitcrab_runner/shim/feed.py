"""Which rows the foreign runner may see now. Pure.

A v2 runner takes the newest ten pending rows and only then leaves out those that it knows: with more in its file, older
rows come after newer ones, and rows that only give context can hide the one that triggers. So it never sees more than
it takes at once, oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hermitcrab_runner.shim.translate import InRow

KEPT_CONTEXT = 128
"""Rows that only give context and may wait for one that triggers; the oldest beyond it are let go."""

SYSTEM_ROWS_AT_MOST = 4
"""Answers to questions that nobody has picked up and that may lie in the file: each takes the place of a message."""


class Portion(NamedTuple):
    now: tuple[InRow, ...]
    """To be written, in one transaction: a row that triggers must not be seen without its context."""
    let_go: tuple[InRow, ...]
    """Context that is too old to be shown any more."""
    later: tuple[InRow, ...]


def portion(waiting: Sequence[InRow], *, shown: int, most: int) -> Portion:
    """What of `waiting` to write next. `shown` rows lie in the file and are not claimed; the runner takes `most`."""
    now: list[InRow] = [row for row in waiting if row.kind == "system"]
    rest = [row for row in waiting if row.kind != "system"]
    let_go: list[InRow] = []
    while (trigger := next((index for index, row in enumerate(rest) if row.trigger), None)) is not None:
        group = rest[: trigger + 1]
        surplus = max(0, len(group) - most)
        if shown and shown + len(group) - surplus > most:
            break
        let_go += group[:surplus]
        now += group[surplus:]
        shown += len(group) - surplus
        del rest[: trigger + 1]
    if trigger is None and len(rest) > KEPT_CONTEXT:
        let_go += rest[:-KEPT_CONTEXT]
        del rest[:-KEPT_CONTEXT]
    return Portion(tuple(now), tuple(let_go), tuple(rest))
