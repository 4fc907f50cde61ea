"""When a message is set aside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.quarantine import TRIES_AT_MOST, reason_to_quarantine


@pytest.mark.parametrize(
    ("tries", "ends", "most", "reason"),
    [
        (0, {}, 3, None),
        (2, {"exited": 2}, 3, None),
        (3, {"exited": 3}, 3, "3 containers ended the same way (exited) while they worked on it"),
        (4, {"exited": 2, "hung": 2}, 3, None),
        (5, {"exited": 2, "hung": 2}, 3, "5 containers ended while they worked on it"),
        (5, {}, 3, "5 containers ended while they worked on it"),
        (6, {"hung": 6}, 10, None),
        (10, {"hung": 9, "exited": 1}, 10, "10 containers ended while they worked on it"),
        (1, {"hung": 1}, 1, "1 container ended the same way (hung) while they worked on it"),
    ],
)
def test_the_same_end_counts_sooner_than_different_ones(
    tries: int, ends: dict[str, int], most: int, reason: str | None
) -> None:
    assert reason_to_quarantine(tries, ends, same_way_at_most=most) == reason


@given(
    ends=st.dictionaries(st.sampled_from(["exited", "hung", "signalled"]), st.integers(1, 20)), most=st.integers(1, 20)
)
def test_no_message_costs_more_containers_than_the_bound(ends: dict[str, int], most: int) -> None:
    tries = sum(ends.values())
    if tries >= max(most, TRIES_AT_MOST):
        assert reason_to_quarantine(tries, ends, same_way_at_most=most) is not None
