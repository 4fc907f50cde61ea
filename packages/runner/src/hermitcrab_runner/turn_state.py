"""What the turn loop knows at any moment: rows on their way, prompts that are out, tools that run. Decides nothing."""

from __future__ import annotations

from typing import NamedTuple

from hermitcrab_runner.digest import turn_id
from hermitcrab_runner.link import Pulse
from hermitcrab_runner.outs import Outbox
from hermitcrab_runner.providers import base
from hermitcrab_runner.rows import Row

TOOL_GRACE_S = 30.0
"""A tool that runs this much longer than it said is interrupted (law 9)."""


class Group:
    """Rows that were given to the provider as one prompt, and are completed together."""

    __slots__ = ("corrected", "outbox", "rows", "turn")

    def __init__(self, rows: tuple[Row, ...], outbox: Outbox) -> None:
        self.turn = turn_id(rows[0].id)
        self.rows = rows
        self.outbox = outbox
        self.corrected = False
        """The model was told that it addressed nobody."""

    @property
    def ids(self) -> list[str]:
        return [row.id for row in self.rows]


class Tool(NamedTuple):
    name: str
    until: float | None


class TurnState:
    def __init__(self) -> None:
        self.waiting: list[Row] = []
        """Received and not claimed, oldest first."""
        self.asked: dict[str, Group] = {}
        """Claimed and not answered, by the key of their prompt."""
        self.finishing: dict[str, Group] = {}
        """Completed, but the host has not said yet that it is on disk; by turn."""
        self.done: dict[str, None] = {}
        self.tools: dict[str, Tool] = {}
        self.waits: base.Waiting | None = None
        self.waits_until = 0.0
        self.drain_until: float | None = None

    @property
    def deadline(self) -> float | None:
        """When time alone makes something due, on the loop's clock."""
        times = [tool.until + TOOL_GRACE_S for tool in self.tools.values() if tool.until is not None]
        if self.drain_until is not None:
            times.append(self.drain_until)
        return min(times, default=None)

    def pulse(self, *, draining: bool) -> Pulse:
        """What the beats tell the host."""
        if self.asked and self.waits is not None:
            return Pulse("rate-limited", self.waits.detail, self.waits_until)
        if self.asked and self.tools:
            # Of several tools, the one that may take longest tells how long to wait.
            tool = max(self.tools.values(), key=lambda each: each.until or 0.0)
            return Pulse("tool", tool.name, tool.until)
        if draining:
            return Pulse("draining", None, self.drain_until)
        return Pulse("thinking" if self.asked else "idle")
