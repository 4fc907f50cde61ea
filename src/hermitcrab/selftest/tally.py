"""What was said and what came back, counted: lost, doubled, out of order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

_NUMBER = re.compile(r"#(\d+)#")


@dataclass(slots=True)
class Tally:
    """One conversation: messages 1, 2, 3, ... go out in this order, and each number must come back once."""

    said: int = 0
    """Messages that the host has taken."""
    heard: list[int] = field(default_factory=list)
    """Numbers as they came back, repeats of one delivery left out."""

    @staticmethod
    def text(number: int) -> str:
        return f"message #{number}#"

    def hear(self, text: str) -> None:
        """An answer; it may hold several numbers, as several messages may have been answered together."""
        self.heard += [int(number) for number in _NUMBER.findall(text)]

    @property
    def is_complete(self) -> bool:
        return set(self.heard) >= set(range(1, self.said + 1))

    @property
    def lost(self) -> list[int]:
        return sorted(set(range(1, self.said + 1)) - set(self.heard))

    @property
    def doubled(self) -> list[int]:
        return sorted(number for number, count in Counter(self.heard).items() if count > 1)

    @property
    def out_of_order(self) -> list[int]:
        """Numbers that came after a greater one, a repeat aside."""
        return _late(list(dict.fromkeys(self.heard)))


def _late(numbers: Sequence[int]) -> list[int]:
    greatest, late = 0, []
    for number in numbers:
        if number < greatest:
            late.append(number)
        greatest = max(greatest, number)
    return late
