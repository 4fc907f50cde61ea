"""What a self-test was to do, how far it is, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hermitcrab import __version__
from hermitcrab.selftest.growth import TOLERANCES

DETAILS_AT_MOST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    engine: str
    seed: int
    seconds: float
    """Of faults. 0: none at all."""
    sessions: int
    fault_every_s: float
    """On average."""
    pause_s: float
    """Between two messages of one conversation, on average."""
    messages_at_least: int = 3
    """Of each conversation, before the faults and, whatever the time says, after them."""
    answered_within_s: float = 240.0
    """After the last fault: every container may have to start once more, and backoff may have grown."""
    at_rest_within_s: float = 60.0
    """Until a host that has nothing to do holds no more than before. It closes mailboxes after half a minute."""

    @property
    def has_faults(self) -> bool:
        return self.seconds > 0


Phase = Literal["preparing", "talking", "faults", "last answers", "comparing", "leaving", "looking around"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far it is, for people to see."""

    phase: Phase
    said: int = 0
    heard: int = 0
    faults: int = 0
    last_fault: str = ""
    since_s: float = 0.0
    """How long this phase takes already."""


@dataclass(slots=True)
class Outcome:
    plan: Plan
    messages: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    """Whatever was left: containers, processes, sockets, folders, claims, ends without a certificate."""
    cut_off: list[str] = field(default_factory=list)
    """Containers that do not get to the gateway when all is over."""
    grown: list[str] = field(default_factory=list)
    """What the host holds more of than before, beyond what is tolerated."""
    growth: dict[str, float] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    """Faults for which there was nothing at that moment that they could be done to."""
    impossible: list[str] = field(default_factory=list)
    """Faults that this machine, user or engine does not allow."""
    exit_code: int = 0
    """Of the last host, which was asked to leave."""
    took_s: float = 0.0

    @property
    def details(self) -> list[str]:
        left = [] if self.exit_code == 0 else [f"the host ended with code {self.exit_code} when it was asked to leave"]
        found = [self.lost, self.doubled, self.out_of_order, self.orphans, self.cut_off, self.grown, left]
        return [each for part in found for each in part]

    @property
    def is_good(self) -> bool:
        return not self.details

    def to_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "ok": self.is_good,
            "version": __version__,
            "engine": plan.engine,
            "seed": plan.seed,
            "sessions": plan.sessions,
            "minutes": round(plan.seconds / 60, 2),
            "fault_every_s": plan.fault_every_s if plan.has_faults else None,
            "messages": self.messages,
            "lost": len(self.lost),
            "doubled": len(self.doubled),
            "out_of_order": len(self.out_of_order),
            "orphans": len(self.orphans),
            "cut_off": len(self.cut_off),
            "exit_code": self.exit_code,
            "faults": self.faults,
            "passed_over": self.passed_over,
            "impossible": self.impossible,
            **{
                f"{name}_growth" if name != "memory_mib" else "memory_growth_mib": value
                for name, value in self.growth.items()
            },
            "tolerances": TOLERANCES,
            "took_s": round(self.took_s, 1),
            "details": self.details[:DETAILS_AT_MOST],
        }
