"""Texts that are too long for a platform, cut where a reader minds least. Pure.

The parts joined are the text. No part ends within a character as people see it, nor within a block of code that fits
into a part.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

Unit = Literal["characters", "utf-16", "bytes"]
"""In what a platform counts."""

SHORTEST_PART = 8
"""A platform that takes less is none: no character could be sent."""

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)
_JOINERS = frozenset("\u200d\ufe0f\ufe0e\u20e3")

_SIZES: dict[Unit, Callable[[str], int]] = {
    "characters": lambda _character: 1,
    "utf-16": lambda character: 2 if ord(character) > 0xFFFF else 1,
    "bytes": lambda character: len(character.encode("utf-8", "surrogatepass")),
}


def parts(text: str, most: int, unit: Unit = "characters") -> list[str]:
    """`text` in parts of at most `most` units; the text itself when it fits."""
    most = max(most, SHORTEST_PART)
    ends = list(accumulate(map(_SIZES[unit], text)))
    if not ends or ends[-1] <= most:
        return [text]
    blocks = [each for each in _code_blocks(text) if _size(ends, *each) <= most]
    found: list[str] = []
    begin = 0
    while begin < len(text):
        spent = ends[begin - 1] if begin else 0
        end = bisect_right(ends, spent + most)
        if end < len(text):
            end = _cut(text, begin, end, blocks)
        found.append(text[begin:end])
        begin = end
    return found


def _cut(text: str, begin: int, end: int, blocks: Sequence[tuple[int, int]]) -> int:
    """Where to cut at the latest at `end`: before a block of code, after a paragraph, a line, a word, a character."""
    for first, last in blocks:
        if begin < first < end < last:
            return first
    allowed = _outside(blocks, begin)
    # Far back, a good place would only make a short part.
    floor = begin + (end - begin) // 3
    for mark in ("\n\n", "\n", " "):
        at = text.rfind(mark, floor, end)
        while at >= floor:
            if allowed(at + len(mark)) and _is_boundary(text, at + len(mark)):
                return at + len(mark)
            at = text.rfind(mark, floor, at)
    at = end
    while at > begin and not (allowed(at) and _is_boundary(text, at)):
        at -= 1
    return at if at > begin else end


def _outside(blocks: Sequence[tuple[int, int]], begin: int) -> Callable[[int], bool]:
    near = [(first, last) for first, last in blocks if last > begin]
    return lambda at: not any(first < at < last for first, last in near)


def _is_boundary(text: str, at: int) -> bool:
    """Whether people see two characters there, before and after."""
    before, after = text[at - 1], text[at]
    if before == "\r" and after == "\n":
        return False
    if after in _JOINERS or before == "\u200d" or unicodedata.category(after) in {"Mn", "Me", "Mc"}:
        return False
    if 0x1F3FB <= ord(after) <= 0x1F3FF or 0xE0020 <= ord(after) <= 0xE007F:
        return False  # tones of skin, and the letters of flags of regions
    if _is_flag_letter(before) and _is_flag_letter(after):
        run = 0
        while run < at and _is_flag_letter(text[at - 1 - run]):
            run += 1
        return run % 2 == 0
    if 0xD800 <= ord(before) <= 0xDBFF and 0xDC00 <= ord(after) <= 0xDFFF:
        return False
    # Syllables of Hangul that are written letter by letter.
    return not (0x1100 <= ord(before) <= 0x11FF and 0x1160 <= ord(after) <= 0x11FF)


def _is_flag_letter(character: str) -> bool:
    return 0x1F1E6 <= ord(character) <= 0x1F1FF


def _code_blocks(text: str) -> list[tuple[int, int]]:
    """Where fenced blocks of code begin and end. One that is never closed reaches to the end."""
    found: list[tuple[int, int]] = []
    opened: tuple[int, str] | None = None
    for fence in _FENCE.finditer(text):
        mark, info = fence.group(1), fence.group(2)
        if opened is None:
            if not (mark[0] == "`" and "`" in info):
                opened = (fence.start(), mark)
        elif mark[0] == opened[1][0] and len(mark) >= len(opened[1]) and not info.strip():
            found.append((opened[0], fence.end()))
            opened = None
    if opened is not None:
        found.append((opened[0], len(text)))
    return found


def _size(ends: Sequence[int], first: int, last: int) -> int:
    return (ends[last - 1] if last else 0) - (ends[first - 1] if first else 0)
