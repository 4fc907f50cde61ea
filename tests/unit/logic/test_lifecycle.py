"""Every edge of the lifecycle, and that late or misplaced events change nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.lifecycle import LIVE, Life, Phase, Signal, step
from hermitcrab.model.ids import Generation

EDGES = [
    (Phase.ABSENT, Signal.WANTED, Phase.QUEUED),
    (Phase.ADMITTED, Signal.PREPARE, Phase.PREPARING),
    (Phase.PREPARING, Signal.CREATED, Phase.CREATED),
    (Phase.CREATED, Signal.STARTED, Phase.STARTING),
    (Phase.STARTING, Signal.HELLO, Phase.READY),
    (Phase.READY, Signal.QUIET, Phase.FROZEN),
    (Phase.FROZEN, Signal.THAWED, Phase.READY),
    (Phase.READY, Signal.DRAIN, Phase.DRAINING),
    *[
        (phase, Signal.STOP, Phase.STOPPING)
        for phase in (
            Phase.CREATED,
            Phase.STARTING,
            Phase.READY,
            Phase.FROZEN,
            Phase.DRAINING,
            Phase.STUCK,
            Phase.UNKNOWN,
        )
    ],
    *[
        (phase, Signal.CALLED_OFF, Phase.ABSENT)
        for phase in (Phase.QUEUED, Phase.ADMITTED, Phase.PREPARING, Phase.CREATED, Phase.STARTING)
    ],
    *[(phase, Signal.ENDED, Phase.ABSENT) for phase in (*sorted(LIVE), Phase.CREATED)],
    *[
        (phase, Signal.START_FAILED, Phase.BACKOFF)
        for phase in (Phase.ADMITTED, Phase.PREPARING, Phase.CREATED, Phase.STARTING, Phase.STOPPING)
    ],
    (Phase.STOPPING, Signal.KILL_FAILED, Phase.STUCK),
    *[
        (phase, Signal.REFUSED, Phase.QUARANTINED)
        for phase in (
            Phase.ABSENT,
            Phase.QUEUED,
            Phase.BACKOFF,
            Phase.ADMITTED,
            Phase.PREPARING,
            Phase.CREATED,
            Phase.STARTING,
        )
    ],
    *[
        (phase, Signal.ENGINE_LOST, Phase.UNKNOWN)
        for phase in (Phase.ADMITTED, Phase.PREPARING, Phase.CREATED, *sorted(LIVE - {Phase.UNKNOWN}))
    ],
    (Phase.BACKOFF, Signal.RETRY_DUE, Phase.QUEUED),
    (Phase.QUARANTINED, Signal.RELEASED, Phase.ABSENT),
]
GENERATION = Generation(7)


@pytest.mark.parametrize(("before", "signal", "after"), EDGES)
def test_an_edge_leads_where_the_design_says(before: Phase, signal: Signal, after: Phase) -> None:
    result = step(Life(before, GENERATION), signal, GENERATION)
    assert result.accepted
    assert result.life == Life(after, GENERATION)


def test_no_other_edge_exists() -> None:
    known = {(before, signal) for before, signal, _ in EDGES}
    for phase in Phase:
        for signal in Signal:
            if signal in {Signal.CLAIMED, Signal.ADOPTED} or (phase, signal) in known:
                continue
            result = step(Life(phase, GENERATION), signal, GENERATION)
            assert not result.accepted, (phase, signal)
            assert result.life == Life(phase, GENERATION)


@given(st.sampled_from(Phase), st.sampled_from(Signal), st.integers(0, 6))
def test_an_event_of_an_older_generation_does_nothing(phase: Phase, signal: Signal, older: int) -> None:
    result = step(Life(phase, GENERATION), signal, Generation(older))
    assert not result.accepted
    assert result.life == Life(phase, GENERATION)


@given(st.sampled_from(Phase), st.integers(0, 20))
def test_a_claim_needs_an_absent_container_and_a_newer_generation(phase: Phase, generation: int) -> None:
    result = step(Life(phase, GENERATION), Signal.CLAIMED, Generation(generation))
    assert result.accepted == (phase in {Phase.ABSENT, Phase.QUEUED} and generation > GENERATION)


@given(st.lists(st.tuples(st.sampled_from(Signal), st.integers(0, 4)), max_size=60))
def test_the_generation_never_goes_back(events: list[tuple[Signal, int]]) -> None:
    life = Life(Phase.ABSENT, Generation(0))
    for signal, generation in events:
        after = step(life, signal, Generation(generation)).life
        assert after.generation >= life.generation
        life = after


def test_an_unknown_container_is_neither_started_nor_given_up() -> None:
    unknown = Life(Phase.UNKNOWN, GENERATION)
    assert not step(unknown, Signal.CLAIMED, Generation(8)).accepted
    assert not step(unknown, Signal.WANTED, GENERATION).accepted
    assert step(unknown, Signal.ADOPTED, GENERATION).life.phase is Phase.STARTING
