"""When to try again: exponential backoff with jitter, as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    first_s: float = 1.0
    factor: float = 2.0
    most_s: float = 60.0

    def delay_s(self, failures: int, jitter: float) -> float:
        """Seconds before attempt `failures + 1`. `jitter` in [0, 1) spreads it over the upper half of the delay."""
        if failures <= 0:
            return 0.0
        # Beyond 64 doublings the power overflows; the bound was reached long before.
        full = min(self.most_s, self.first_s * self.factor ** min(failures - 1, 64))
        return full * (0.5 + jitter / 2)


START = Backoff(first_s=0.5, most_s=60.0)
"""For a session's container that did not come up or fell over."""

STUCK = Backoff(first_s=5.0, most_s=300.0)
"""For a container that would not end."""

ENGINE = Backoff(first_s=1.0, most_s=15.0)
"""For an engine that did not answer while containers of ours were on it."""

DELIVERY = Backoff(first_s=1.0, most_s=300.0)
"""For a message that a channel could not take for now."""
