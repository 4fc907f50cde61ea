from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.evidence import Expected, Line, judge

GOOD: dict[str, Any] = {
    "pid": 1,
    "pid_1_cmdline": "/usr/bin/python3 -P -S -m hermitcrab_runner",
    "uid": 1000,
    "gid": 1000,
    "effective_capabilities": 0,
    "bounding": 0,
    "no_new_privs": 1,
    "seccomp": 2,
    "root_read_only": True,
    "root_write_error": "EROFS",
    "host_home_visible": False,
    "processes_visible": 1,
    "pid_namespace": "pid:[2]",
    "host_pid_cmdline": None,
    "tcp_outside": "ENETUNREACH",
    "interfaces": ["lo"],
    "limits": {"open_files": 4096, "core": 0, "memory": None, "pids": None},
}
OUTSIDE: dict[str, float | None] = {"memory_bytes": 2.0**30, "pids": 256.0, "cpus": 1.0}


def expected(**unrealized: str) -> Expected:
    return Expected(
        host_cmdline="python -m hermitcrab.cli.main up",
        host_pid_namespace="pid:[1]",
        memory_bytes=2**30,
        pids=256,
        cpus=1.0,
        open_files=4096,
        unrealized={name.replace("_", "-"): reason for name, reason in unrealized.items()},
    )


def by_name(lines: list[Line]) -> dict[str, Line]:
    named = {line.name: line for line in lines}
    assert len(named) == len(lines)
    return named


def test_a_sound_sandbox_holds_in_every_line() -> None:
    lines = judge(GOOD, OUTSIDE, expected())
    assert [line.name for line in lines if not line.ok] == []
    assert {"pid_1", "uid", "effective_capabilities", "no_new_privs", "seccomp", "root_read_only"} <= set(
        by_name(lines)
    )


@pytest.mark.parametrize(
    ("fact", "value", "line"),
    [
        ("pid_1_cmdline", "/sbin/init", "pid_1"),
        ("pid_1_cmdline", "not_hermitcrab_runner_at_all", "pid_1"),
        ("pid_1_cmdline", None, "pid_1"),
        ("uid", 0, "uid"),
        ("uid", None, "uid"),
        ("effective_capabilities", 1, "effective_capabilities"),
        ("effective_capabilities", False, "effective_capabilities"),
        ("no_new_privs", 0, "no_new_privs"),
        ("seccomp", 0, "seccomp"),
        ("root_read_only", False, "root_read_only"),
        ("host_home_visible", True, "host_home_invisible"),
        ("host_home_visible", None, "host_home_invisible"),
        ("host_pid_cmdline", "python -m hermitcrab.cli.main up", "host_processes_invisible"),
        ("pid_namespace", "pid:[1]", "host_processes_invisible"),
        ("pid_namespace", None, "host_processes_invisible"),
        ("tcp_outside", "connected", "tcp_outside_unreachable"),
        ("tcp_outside", "ETIMEDOUT", "tcp_outside_unreachable"),
        ("tcp_outside", "not tried", "tcp_outside_unreachable"),
        ("limits", {"core": 0}, "limit_open_files"),
        ("limits", {"open_files": 4096}, "limit_core_dumps"),
        ("limits", {"open_files": 1_000_000, "core": 0}, "limit_open_files"),
        ("limits", None, "limit_core_dumps"),
    ],
)
def test_each_weakness_fails_its_line(fact: str, value: object, line: str) -> None:
    assert not by_name(judge({**GOOD, fact: value}, OUTSIDE, expected()))[line].ok


@pytest.mark.parametrize("fact", sorted(set(GOOD) - {"pid", "gid", "bounding", "root_write_error", "interfaces"}))
def test_what_was_not_measured_does_not_hold(fact: str) -> None:
    facts = {name: value for name, value in GOOD.items() if name != fact}
    assert any(not line.ok for line in judge(facts, OUTSIDE, expected()))


@pytest.mark.parametrize("limit", ["memory_bytes", "pids", "cpus"])
def test_a_limit_that_nobody_sees_fails_unless_the_engine_says_that_it_cannot(limit: str) -> None:
    promise = limit.removesuffix("_bytes")
    seen = {**OUTSIDE, limit: None}
    assert not by_name(judge(GOOD, seen, expected()))[f"limit_{promise}"].ok
    honest = by_name(judge(GOOD, seen, expected(**{promise: "no cgroup here"})))[f"limit_{promise}"]
    assert honest.ok
    assert honest.value == "unrealized"
    assert "no cgroup here" in honest.detail


def test_a_limit_seen_inside_counts_where_the_outside_cannot_look() -> None:
    facts = {**GOOD, "limits": {"open_files": 1024, "core": 0, "memory": 2**30, "pids": 256}}
    lines = by_name(judge(facts, {}, expected(cpus="x")))
    assert lines["limit_memory"].ok
    assert lines["limit_pids"].ok


def test_a_limit_on_processes_may_count_the_one_that_holds_the_sandbox_together() -> None:
    assert by_name(judge(GOOD, {**OUTSIDE, "pids": 257.0}, expected()))["limit_pids"].ok
    assert not by_name(judge(GOOD, {**OUTSIDE, "pids": 258.0}, expected()))["limit_pids"].ok


def test_what_isolates_can_never_be_excused_as_unrealized() -> None:
    excuses = expected(seccomp="x", read_only_root="x", network_none="x")
    facts = {**GOOD, "seccomp": 0, "root_read_only": False, "tcp_outside": "connected"}
    failing = {line.name for line in judge(facts, OUTSIDE, excuses) if not line.ok}
    assert failing == {"seccomp", "root_read_only", "tcp_outside_unreachable"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), JSON))
def test_whatever_a_sandbox_answers_is_judged_and_not_believed(facts: dict[str, Any]) -> None:
    lines = judge(facts, {}, expected())
    assert any(not line.ok for line in lines)
