"""When a message is set aside: it ended container after container, and others wait behind it."""

from __future__ import annotations

from collections.abc import Mapping

TRIES_AT_MOST = 5
"""Containers that one message may cost, however they end."""


def reason_to_quarantine(tries: int, ends: Mapping[str, int], *, same_way_at_most: int) -> str | None:
    """Why the message is set aside, as a clause; None: it is tried again.

    `tries` are containers that ended while they had it, and not because somebody wanted them to. `ends` are those of
    them of which the cause is known, by cause.
    """
    worst = max(ends, key=lambda cause: (ends[cause], cause), default=None)
    if worst is not None and ends[worst] >= same_way_at_most:
        return f"{_containers(ends[worst])} ended the same way ({worst}) while they worked on it"
    if tries >= max(TRIES_AT_MOST, same_way_at_most):
        return f"{_containers(tries)} ended while they worked on it"
    return None


def _containers(count: int) -> str:
    return "1 container" if count == 1 else f"{count} containers"
