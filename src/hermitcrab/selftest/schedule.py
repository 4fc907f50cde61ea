"""Which fault comes when: one pure function of a seed, so that a run that failed can be had again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LAST_HOST_FROM = 0.75
"""From this share of the time on, no host is killed: the last one lives long enough to show what it does not let go."""

FARTHEST_JUMP_S = 3600.0


class Fault(StrEnum):
    KILL_HOST = "kill-host"
    """SIGKILL of the host, which is started again at once. The gateway, which lives in it, dies with it."""
    STALL_HOST = "stall-host"
    """The host stands still for a while, as in a machine that sleeps."""
    KILL_RUNNER = "kill-runner"
    """SIGKILL of a container's main process."""
    STALL_RUNNER = "stall-runner"
    """A container's main process stands still for a while."""
    REMOVE_CONTAINER = "remove-container"
    """A container vanishes behind the host's back."""
    CUT_LINK = "cut-link"
    """A runner loses its connection to the host."""
    CUT_GATEWAY = "cut-gateway"
    """All that is open through the gateway breaks off, and it listens anew."""
    STOP_SESSION = "stop-session"
    """A person ends a container."""
    FILL_DISK = "fill-disk"
    """The home's disk is full for a while."""
    JUMP_CLOCK = "jump-clock"
    """The time of day, as the host sees it, jumps by up to an hour, forwards or back."""
    KILL_ENGINE = "kill-engine"
    """SIGKILL of the engine's service, which is started again at once."""


@dataclass(frozen=True, slots=True)
class Event:
    at_s: float
    """Seconds after the beginning."""
    fault: Fault
    session: int
    """Whose container, for a fault that is one session's."""
    seconds: float
    """How long it lasts, for a fault that lasts."""
    clock_s: float
    """How far from the machine's own time the host's is from then on, for a jump of the clock."""


def schedule(seed: int, *, seconds: float, sessions: int, every_s: float, faults: Sequence[Fault]) -> list[Event]:
    """Events in order of time, `every_s` apart on average; each fault comes before any comes again."""
    chance = random.Random(seed)  # noqa: S311  # reproducible, not secret
    events: list[Event] = []
    at = 0.0
    waiting: list[Fault] = []
    while faults:
        at += chance.uniform(0.5, 1.5) * every_s
        if at >= seconds:
            break
        possible = [each for each in faults if each is not Fault.KILL_HOST or at < LAST_HOST_FROM * seconds]
        waiting = [each for each in waiting if each in possible]
        if not waiting:
            waiting = possible
            chance.shuffle(waiting)
        if not waiting:
            break
        events.append(
            Event(
                at_s=round(at, 3),
                fault=waiting.pop(),
                session=chance.randrange(sessions),
                seconds=round(chance.uniform(0.2, 2.0), 3),
                clock_s=round(chance.uniform(-FARTHEST_JUMP_S, FARTHEST_JUMP_S), 3),
            )
        )
    return events
