from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.tail import new_lines

LINES = st.lists(st.integers(0, 1000).map(str), unique=True)


@given(LINES, st.integers(0, 30), st.integers(1, 20))
def test_a_window_over_a_growing_log_gives_each_line_once(log: list[str], grown: int, window: int) -> None:
    cut = max(0, len(log) - grown)
    before, after = log[:cut][-window:], log[-window:]
    new = log[cut:]
    assert new_lines(before, after) == (new if len(new) < window else after[-window:] if new else [])


def test_a_log_that_began_anew_is_all_new() -> None:
    assert new_lines(["old", "lines"], ["new"]) == ["new"]


def test_nothing_new_is_nothing() -> None:
    assert new_lines(["a", "b"], ["a", "b"]) == []
