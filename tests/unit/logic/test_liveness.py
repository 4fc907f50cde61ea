"""Liveness as a pure function, and the clock that stands still while the host does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.liveness import AttentiveClock, Bounds, Signs, State, judge

BOUNDS = Bounds(silent_after_s=30, tool_timeout_s=900, tool_grace_s=30, lifetime_s=None)
ENDS = {State.SILENT, State.EXPIRED}

moments = st.floats(min_value=0, max_value=1e6)
activities = st.sampled_from(["idle", "thinking", "tool", "rate-limited", "draining", "starting", "", "gone mad"])
declared = st.none() | st.floats(allow_nan=False, min_value=-1e12, max_value=1e18)
LOOK_S = 5.0


def signs(**changes: object) -> Signs:
    usual: dict[str, object] = {"beat_at": 1000.0, "since": 1000.0, "activity": "idle", "born_at": 0.0}
    return Signs(**(usual | changes))  # type: ignore[arg-type]


@given(now=moments, age=st.floats(0, 30), busy_s=st.floats(0, 1e6), activity=activities, until=declared)
def test_who_beats_is_never_ended_whatever_it_does_and_however_long(
    now: float, age: float, busy_s: float, activity: str, until: float | None
) -> None:
    found = judge(signs(beat_at=now - age, since=now - busy_s, activity=activity, until=until), now, BOUNDS)
    assert found.state not in ENDS


@given(age=st.floats(30.001, 1e9), activity=activities, until=declared, since=moments)
def test_who_does_not_beat_is_always_ended_whatever_it_said(
    age: float, activity: str, until: float | None, since: float
) -> None:
    found = judge(signs(activity=activity, until=until, since=since), 1000 + age, BOUNDS)
    assert found.state is State.SILENT
    assert "no sign of life" in found.text


@given(now=moments, until=declared)
def test_a_model_that_makes_us_wait_is_left_alone(now: float, until: float | None) -> None:
    assert judge(signs(beat_at=now, since=0.0, activity="rate-limited", until=until), now, BOUNDS).state is State.WAITS


@given(late_s=st.floats(0.1, 1e6))
def test_a_tool_is_believed_for_as_long_as_a_tool_may_take_and_no_longer(late_s: float) -> None:
    until = 1000 + 1e12
    within, beyond = 1000 + 900 + 60, 1000 + 900 + 60 + late_s
    for now, state in ((within, State.ALIVE), (beyond, State.TOOL_OVERDUE)):
        found = judge(signs(beat_at=now, since=1000.0, activity="tool", detail="Bash", until=until), now, BOUNDS)
        assert found.state is state
    assert "Bash" in found.text


def test_a_tool_that_says_nothing_of_its_time_is_its_runners_to_judge() -> None:
    assert judge(signs(beat_at=1e6, activity="tool", detail="Task"), 1e6, BOUNDS).state is State.ALIVE


def test_one_that_is_late_is_called_late_before_it_is_ended() -> None:
    states = [judge(signs(), 1000.0 + age, BOUNDS).state for age in (0, 15, 15.1, 30, 30.1)]
    assert states == [State.ALIVE, State.ALIVE, State.LATE, State.LATE, State.SILENT]


@pytest.mark.parametrize(("lifetime_s", "state"), [(None, State.ALIVE), (999.0, State.EXPIRED), (1000.0, State.ALIVE)])
def test_a_lifetime_ends_what_lives_if_it_is_set(lifetime_s: float | None, state: State) -> None:
    bounds = Bounds(lifetime_s=lifetime_s)
    assert judge(signs(beat_at=1000.0, born_at=0.0), 1000.0, bounds).state is state


class Source:
    def __init__(self) -> None:
        self.now = 50_000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(-1e5, 1e5), max_size=30))
def test_the_attentive_clock_never_goes_back_and_no_step_counts_for_more_than_the_longest(steps: list[float]) -> None:
    source = Source()
    clock = AttentiveClock(source, 10)
    for step in steps:
        before = clock()
        source.now += step
        assert 0 <= clock() - before <= 10.000001


@given(jump=st.sampled_from([3600.0, -3600.0, 86_400.0, 11.0, -1.0]), at=st.integers(1, 30))
def test_a_jump_of_the_clock_or_a_host_that_stood_still_ends_nobody(jump: float, at: int) -> None:
    source = Source()
    clock = AttentiveClock(source, 2 * LOOK_S)
    beat_at = since = clock()
    for look in range(60):
        source.now += LOOK_S
        if look == at:
            source.now += jump
        now = clock()
        # Looked at before the beat that arrived meanwhile is read, as a host that wakes up does.
        assert judge(signs(beat_at=beat_at, since=since), now, BOUNDS).state not in ENDS
        beat_at = clock()


@given(jump=st.sampled_from([0.0, 3600.0, -3600.0]), at=st.integers(0, 10))
def test_a_dead_runner_is_found_within_the_bound_whatever_the_clock_does(jump: float, at: int) -> None:
    source = Source()
    clock = AttentiveClock(source, 2 * LOOK_S)
    beat_at = since = clock()
    for look in range(10):
        source.now += LOOK_S + (jump if look == at else 0.0)
        if judge(signs(beat_at=beat_at, since=since), clock(), BOUNDS).state is State.SILENT:
            break
    else:
        pytest.fail("a runner without beats was not found")
