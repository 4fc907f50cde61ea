"""Verdicts on attempts, and the pace: pure, over everything that may be thrown at them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.delivery import (
    PLATFORM_ID_CHARACTERS,
    REASON_CHARACTERS,
    RETRY_AFTER_S_AT_MOST,
    UNEXPECTED_AT_MOST,
    WAITS,
    Later,
    Never,
    Trouble,
    channel_pause_s,
    plain_platform_id,
    plain_reason,
    verdict,
)
from hermitcrab.logic.rate import Bucket, Rate

KINDS = st.sampled_from(["transient", "permanent", "uncertain", "broken", "nobody"])
SECONDS = st.floats(min_value=0, max_value=1e6)


def judge(kind: Any, **changes: Any) -> Later | Never:
    retry_after_s = changes.pop("retry_after_s", None)
    values = {"attempts": 1, "waited_s": 0.0, "give_up_after_s": 3600.0, "idempotent": True, "jitter": 0.5} | changes
    return verdict(Trouble(kind=kind, reason="why", retry_after_s=retry_after_s), **values)


@given(KINDS, st.integers(1, 10_000), SECONDS, SECONDS, st.booleans(), st.floats(0, 1, exclude_max=True), st.floats())
def test_every_verdict_keeps_the_rules(
    kind: Any, attempts: int, waited_s: float, give_up_s: float, idempotent: bool, jitter: float, wish_s: float
) -> None:
    found = judge(
        kind,
        attempts=attempts,
        waited_s=waited_s,
        give_up_after_s=give_up_s,
        idempotent=idempotent,
        jitter=jitter,
        retry_after_s=wish_s,
    )
    assert "why" in found.reason
    if isinstance(found, Later):
        assert 0 <= found.in_s <= RETRY_AFTER_S_AT_MOST
        assert kind != "permanent"
        assert idempotent or kind in {"transient", "nobody"}  # what may have arrived is not sent twice
        assert kind == "nobody" or waited_s < give_up_s
        assert found.reason.startswith(WAITS) == (kind == "nobody")
    else:
        assert kind != "nobody"
        assert kind != "transient" or waited_s >= give_up_s


def test_a_channel_that_breaks_each_time_is_given_up_early() -> None:
    assert isinstance(judge("broken", attempts=UNEXPECTED_AT_MOST - 1), Later)
    assert isinstance(judge("broken", attempts=UNEXPECTED_AT_MOST), Never)


@pytest.mark.parametrize(
    ("wish", "least"), [(30.0, 30.0), (-5.0, 0.5), (float("nan"), 0.5), (1e12, RETRY_AFTER_S_AT_MOST)]
)
def test_a_platform_may_ask_for_time_within_bounds(wish: float, least: float) -> None:
    found = judge("transient", retry_after_s=wish)
    assert isinstance(found, Later)
    assert found.in_s >= least


@given(st.text(alphabet=st.characters()) | st.integers() | st.none() | st.binary())
def test_a_reason_is_one_line_that_a_database_takes(value: Any) -> None:
    reason = plain_reason(value)
    reason.encode()
    assert 0 < len(reason) <= REASON_CHARACTERS
    assert "\n" not in reason
    assert "\0" not in reason


@given(st.text(alphabet=st.characters()) | st.integers() | st.booleans() | st.none() | st.floats())
def test_an_id_is_one_that_a_database_takes_or_none(value: Any) -> None:
    found = plain_platform_id(value)
    if found is not None:
        found.encode()
        assert 0 < len(found) <= PLATFORM_ID_CHARACTERS
        assert found == str(value)


@given(
    st.floats(0.01, 1000),
    st.integers(1, 50),
    st.lists(st.floats(0, 5), min_size=1, max_size=60),
)
def test_no_stretch_of_time_gets_more_than_the_rate_allows(per_s: float, burst: int, pauses: list[float]) -> None:
    rate, now, places = Rate(per_s=per_s, burst=burst), 0.0, []
    bucket = Bucket.full(rate, now)
    for pause in pauses:
        now += pause
        bucket, wait_s = bucket.take(rate, now)
        assert wait_s >= 0
        places.append(now + wait_s)
    assert places == sorted(places)
    for first in range(len(places)):
        for last in range(first, len(places)):
            allowed = burst + (places[last] - places[first]) * per_s
            assert last - first + 1 <= allowed + 1e-6 * (last + 1) + 1e-9 * allowed


def test_a_clock_that_goes_back_gives_nothing() -> None:
    rate = Rate(per_s=1, burst=1)
    bucket, _ = Bucket.full(rate, 100.0).take(rate, 100.0)
    bucket, wait_s = bucket.take(rate, 50.0)
    assert wait_s == 1.0
    assert not bucket.rested(rate, 100.0)
    assert bucket.rested(rate, 103.0)


@pytest.mark.parametrize("kind", ["transient", "permanent", "uncertain", "broken", "nobody"])
@pytest.mark.parametrize("wish_s", [None, 0.0, -5.0, 7.0, 1e9, float("nan"), float("inf")])
def test_a_channel_is_paused_only_as_long_as_its_platform_asks_for_all_of_it(kind: Any, wish_s: float | None) -> None:
    trouble = Trouble(kind=kind, reason="why", retry_after_s=wish_s, limits="channel")
    pause_s = channel_pause_s(trouble)
    assert 0 <= pause_s <= RETRY_AFTER_S_AT_MOST
    assert (pause_s > 0) == (kind == "transient" and wish_s in {7.0, 1e9})
    assert channel_pause_s(Trouble(kind=kind, reason="why", retry_after_s=wish_s)) == 0
