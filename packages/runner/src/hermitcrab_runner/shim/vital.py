"""Signs of life: what the foreign runner does now, for the beats, and whether it is stuck by the rules of its time.

Its time's host looked at the heartbeat file's own time. Here only the moments count at which the shim saw it change: a
runner can set a file's time to whatever it likes. A clock that stands still with the container, as when it is frozen,
makes nobody look stuck.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hermitcrab_runner import legacy_liveness
from hermitcrab_runner.link import Pulse
from hermitcrab_runner.shim.ledger import Ledger
from hermitcrab_runner.shim.outbound import Tool

LOOK_EVERY_S = 10.0
"""While rows are in work."""


class Vital:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._stood_still_s = 0.0
        self.started_at = self.active_at = self.now()
        """`active_at`: when anything of it last changed."""
        self._version: int | None = None
        self._heartbeat: float | None = None
        self._heartbeat_at: float | None = None
        self._tool = Tool()
        self._tool_until: float | None = None
        """On the clock itself, as beats are."""

    def now(self) -> float:
        """The clock without the time for which nobody was there to look at it."""
        now = self._clock()
        step, self._last = now - self._last, now
        if step > 3 * LOOK_EVERY_S:
            self._stood_still_s += step - LOOK_EVERY_S
        return now - self._stood_still_s

    def started(self) -> None:
        """A new process of the runner; its heartbeat file was removed before."""
        self.started_at = self.active_at = self.now()
        self._heartbeat = self._heartbeat_at = None
        self._use(Tool())

    def saw(self, version: int, heartbeat: float | None, tool: Tool) -> None:
        """What the files show now: the database's version, the heartbeat's time, the tool that runs."""
        if (version, heartbeat) == (self._version, self._heartbeat):
            return
        self.active_at, self._version = self.now(), version
        if tool != self._tool:
            self._use(tool)
        if heartbeat is not None and heartbeat != self._heartbeat:
            self._heartbeat, self._heartbeat_at = heartbeat, self.active_at

    def pulse(self, ledger: Ledger, *, draining: bool) -> Pulse:
        """What the beats tell the host."""
        if self._tool.name is not None:
            return Pulse("tool", self._tool.name, self._tool_until)
        if draining:
            return Pulse("draining")
        return Pulse("thinking" if ledger.in_work else "idle")

    def stuck(self, ledger: Ledger) -> legacy_liveness.Stuck | None:
        """None: let it work. One that has nothing to do is the host's business, however still it is."""
        work = ledger.in_work
        if not work:
            return None
        return legacy_liveness.judge(
            self.now(),
            started_at=self.started_at,
            heartbeat_at=self._heartbeat_at,
            tool=legacy_liveness.ToolState(self._tool.name, self._tool.timeout_ms),
            claims=[legacy_liveness.Claim(each.row.id, each.claimed_at) for each in work if each.marked_at is None],
        )

    def _use(self, tool: Tool) -> None:
        self._tool = tool
        self._tool_until = None if tool.timeout_ms is None else self._clock() + tool.timeout_ms / 1000
