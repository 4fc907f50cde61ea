"""From samples to the figures that a benchmark prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; 0.0 of no samples."""
    if not samples:
        return 0.0
    ordered = sorted(samples)
    rank = max(0, min(len(ordered) - 1, round(percent / 100 * len(ordered) + 0.5) - 1))
    return ordered[rank]


def summary(samples: Sequence[float], prefix: str = "") -> dict[str, float]:
    """p50, p99, minimum and maximum, in the samples' unit, to two decimals."""
    return {
        f"{prefix}p50_ms": round(statistics.median(samples), 2) if samples else 0.0,
        f"{prefix}p99_ms": round(percentile(samples, 99), 2),
        f"{prefix}min_ms": round(min(samples, default=0.0), 2),
        f"{prefix}max_ms": round(max(samples, default=0.0), 2),
    }
