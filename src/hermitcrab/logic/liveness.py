"""Whether a runner lives, from its beats alone: what is to be done about one that is silent, late, or slow (law 9).

Liveness is not progress. Only missing beats, which no slow model and no slow tool can cause, end a container. What a
runner says of itself moves no bound further than the host's own settings allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    ALIVE = "alive"
    WAITS = "waits"
    """The model's service makes it wait: nothing to be done, however long it takes."""
    LATE = "late"
    """Beats are missing, and not enough of them to say that it is dead."""
    SILENT = "silent"
    """It is dead or hangs: the container is to be ended."""
    TOOL_OVERDUE = "tool-overdue"
    """It should have stopped its tool by itself, and is to be told so. It goes on."""
    EXPIRED = "expired"
    """It has lived as long as any container may."""


@dataclass(frozen=True, slots=True)
class Verdict:
    state: State
    text: str = ""
    """One sentence for people; empty when there is nothing to tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What the host has of one runner. All times are on the host's own clock; none is the runner's."""

    beat_at: float
    """When its last beat arrived."""
    since: float
    """When it began to say what it says now."""
    activity: str
    detail: str | None = None
    until: float | None = None
    """How long that may take, as the runner says."""
    born_at: float | None = None
    """When its container was started or taken over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    silent_after_s: float = 30.0
    tool_timeout_s: float = 900.0
    """The longest time that a tool is believed to need, whatever is said of it."""
    tool_grace_s: float = 30.0
    lifetime_s: float | None = None


def judge(signs: Signs, now: float, bounds: Bounds) -> Verdict:
    """What the signs mean at `now`. Silence counts before all else: of a dead runner nothing else is true."""
    silent_s = now - signs.beat_at
    if silent_s > bounds.silent_after_s:
        return Verdict(State.SILENT, f"It gave no sign of life for {silent_s:.0f} s, and the host ended it.")
    if bounds.lifetime_s is not None and signs.born_at is not None and now - signs.born_at > bounds.lifetime_s:
        return Verdict(State.EXPIRED, f"It had lived for {bounds.lifetime_s:g} s, which is as long as a container may.")
    if silent_s > bounds.silent_after_s / 2:
        return Verdict(State.LATE, f"no sign of life for {silent_s:.0f} s")
    if signs.activity == "rate-limited":
        return Verdict(State.WAITS)
    if signs.activity == "tool" and signs.until is not None:
        believed = min(signs.until, signs.since + bounds.tool_timeout_s)
        # The runner stops a tool after one grace. The second is for that to arrive here.
        if now > believed + 2 * bounds.tool_grace_s:
            return Verdict(State.TOOL_OVERDUE, f"the tool {signs.detail or '?'} has run for {now - signs.since:.0f} s")
    return Verdict(State.ALIVE)


class AttentiveClock:
    """A clock that stands still while the host does, so that nobody is called silent whom the host did not listen to.

    A host that was stopped or starved, a suspended machine, a clock that was set: all of them show as a step between
    two readings. Of any step at most `longest_step_s` counts, and of a step backwards nothing. Whoever goes by this
    clock reads it more often than that.
    """

    def __init__(self, source: Callable[[], float], longest_step_s: float) -> None:
        self._source = source
        self._longest_step_s = longest_step_s
        self._last = source()
        self._shown = self._last

    def __call__(self) -> float:
        now = self._source()
        self._shown += min(max(now - self._last, 0.0), self._longest_step_s)
        self._last = now
        return self._shown
