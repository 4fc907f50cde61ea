"""How fast a platform may be sent to: token buckets, as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """So many a second on average, and up to `burst` at once after a rest."""

    per_s: float
    burst: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What is left of a rate at one moment. Below zero: places that were given for later."""

    tokens: float
    at: float

    @classmethod
    def full(cls, rate: Rate, now: float) -> Bucket:
        return cls(tokens=rate.burst, at=now)

    def take(self, rate: Rate, now: float) -> tuple[Bucket, float]:
        """The bucket with one place taken, and how many seconds from now that place is."""
        left = self._at(rate, now) - 1
        return Bucket(tokens=left, at=max(now, self.at)), max(0.0, -left / rate.per_s)

    def rested(self, rate: Rate, now: float) -> bool:
        """Whether it is as good as a new one."""
        return self._at(rate, now) >= rate.burst

    def _at(self, rate: Rate, now: float) -> float:
        # A clock that went back gives nothing.
        return min(float(rate.burst), self.tokens + max(0.0, now - self.at) * rate.per_s)
