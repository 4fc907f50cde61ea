"""What the turn loop knows at any moment: rows on their way, prompts that are out, tools that run. Decides nothing."""

from __future__ import annotations

from typing import NamedTuple

from hermitcrab_runner.digest import turn_id
from hermitcrab_runner.link import Pulse
from hermitcrab_runner.outs import Outbox
from hermitcrab_runner.providers import base
from hermitcrab_runner.rows import Row


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


class ToolLimits(NamedTuple):
    """How long a tool may run before its turn is interrupted (law 9)."""

    timeout_s: float = 900.0
    """At most, whatever it says itself; for one that says nothing, without a sign of progress."""
    grace_s: float = 30.0
    """Longer than it said itself."""


class Tool(NamedTuple):
    name: str
    began: float
    said_s: float | None = None
    """How long it may take, by its own word."""
    is_agent: bool = False

    def until(self, limits: ToolLimits) -> float | None:
        """How long the host is told that it may take."""
        return None if self.said_s is None else self.began + min(self.said_s, limits.timeout_s)

    def overdue_at(self, limits: ToolLimits, progress_at: float) -> float | None:
        """When it counts as stalled, if nothing happens from `progress_at` on; None: never."""
        if self.is_agent:
            return None
        if self.said_s is None:
            return progress_at + limits.timeout_s
        return self.began + min(self.said_s + limits.grace_s, limits.timeout_s)


class Stalled(NamedTuple):
    """A tool for which the turn was interrupted."""

    name: str
    after_s: float

    @property
    def reason(self) -> str:
        return f"the tool {self.name} was stopped, as it had not ended after {_duration(self.after_s)}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


class TurnState:
    def __init__(self) -> None:
        self.limits = ToolLimits()
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
        self.progress_at = 0.0
        """When the provider last told anything."""
        self.stalled: Stalled | None = None
        """Why the provider was interrupted, until it says what became of the turn."""
        self.drain_until: float | None = None

    @property
    def deadline(self) -> float | None:
        """When time alone makes something due, on the loop's clock."""
        times = [at for tool in self.tools.values() if (at := self.overdue_at(tool)) is not None]
        if self.waits is not None:
            times.append(self.waits_until)
        if self.drain_until is not None:
            times.append(self.drain_until)
        return min(times, default=None)

    def overdue_at(self, tool: Tool) -> float | None:
        """When the tool counts as stalled. A model that makes us wait makes the tools that ask it wait, too."""
        progress_at = self.progress_at if self.waits is None else max(self.progress_at, self.waits_until)
        return tool.overdue_at(self.limits, progress_at)

    def pulse(self, *, draining: bool) -> Pulse:
        """What the beats tell the host."""
        if self.asked and self.waits is not None:
            return Pulse("rate-limited", self.waits.detail, self.waits_until)
        if self.asked and self.tools:
            # Of several tools, the one that may take longest tells how long to wait.
            tool = max(self.tools.values(), key=lambda each: each.until(self.limits) or 0.0)
            return Pulse("tool", tool.name, tool.until(self.limits))
        if draining:
            return Pulse("draining", None, self.drain_until)
        return Pulse("thinking" if self.asked else "idle")
