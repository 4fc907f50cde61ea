"""Whose turn it is to start: first come, first served within a group, and the groups in turn. Pure.

A group with a hundred sessions and one with a single session get every second turn each. Nobody is passed over because
somebody behind needs less: otherwise small ones could keep a large one waiting for ever.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Ticket:
    key: str
    """Who waits. One ticket each."""
    group: str
    memory_mb: int
    """What it will be counted for."""


class FairQueue:
    def __init__(self) -> None:
        self._groups: OrderedDict[str, deque[Ticket]] = OrderedDict()
        """The group whose turn it is comes first."""

    def __len__(self) -> int:
        return sum(len(tickets) for tickets in self._groups.values())

    def join(self, ticket: Ticket) -> None:
        """Wait behind one's own group. Raises ValueError for who waits already."""
        if any(each.key == ticket.key for tickets in self._groups.values() for each in tickets):
            raise ValueError(f"{ticket.key} waits already")
        self._groups.setdefault(ticket.group, deque()).append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Give up waiting. Who does not wait any more may say so too."""
        tickets = self._groups.get(ticket.group)
        if tickets is not None and ticket in tickets:
            tickets.remove(ticket)
            if not tickets:
                del self._groups[ticket.group]

    def first(self) -> Ticket | None:
        """Whose turn it is."""
        for tickets in self._groups.values():
            return tickets[0]
        return None

    def take(self) -> Ticket:
        """Let the first one in; its group's next turn comes after all the others'. Raises LookupError if empty."""
        for group, tickets in self._groups.items():
            ticket = tickets.popleft()
            if tickets:
                self._groups.move_to_end(group)
            else:
                del self._groups[group]
            return ticket
        raise LookupError("nobody waits")

    def places(self) -> dict[str, int]:
        """Everybody's place, from 1, if nobody else came."""
        waiting = [list(tickets) for tickets in self._groups.values()]
        longest = max((len(tickets) for tickets in waiting), default=0)
        order = [tickets[turn] for turn in range(longest) for tickets in waiting if turn < len(tickets)]
        return {ticket.key: place for place, ticket in enumerate(order, start=1)}


class Lack(StrEnum):
    """What somebody waits for."""

    TURN = "turn"
    """As many are starting as may start at once."""
    PLACE = "place"
    """As many run as may run."""
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is taken, and how much there is."""

    starting: int
    starts_at_most: int
    running: int
    """Those that start included."""
    running_at_most: int
    reserved_mb: int
    budget_mb: int | None
    """None: unknown, and no bound."""

    def lack(self, memory_mb: int) -> Lack | None:
        """What is missing for one more of that size. One alone always fits: else it could never run at all."""
        if self.starting >= self.starts_at_most:
            return Lack.TURN
        if self.running >= self.running_at_most:
            return Lack.PLACE
        if self.budget_mb is not None and self.running > 0 and self.reserved_mb + memory_mb > self.budget_mb:
            return Lack.MEMORY
        return None
