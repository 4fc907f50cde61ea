"""The table of hardening profiles, and the filter of `strict` for engines that take one as JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic import seccomp
from hermitcrab.logic.hardening import PROFILES, findings, promises
from hermitcrab.logic.seccomp_profile import ALLOWED, strict_profile
from hermitcrab.model.container import Capabilities, Limits

limits = st.builds(
    Limits,
    memory_bytes=st.integers(1, 2**40),
    pids=st.integers(1, 65_536),
    cpus=st.floats(0.01, 1024),
    open_files=st.integers(1, 10**6),
    tmp_bytes=st.integers(1, 2**40),
    log_bytes=st.integers(1, 2**40),
)


def test_standard_leaves_every_limit_as_it_was_set() -> None:
    assert PROFILES["standard"].bounded(Limits()) == Limits()


@given(limits)
def test_strict_gives_no_more_than_was_set_and_no_more_than_its_own(given_limits: Limits) -> None:
    bounded = PROFILES["strict"].bounded(given_limits)
    for name in ("memory_bytes", "pids", "cpus", "open_files", "tmp_bytes", "log_bytes"):
        assert 0 < getattr(bounded, name) <= getattr(given_limits, name)
        most = PROFILES["strict"].limits_at_most.get(name)
        assert most is None or getattr(bounded, name) <= most
    assert PROFILES["strict"].bounded(bounded) == bounded


def test_strict_is_nowhere_more_than_standard() -> None:
    standard, strict = PROFILES["standard"], PROFILES["strict"]
    for right in ("runs_programs_in_memory", "debuggers_work", "extra_mounts_are_writable"):
        assert getattr(standard, right) >= getattr(strict, right)
    assert promises(standard).keys() == promises(strict).keys()


def test_what_strict_lacks_counts_only_for_strict() -> None:
    found = Capabilities(
        engine="x", version="1", unrealized={"memory": "none"}, strict_unrealized={"gvisor": "not there"}
    )
    assert found.unrealized_for("standard") == {"memory": "none"}
    assert found.unrealized_for("strict") == {"memory": "none", "gvisor": "not there"}


@pytest.mark.parametrize("machine", sorted(seccomp.MACHINES))
def test_the_strict_profile_allows_nothing_that_the_filter_of_bubblewrap_refuses(machine: str) -> None:
    profile = strict_profile(machine)
    assert profile is not None
    assert json.loads(json.dumps(profile)) == profile
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert len(profile["architectures"]) == 1
    assert not ALLOWED & seccomp.denied_calls(machine, "strict").keys()
    whole = {name for rule in profile["syscalls"] for name in rule["names"] if "args" not in rule}
    judged = {"clone", "unshare", "personality", "socket", "socketpair"}
    assert not whole & judged
    assert {name for rule in profile["syscalls"] for name in rule["names"] if "args" in rule} == judged


def test_a_machine_without_a_table_has_no_strict_profile() -> None:
    assert strict_profile("riscv64") is None


def test_the_doctor_has_a_line_for_each_profile_with_what_is_not_kept() -> None:
    found = findings(
        Capabilities(engine="x", version="1", unrealized={"memory": "none"}, strict_unrealized={"gvisor": "not there"})
    )
    assert [each.subject for each in found] == ["hardening standard", "hardening strict"]
    standard, strict = (each.text for each in found)
    assert standard.endswith("not kept here: memory")
    assert strict.endswith("not kept here: memory, gvisor")
    assert "at most 128 processes, 1 CPUs, 1024 open files, 64 MiB of tmp, 1 MiB of log" in strict
