"""Which fault comes when: one pure function of a seed, so that a run that failed can be had again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    KILL_HOST = "kill-host"
    """SIGKILL of the host, which is started again at once."""
    STALL_HOST = "stall-host"
    """The host stands still for a while, as in a machine that sleeps: its clocks jump."""
    KILL_RUNNER = "kill-runner"
    """SIGKILL of a container's main process."""
    STALL_RUNNER = "stall-runner"
    """A container's main process stands still for a while."""
    REMOVE_CONTAINER = "remove-container"
    """A container vanishes behind the host's back."""
    CUT_LINK = "cut-link"
    """A runner loses its connection to the host."""
    STOP_SESSION = "stop-session"
    """A person ends a container."""
    FILL_DISK = "fill-disk"
    """The home's disk is full for a while."""
    KILL_ENGINE = "kill-engine"
    """The engine's service dies and is started again."""


@dataclass(frozen=True, slots=True)
class Event:
    at_s: float
    """Seconds after the beginning."""
    fault: Fault
    session: int
    """Whose container, for a fault that is one session's."""
    seconds: float
    """How long it lasts, for a fault that lasts."""


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
        if not waiting:
            waiting = list(faults)
            chance.shuffle(waiting)
        events.append(
            Event(round(at, 3), waiting.pop(), chance.randrange(sessions), round(chance.uniform(0.2, 2.0), 3))
        )
    return events
