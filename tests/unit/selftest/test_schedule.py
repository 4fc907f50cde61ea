"""The schedule of faults and the counting of what came back."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.selftest.schedule import LAST_HOST_FROM, Fault, schedule
from hermitcrab.selftest.tally import Tally


@given(
    seed=st.integers(0, 1 << 32),
    seconds=st.floats(0, 600),
    sessions=st.integers(1, 50),
    every_s=st.floats(0.5, 30),
    faults=st.lists(st.sampled_from(list(Fault)), unique=True),
)
def test_a_schedule_is_reproducible_ordered_and_within_its_time(
    seed: int, seconds: float, sessions: int, every_s: float, faults: list[Fault]
) -> None:
    events = schedule(seed, seconds=seconds, sessions=sessions, every_s=every_s, faults=faults)
    assert events == schedule(seed, seconds=seconds, sessions=sessions, every_s=every_s, faults=faults)
    assert all(one.at_s <= other.at_s for one, other in pairwise(events))
    assert all(0 <= event.at_s <= seconds and 0 <= event.session < sessions for event in events)
    # Each comes before any comes again, for as long as all of them come.
    whole = [event.fault for event in events if event.at_s < LAST_HOST_FROM * seconds]
    for start in range(0, len(whole) - len(faults) + 1, max(1, len(faults))):
        assert set(whole[start : start + len(faults)]) == set(faults)
    assert all(event.fault is not Fault.KILL_HOST for event in events if event.at_s >= LAST_HOST_FROM * seconds)


def test_another_seed_is_another_schedule() -> None:
    made = [schedule(seed, seconds=60, sessions=50, every_s=2, faults=list(Fault)) for seed in (1, 2)]
    assert made[0] != made[1]
    assert len(made[0]) > 20


def test_what_is_lost_doubled_or_late_is_named() -> None:
    tally = Tally(said=5)
    for text in ("Echo: message #1#", "Echo: message #3#\nmessage #2#", "no number", "Echo: message #3#"):
        tally.hear(text)
    assert tally.lost == [4, 5]
    assert tally.doubled == [3]
    assert tally.out_of_order == [2]
    assert not tally.is_complete


@given(st.integers(0, 30).flatmap(lambda count: st.permutations(range(1, count + 1))))
def test_an_order_is_right_only_if_nothing_came_late(numbers: list[int]) -> None:
    tally = Tally(said=len(numbers))
    tally.hear(" ".join(Tally.text(number) for number in numbers))
    assert tally.is_complete
    assert (tally.lost, tally.doubled) == ([], [])
    assert (tally.out_of_order == []) == (numbers == sorted(numbers))
