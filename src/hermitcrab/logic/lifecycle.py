"""The life of a session's container: one pure transition function (design section 6).

Every event carries the generation that it speaks of. An event of an older generation changes nothing (law 3); an event
that the phase does not expect changes nothing either, and `step` says so, so that the caller can count it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from hermitcrab.model.ids import Generation


class Phase(StrEnum):
    ABSENT = "absent"
    QUEUED = "queued"
    """Wants to start and waits for its turn or for memory."""
    ADMITTED = "admitted"
    PREPARING = "preparing"
    CREATED = "created"
    STARTING = "starting"
    READY = "ready"
    FROZEN = "frozen"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    """The last start failed; the next one waits for its time."""
    STUCK = "stuck"
    """The engine cannot kill it."""
    QUARANTINED = "quarantined"
    """Refused on purpose until a person changes something."""
    UNKNOWN = "unknown"
    """The engine does not answer: neither spawn nor reap."""


class Signal(StrEnum):
    WANTED = "wanted"
    """A message waits, or somebody asked for the container."""
    CLAIMED = "claimed"
    PREPARE = "prepare"
    CREATED = "created"
    STARTED = "started"
    HELLO = "hello"
    ADOPTED = "adopted"
    """Found running, after a host restart or once the engine answers again; its hello is still to come."""
    QUIET = "quiet"
    THAWED = "thawed"
    DRAIN = "drain"
    STOP = "stop"
    ENDED = "ended"
    """The engine says that the main process has ended, or that there is no such container."""
    START_FAILED = "start-failed"
    """Something between claim and hello failed and was cleaned up."""
    KILL_FAILED = "kill-failed"
    CALLED_OFF = "called-off"
    """Somebody wants it no more before it is up, and what was made of it was cleaned up."""
    REFUSED = "refused"
    ENGINE_LOST = "engine-lost"
    RETRY_DUE = "retry-due"
    RELEASED = "released"
    """A person lifted the quarantine."""


@dataclass(frozen=True, slots=True)
class Life:
    phase: Phase
    generation: Generation


@dataclass(frozen=True, slots=True)
class Step:
    life: Life
    accepted: bool
    """False: the event was late or out of place, and nothing changed."""


LIVE = frozenset(
    {Phase.STARTING, Phase.READY, Phase.FROZEN, Phase.DRAINING, Phase.STOPPING, Phase.STUCK, Phase.UNKNOWN}
)
"""Phases in which a process may run."""

STARTABLE = frozenset({Phase.ABSENT, Phase.QUEUED})
"""Phases from which a claim may be made."""

_BEFORE_HELLO = frozenset({Phase.ADMITTED, Phase.PREPARING, Phase.CREATED, Phase.STARTING})
_WITH_CONTAINER = frozenset({Phase.CREATED, *LIVE})

_EDGES: dict[Signal, dict[Phase, Phase]] = {
    Signal.WANTED: {Phase.ABSENT: Phase.QUEUED},
    Signal.PREPARE: {Phase.ADMITTED: Phase.PREPARING},
    Signal.CREATED: {Phase.PREPARING: Phase.CREATED},
    Signal.STARTED: {Phase.CREATED: Phase.STARTING},
    Signal.HELLO: {Phase.STARTING: Phase.READY},
    Signal.QUIET: {Phase.READY: Phase.FROZEN},
    Signal.THAWED: {Phase.FROZEN: Phase.READY},
    Signal.DRAIN: {Phase.READY: Phase.DRAINING},
    Signal.STOP: dict.fromkeys(
        (Phase.CREATED, Phase.STARTING, Phase.READY, Phase.FROZEN, Phase.DRAINING, Phase.STUCK, Phase.UNKNOWN),
        Phase.STOPPING,
    ),
    Signal.ENDED: dict.fromkeys(_WITH_CONTAINER, Phase.ABSENT),
    Signal.START_FAILED: dict.fromkeys((*_BEFORE_HELLO, Phase.STOPPING), Phase.BACKOFF),
    Signal.CALLED_OFF: dict.fromkeys((Phase.QUEUED, *_BEFORE_HELLO), Phase.ABSENT),
    Signal.KILL_FAILED: {Phase.STOPPING: Phase.STUCK},
    Signal.REFUSED: dict.fromkeys((Phase.ABSENT, Phase.QUEUED, Phase.BACKOFF, *_BEFORE_HELLO), Phase.QUARANTINED),
    Signal.ENGINE_LOST: dict.fromkeys((*_BEFORE_HELLO, *(LIVE - {Phase.UNKNOWN})), Phase.UNKNOWN),
    Signal.RETRY_DUE: {Phase.BACKOFF: Phase.QUEUED},
    Signal.RELEASED: {Phase.QUARANTINED: Phase.ABSENT},
}


def step(life: Life, signal: Signal, generation: Generation) -> Step:
    """What `life` becomes when `signal` of `generation` arrives.

    CLAIMED begins a generation and must be newer than the last; every other signal must be of the present one.
    ADOPTED may also raise the generation to what the engine's label says.
    """
    if signal is Signal.CLAIMED:
        if life.phase in STARTABLE and generation > life.generation:
            return Step(Life(Phase.ADMITTED, generation), accepted=True)
        return Step(life, accepted=False)
    if signal is Signal.ADOPTED:
        if life.phase in {Phase.ABSENT, Phase.QUEUED, Phase.UNKNOWN} and generation >= life.generation:
            return Step(Life(Phase.STARTING, generation), accepted=True)
        return Step(life, accepted=False)
    if generation != life.generation:
        return Step(life, accepted=False)
    after = _EDGES[signal].get(life.phase)
    if after is None:
        return Step(life, accepted=False)
    return Step(replace(life, phase=after), accepted=True)
