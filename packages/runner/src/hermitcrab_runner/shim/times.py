"""The two ways in which a foreign runner's files write a moment. Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def sqlite_time(at: float) -> str:
    """As SQLite's `datetime('now')`: UTC without saying so, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def iso_time(at: float) -> str:
    """As JavaScript's `toISOString()`: UTC with a Z, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: object) -> float | None:
    """The moment that either way names, in seconds since 1970; a text without a zone is UTC. None: it names none."""
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text.strip())
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
