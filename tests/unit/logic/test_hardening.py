"""The table of hardening profiles."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.hardening import PROFILES, findings, promises
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


def test_the_doctor_has_a_line_for_each_profile_with_what_is_not_kept() -> None:
    found = findings(
        Capabilities(engine="x", version="1", unrealized={"memory": "none"}, strict_unrealized={"gvisor": "not there"})
    )
    assert [each.subject for each in found] == ["hardening standard", "hardening strict"]
    standard, strict = (each.text for each in found)
    assert standard.endswith("not kept here: memory")
    assert strict.endswith("not kept here: memory, gvisor")
    assert "at most 128 processes, 1 CPUs, 1024 open files, 64 MiB of tmp, 1 MiB of log" in strict
