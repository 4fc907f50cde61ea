"""What a session may keep on disk, and when it is looked at whether it keeps more: decided here, measured elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MEBIBYTE = 1024 * 1024
BLOCK_BYTES = 512
"""What the kernel counts a file's blocks in, whatever the file system."""

SHARE = 0.05
"""Of the time, measuring one session may take at most so much, however much it holds."""

NOTICED = 1 / 32
"""When so much of what it may keep is lost to the disk since a container was last measured, it is measured even if it
says that it does nothing."""

SELDOM = 6
"""One that says that it does nothing, on a disk that loses nothing, is measured so many times more seldom: others may
give back just then what it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """0: no limit."""

    bytes: int
    files: int

    def __bool__(self) -> bool:
        return bool(self.bytes or self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was found; no more than was needed to see that it is too much."""

    parts: Mapping[str, int]
    """Bytes on the disk by the folder on the host."""
    files: int
    """Of every kind, folders included: each takes a place in the file system."""
    too_deep: bool = False
    """There are folders in folders beyond what is looked into."""
    closed: int = 0
    """Folders that the host could not look into."""

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """What is free on a disk."""

    bytes: int
    files: int


def excess(usage: Usage, allowance: Allowance) -> str:
    """What is too much, in a sentence; empty when nothing is."""
    if usage.too_deep:
        return "It keeps folders in each other deeper than the host looks."
    if allowance.files and usage.files > allowance.files:
        return f"It keeps more than the {allowance.files} files and folders that it may."
    if allowance.bytes and usage.bytes > allowance.bytes:
        largest = max(usage.parts, key=lambda part: usage.parts[part])
        return (
            f"It keeps more than the {allowance.bytes // MEBIBYTE} MiB that it may; "
            f"{usage.parts[largest] // MEBIBYTE} MiB were found in {largest}."
        )
    return ""


def shrank(allowance: Allowance, then: Free, now: Free) -> bool:
    """Whether the disk has lost so much that it matters to who may keep `allowance`; others may have taken it."""
    return any(
        most and lost >= max(most * NOTICED, 1)
        for most, lost in ((allowance.bytes, then.bytes - now.bytes), (allowance.files, then.files - now.files))
    )


def is_due(
    allowance: Allowance, *, since_s: float, every_s: float, took_s: float, worked: bool, then: Free, now: Free
) -> bool:
    """Whether to measure a container again: `since_s` after the last time, which took `took_s`.

    `every_s`: no more often than this. `worked`: it has done something since.
    """
    if since_s < max(every_s, took_s / SHARE):
        return False
    return worked or shrank(allowance, then, now) or since_s >= SELDOM * every_s
