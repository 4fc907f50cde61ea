from __future__ import annotations

import pytest

from hermitcrab.logic import preconditions


@pytest.mark.parametrize(("version", "level"), [((3, 10, 14), "error"), ((3, 11, 0), "ok"), ((3, 14, 1), "ok")])
def test_python_is_new_enough_or_has_its_fix(version: tuple[int, int, int], level: str) -> None:
    finding = preconditions.python(version)
    assert finding.level == level
    assert bool(finding.fix) == (level != "ok")


@pytest.mark.parametrize(("version", "level"), [((3, 40, 1), "warning"), ((3, 51, 2), "warning"), ((3, 51, 3), "ok")])
def test_sqlite_with_the_log_fault_is_warned_of(version: tuple[int, int, int], level: str) -> None:
    assert preconditions.sqlite(version).level == level


@pytest.mark.parametrize(("free", "level"), [(0, "error"), (10**9, "warning"), (10**10, "ok")])
def test_little_space_is_told_before_there_is_none(free: int, level: str) -> None:
    finding = preconditions.disk_space(free, "/home")
    assert finding.level == level
    assert "/home" in finding.text
