"""Turns go round the groups, nobody waits for ever, and nobody is let in for whom there is no room."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hermitcrab.logic.fair_queue import FairQueue, Lack, Room, Ticket


def queue_of(*groups: str) -> FairQueue:
    queue = FairQueue()
    for number, group in enumerate(groups):
        queue.join(Ticket(f"{group}{number}", group, 256))
    return queue


def taken(queue: FairQueue) -> list[str]:
    return [queue.take().key for _ in range(len(queue))]


def test_groups_take_turns_and_within_a_group_the_first_comes_first() -> None:
    assert taken(queue_of("a", "a", "a", "b", "c", "b")) == ["a0", "b3", "c4", "a1", "b5", "a2"]


def test_a_group_with_a_hundred_waiting_does_not_hold_up_one_with_one() -> None:
    queue = queue_of(*["big"] * 100)
    queue.take()
    queue.join(Ticket("small", "small", 256))
    assert queue.places()["small"] == 2
    assert "small" in [queue.take().key for _ in range(2)]


def test_nobody_waits_twice() -> None:
    queue = queue_of("a")
    with pytest.raises(ValueError, match="waits already"):
        queue.join(Ticket("a0", "b", 1))


def test_an_empty_queue_has_nobody_to_let_in() -> None:
    assert FairQueue().first() is None
    with pytest.raises(LookupError):
        FairQueue().take()


@given(st.lists(st.sampled_from("abcd"), max_size=40))
def test_places_are_the_order_in_which_they_are_let_in(groups: list[str]) -> None:
    queue = queue_of(*groups)
    places = queue.places()
    assert taken(queue) == sorted(places, key=lambda key: places[key])
    assert sorted(places.values()) == list(range(1, len(groups) + 1))


class Waiting(RuleBasedStateMachine):
    """Whatever comes and goes: a ticket that is number `i` of its group is let in within `i` rounds of the groups."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue()
        self.waiting: list[Ticket] = []
        self.passed_by: Counter[str] = Counter()
        self.bound: dict[str, int] = {}
        self.made = 0

    @rule(group=st.sampled_from("abc"), memory=st.integers(1, 1000))
    def join(self, group: str, memory: int) -> None:
        self.made += 1
        ticket = Ticket(f"{group}-{self.made}", group, memory)
        ahead = sum(each.group == group for each in self.waiting)
        self.queue.join(ticket)
        self.waiting.append(ticket)
        self.bound[ticket.key] = (ahead + 1) * 3

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(ticket)
        self.queue.leave(ticket)
        self.queue.leave(ticket)

    @precondition(lambda self: self.waiting)
    @rule()
    def take(self) -> None:
        expected = self.queue.first()
        ticket = self.queue.take()
        assert ticket is expected
        assert ticket == next(each for each in self.waiting if each.group == ticket.group)
        self.waiting.remove(ticket)
        for each in self.waiting:
            self.passed_by[each.key] += 1

    @invariant()
    def nobody_is_lost_and_nobody_starves(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert set(self.queue.places()) == {each.key for each in self.waiting}
        assert all(self.passed_by[each.key] < self.bound[each.key] for each in self.waiting)


TestWaiting = Waiting.TestCase


def room(**values: int | None) -> Room:
    plain = {"starting": 0, "starts_at_most": 4, "running": 3, "running_at_most": 10, "reserved_mb": 768}
    return Room(**{**plain, "budget_mb": 1024, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("there", "lack"),
    [
        (room(), None),
        (room(reserved_mb=769), Lack.MEMORY),
        (room(running=10), Lack.PLACE),
        (room(starting=4), Lack.TURN),
        (room(reserved_mb=10**6, budget_mb=None), None),
        (room(running=0, reserved_mb=0, budget_mb=100), None),
    ],
    ids=["fits", "no memory", "no place", "too many start", "no bound", "one alone always fits"],
)
def test_what_is_missing_is_named(there: Room, lack: Lack | None) -> None:
    assert there.lack(256) is lack
