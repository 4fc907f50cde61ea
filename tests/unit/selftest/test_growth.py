"""What counts as growth."""

from __future__ import annotations

from dataclasses import replace

from hermitcrab.selftest.growth import TOLERANCES, Holdings, growth, too_much
from hermitcrab.selftest.outcome import Outcome, Plan

BEFORE = Holdings(memory_mib=80, fds=100, sockets=50, threads=10, tasks=200)
PLAN = Plan(engine="bubblewrap", seed=1, seconds=600, sessions=50, fault_every_s=2, pause_s=2)


def test_less_and_a_little_more_is_no_growth() -> None:
    after = replace(BEFORE, memory_mib=80 + TOLERANCES["memory_mib"], fds=20, tasks=201)
    assert too_much(growth(BEFORE, after)) == []


def test_each_thing_that_grew_is_named_with_what_would_be_tolerated() -> None:
    after = Holdings(memory_mib=180.5, fds=200, sockets=60, threads=30, tasks=300)
    found = too_much(growth(BEFORE, after))
    assert [each.split(" ")[0] for each in found] == ["memory_mib", "fds", "sockets", "threads", "tasks"]
    assert "100.5" in found[0]
    assert "16" in found[0]
    assert too_much({"files": 1}) == ["files grew by 1, which is more than 0"]


def test_anything_that_is_wrong_spoils_the_outcome() -> None:
    assert Outcome(PLAN).is_good
    assert not Outcome(PLAN, exit_code=1).is_good
    for name in ("lost", "doubled", "out_of_order", "orphans", "cut_off", "grown"):
        outcome = Outcome(PLAN)
        getattr(outcome, name).append("something")
        assert not outcome.is_good
        assert outcome.to_json()["details"] == ["something"]


def test_the_json_says_what_was_done_and_what_came_of_it() -> None:
    outcome = Outcome(PLAN, faults={"kill-host": 3}, growth={"memory_mib": 1.5, "fds": -2, "files": 0})
    found = outcome.to_json()
    assert (found["minutes"], found["seed"], found["sessions"], found["fault_every_s"]) == (10, 1, 50, 2)
    assert (found["lost"], found["doubled"], found["out_of_order"], found["orphans"]) == (0, 0, 0, 0)
    assert (found["memory_growth_mib"], found["fds_growth"], found["files_growth"]) == (1.5, -2, 0)
    assert found["faults"] == {"kill-host": 3}
