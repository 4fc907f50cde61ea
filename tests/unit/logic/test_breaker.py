"""A breaker opens for what fails across sessions, lets one try for all, and closes when that works."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hermitcrab.logic.breaker import OPENS_AFTER, PAUSE, Breaker, BreakerState


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for number in range(OPENS_AFTER):
        breaker = breaker.broke(f"s{number}", now, 0.5)
    return breaker


def test_it_opens_after_several_sessions_failed_in_a_row() -> None:
    breaker = Breaker()
    for number in range(OPENS_AFTER - 1):
        breaker = breaker.broke(f"s{number}", 0.0, 0.5)
        assert breaker.admits("other", 0.0)
    assert not breaker.broke("another", 0.0, 0.5).admits("other", 0.0)


def test_one_session_alone_opens_nothing() -> None:
    breaker = Breaker()
    for _ in range(50):
        breaker = breaker.broke("s", 0.0, 0.5)
    assert breaker.state(0.0) is BreakerState.CLOSED


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = Breaker().broke("a", 0.0, 0.5).broke("b", 0.0, 0.5).worked().broke("c", 0.0, 0.5)
    assert breaker.state(0.0) is BreakerState.CLOSED


def test_after_its_pause_one_tries_for_all() -> None:
    breaker = opened()
    assert breaker.until is not None
    later = breaker.until
    assert breaker.state(later - 0.01) is BreakerState.OPEN
    probing = breaker.entered("a", later)
    assert probing.admits("a", later)
    assert not probing.admits("b", later)
    assert probing.worked().admits("b", later)


def test_a_probe_that_fails_opens_it_for_longer() -> None:
    breaker = opened()
    first_pause = breaker.until or 0.0
    again = breaker.entered("a", first_pause).broke("a", first_pause, 0.5)
    assert (again.until or 0.0) - first_pause > first_pause
    assert not again.admits("a", first_pause)


def test_a_probe_that_is_called_off_leaves_the_try_to_the_next() -> None:
    breaker = opened().due(1.0).entered("a", 1.0).left("a")
    assert breaker.admits("b", 1.0)


def test_failures_of_those_that_began_before_it_opened_change_nothing() -> None:
    breaker = opened()
    assert breaker.broke("late", 0.1, 0.5) == breaker


class Tries(RuleBasedStateMachine):
    """Any number of sessions try, fail, work and give up, while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.now = Breaker(), 0.0
        self.trying: dict[str, bool] = {}
        """Who tries, and whether the breaker was closed when it began."""

    @rule(seconds=st.floats(0.1, 100))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(who=st.sampled_from("abcde"))
    def try_it(self, who: str) -> None:
        if who not in self.trying and self.breaker.admits(who, self.now):
            closed = self.breaker.state(self.now) is BreakerState.CLOSED
            self.breaker = self.breaker.entered(who, self.now)
            self.trying[who] = closed

    @rule(who=st.sampled_from("abcde"), how=st.sampled_from(["worked", "broke", "left"]))
    def end(self, who: str, how: str) -> None:
        if who not in self.trying:
            return
        del self.trying[who]
        if how == "worked":
            self.breaker = self.breaker.worked()
        elif how == "broke":
            self.breaker = self.breaker.broke(who, self.now, 0.5)
        self.breaker = self.breaker.left(who)

    @invariant()
    def while_it_is_not_closed_at_most_one_tries_that_began_since(self) -> None:
        if self.breaker.state(self.now) is not BreakerState.CLOSED:
            assert sum(not closed for closed in self.trying.values()) <= 1

    @invariant()
    def it_never_waits_longer_than_its_bound_and_never_without_end(self) -> None:
        if self.breaker.until is not None:
            assert self.breaker.until - self.now <= PAUSE.most_s
        later = self.now + PAUSE.most_s
        assert self.breaker.probe is not None or self.breaker.admits("anybody", later)
        assert self.breaker.probe is None or self.breaker.probe in self.trying


TestTries = Tries.TestCase
