"""Whether to try again what failed for others just now: one breaker for each thing that starts depend on. Pure.

Closed, everybody tries. After it failed for several sessions in a row it opens: nobody tries for a while. Then it is
half open: one tries for all. If that works it closes; if not, it opens for longer. A single session that fails over and
over opens nothing: it has its own backoff, and may be the only one that is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from hermitcrab.logic.retry import Backoff

OPENS_AFTER = 3
"""Sessions that failed in a row with nobody succeeding in between."""

PAUSE = Backoff(first_s=2.0, most_s=60.0)


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class Breaker:
    failed: frozenset[str] = frozenset()
    """Who failed since the last success."""
    opened: int = 0
    """How often it opened since then."""
    until: float | None = None
    """Nobody tries before that; None while it is closed."""
    probe: str | None = None
    """Who tries for all."""

    def state(self, now: float) -> BreakerState:
        if self.until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.until else BreakerState.HALF_OPEN

    def admits(self, who: str, now: float) -> bool:
        match self.state(now):
            case BreakerState.CLOSED:
                return True
            case BreakerState.OPEN:
                return False
            case BreakerState.HALF_OPEN:
                return self.probe in {None, who}

    def entered(self, who: str, now: float) -> Breaker:
        """It was admitted, and tries."""
        return replace(self, probe=who) if self.state(now) is BreakerState.HALF_OPEN else self

    def left(self, who: str) -> Breaker:
        """It tried, and nothing came out about this dependency."""
        return replace(self, probe=None) if self.probe == who else self

    def worked(self) -> Breaker:
        return Breaker()

    def broke(self, who: str, now: float, jitter: float) -> Breaker:
        """It failed for that one. What began before it opened changes nothing any more."""
        if self.until is not None and self.probe != who:
            return self
        failed = self.failed | {who}
        if self.until is None and len(failed) < OPENS_AFTER:
            return replace(self, failed=failed)
        opened = self.opened + 1
        return Breaker(failed=failed, opened=opened, until=now + PAUSE.delay_s(opened, jitter))

    def due(self, now: float) -> Breaker:
        """There is reason to believe that it works again: the next one may try now."""
        return replace(self, until=min(self.until, now)) if self.until is not None else self
