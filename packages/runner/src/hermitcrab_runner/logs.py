"""Lines on stderr, which the engine keeps as the container's log. Never a message's text, never a secret."""

from __future__ import annotations

import os
import time

_CHARACTERS_AT_MOST = 2000


def note(event: str, **fields: object) -> None:
    """Write one line: time, event, fields. Safe from any thread, as one line is one write."""
    words = "".join(f" {key}={value!s}" for key, value in fields.items()).replace("\n", " ")
    line = f"{time.strftime('%H:%M:%S')} runner: {event}{words}"[:_CHARACTERS_AT_MOST] + "\n"
    try:
        os.write(2, line.encode(errors="replace"))
    except OSError:
        return  # A log that is full or gone must not end a turn.


def print_exception() -> None:
    """The exception that is being handled, with where it came from."""
    import traceback  # noqa: PLC0415  # costs every start 10 ms, and is for faults only

    traceback.print_exc()
