"""Moments as people write them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import BadInputError
from hermitcrab.logic.moment import parse_moment

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("30s", "2026-11-24T11:59:30+00:00"),
        (" 2h ", "2026-11-24T10:00:00+00:00"),
        ("7d", "2026-11-17T12:00:00+00:00"),
        ("2026-11-01", "2026-11-01T00:00:00+00:00"),
        ("2026-11-01T10:00:00+02:00", "2026-11-01T08:00:00+00:00"),
        ("2026-11-01T10:00:00Z", "2026-11-01T10:00:00+00:00"),
    ],
)
def test_ago_and_dates_are_understood(text: str, meant: str) -> None:
    assert parse_moment(text, NOW).isoformat() == meant


@given(st.text() | st.from_regex(r"[0-9]{1,9}[smhdw]", fullmatch=True))
def test_anything_is_a_moment_or_refused(text: str) -> None:
    with suppress(BadInputError):
        assert parse_moment(text, NOW).tzinfo is UTC
