"""Following a log that can only be asked for its last lines."""

from __future__ import annotations

from collections.abc import Sequence


def new_lines(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """The lines of `after` that came since `before`, both being the last lines of one growing log.

    The longest end of `before` that `after` begins with was there already. When there is none, the log went on by more
    than was asked for, or began anew: all of `after` is new.
    """
    if not before:
        return list(after)
    for shared in range(min(len(before), len(after)), 0, -1):
        if list(before[-shared:]) == list(after[:shared]):
            return list(after[shared:])
    return list(after)
