"""The rules for foreign v2 runners, beside those of the host that they were written for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab_runner.legacy_liveness import CEILING_S, Claim, Stuck, ToolState, judge, retry_after_s

ages = st.floats(0, 1e7)
tools = st.sampled_from([None, "Bash", "Read"])
timeouts = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.booleans() | st.just(1e12)

NOW = 1e8


def verdict(
    heartbeat_age: float | None,
    *claim_ages: float | None,
    tool: str | None = None,
    timeout_ms: float | None = None,
    started_age: float = 1e7,
) -> Stuck | None:
    return judge(
        NOW,
        started_at=NOW - started_age,
        heartbeat_at=None if heartbeat_age is None else NOW - heartbeat_age,
        tool=ToolState(tool, timeout_ms),
        claims=[
            Claim(f"m{number}", None if age is None else NOW - age) for number, age in enumerate(claim_ages, start=1)
        ],
    )


def reason(*arguments: float | None, **named: object) -> str | None:
    found = verdict(*arguments, **named)  # type: ignore[arg-type]
    return found and found.reason


@pytest.mark.parametrize(
    ("heartbeat", "claims", "tool", "timeout_ms", "expected"),
    [
        (1800, (), None, None, None),
        (1801, (), None, None, "absolute-ceiling"),
        (None, (), None, None, None),
        (3000, (), "Bash", 3_100_000, None),
        (3000, (), "Read", 3_100_000, "absolute-ceiling"),
        (3101, (), "Bash", 3_100_000, "absolute-ceiling"),
        (None, (60,), None, None, None),
        (None, (61,), None, None, "claim-stuck"),
        (62, (61,), None, None, "claim-stuck"),
        (61, (61,), None, None, "claim-stuck"),
        (60, (61,), None, None, None),
        (None, (61,), "Bash", 120_000, None),
        (None, (121,), "Bash", 120_000, "claim-stuck"),
        (None, (None,), None, None, None),
        (50, (None, 40, 70), None, None, None),
        (90, (None, 40, 70), None, None, "claim-stuck"),
    ],
)
def test_the_rules_are_those_of_the_host_that_these_runners_know(
    heartbeat: float | None, claims: tuple[float | None, ...], tool: str | None, timeout_ms: float, expected: str | None
) -> None:
    assert reason(heartbeat, *claims, tool=tool, timeout_ms=timeout_ms) == expected


def test_the_first_stuck_claim_is_named() -> None:
    found = verdict(None, 30, 70, 80)
    assert found is not None
    assert found.message_id == "m2"


@given(age=st.floats(0, CEILING_S - 1), claim_age=ages, tool=tools, timeout_ms=timeouts)
def test_who_shows_progress_after_it_took_a_message_is_left_alone(
    age: float, claim_age: float, tool: str | None, timeout_ms: float | None
) -> None:
    assert reason(age, age + 1 + claim_age, tool=tool, timeout_ms=timeout_ms) is None


@given(beyond=st.floats(0.001, 1e6), tool=tools, timeout_ms=timeouts)
def test_no_progress_always_ends_within_an_hour_whatever_a_tool_declares(
    beyond: float, tool: str | None, timeout_ms: float | None
) -> None:
    assert reason(3600 + beyond, tool=tool, timeout_ms=timeout_ms) == "absolute-ceiling"
    assert reason(None, 3600 + beyond, tool=tool, timeout_ms=timeout_ms) == "claim-stuck"


@given(ahead=st.floats(6, 1e12))
def test_a_heartbeat_from_the_future_counts_as_none_since_the_start(ahead: float) -> None:
    assert reason(-ahead, 61, started_age=100) == "claim-stuck"
    assert reason(-ahead, started_age=1801) == "absolute-ceiling"
    assert reason(-ahead, started_age=1000) is None


@pytest.mark.parametrize("timeout_ms", [math.nan, -1.0, True, "9" * 9])
def test_a_declared_time_that_is_none_extends_nothing(timeout_ms: float) -> None:
    assert reason(None, 61, tool="Bash", timeout_ms=timeout_ms) == "claim-stuck"


def test_what_is_given_back_waits_longer_each_time_and_then_fails() -> None:
    assert [retry_after_s(tries) for tries in range(7)] == [5, 10, 20, 40, 80, None, None]
