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


GIVEN = "root:1:2\nme:100000:65536\n"


@pytest.mark.parametrize(
    ("subuid", "subgid", "programs", "level", "says"),
    [
        (GIVEN, GIVEN, True, "ok", "me has ids"),
        ("1000:5:9", "1000:5:9", True, "ok", "me has ids"),
        (GIVEN, GIVEN, False, "error", "newuidmap and newgidmap are not installed"),
        ("", GIVEN, True, "error", "/etc/subuid give no ids to me"),
        (GIVEN, "men:1:2", True, "error", "/etc/subgid give no ids to me"),
        ("me:1:0", "me:x:9", True, "error", "/etc/subuid and /etc/subgid give no ids to me"),
        ("me", "me:1", True, "error", "/etc/subuid and /etc/subgid give no ids to me"),
    ],
)
def test_a_user_needs_ids_to_give_to_containers(
    subuid: str, subgid: str, programs: bool, level: str, says: str
) -> None:
    found = preconditions.rootless("me", 1000, subuid=subuid, subgid=subgid, programs=programs)
    assert (found.level, says in found.text) == (level, True)
    assert bool(found.fix) == (level == "error")
