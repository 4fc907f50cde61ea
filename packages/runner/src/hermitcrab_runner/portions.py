"""Which of the waiting rows are asked next, as one prompt. Pure but for taking them out of the list."""

from __future__ import annotations

from collections.abc import Collection

from hermitcrab_runner.commands import command_of
from hermitcrab_runner.rows import Row
from hermitcrab_wire.limits import MAX_IDS_IN_A_FRAME


def take_next(waiting: list[Row], first_trigger: int, most: int, native: Collection[str]) -> tuple[Row, ...]:
    """The oldest rows up to the limit, at least up to the first that triggers, and never past a command.

    A suspect that triggers has only its context with it, and so has the answer to a question: it belongs to the turn
    that asked, which may be one of those before it.
    """
    count = min(max(most, first_trigger + 1), MAX_IDS_IN_A_FRAME)
    if waiting[first_trigger].is_suspect or waiting[first_trigger].question:
        count = first_trigger + 1
    for index in range(first_trigger + 1, min(count, len(waiting))):
        row = waiting[index]
        if row.is_suspect or row.question or command_of(row, native) is not None:
            count = index
            break
    taken = tuple(waiting[:count])
    del waiting[:count]
    return taken
