from __future__ import annotations

from pathlib import Path

import pytest

from hermitcrab.cli import outside


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(outside, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(outside, "_CGROUP", tmp_path / "cgroup")
    return tmp_path


def process(machine: Path, pid: int, namespace: str, groups: str) -> None:
    folder = machine / "proc" / str(pid)
    (folder / "ns").mkdir(parents=True)
    (folder / "ns" / "pid").symlink_to(namespace)
    (folder / "cgroup").write_text(groups)


def group(machine: Path, path: str, **files: str) -> None:
    folder = machine / "cgroup" / path
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_limits_of_version_2_are_found(machine: Path) -> None:
    process(machine, 10, "pid:[1]", "0::/\n")
    process(machine, 11, "pid:[2]", "0::/crab/box\n")
    group(machine, "crab/box", memory__max="1073741824", pids__max="256", cpu__max="150000 100000")
    assert outside.limits_of("pid:[2]") == {"memory_bytes": 1073741824.0, "pids": 256.0, "cpus": 1.5}


def test_limits_of_version_1_are_found(machine: Path) -> None:
    process(machine, 11, "pid:[2]", "5:memory:/crab\n4:cpu,cpuacct:/crab\n3:pids:/crab\n1:name=systemd:/x\n0::/\n")
    group(machine, "memory/crab", memory__limit_in_bytes="1073741824")
    group(machine, "pids/crab", pids__max="256")
    group(machine, "cpu,cpuacct/crab", cpu__cfs_quota_us="100000", cpu__cfs_period_us="100000")
    assert outside.limits_of("pid:[2]") == {"memory_bytes": 1073741824.0, "pids": 256.0, "cpus": 1.0}


def test_the_lowest_limit_on_the_way_up_is_the_one_that_is_felt(machine: Path) -> None:
    process(machine, 11, "pid:[2]", "0::/crab/box/inner\n")
    group(machine, "crab/box/inner", memory__max="max", pids__max="100")
    group_files = machine / "cgroup" / "crab"
    (group_files / "memory.max").write_text("2000000\n")
    (group_files / "pids.max").write_text("max\n")
    assert outside.limits_of("pid:[2]") == {"memory_bytes": 2000000.0, "pids": 100.0, "cpus": None}


def test_no_limit_in_either_spelling_is_none(machine: Path) -> None:
    process(machine, 11, "pid:[2]", "5:memory:/crab\n4:cpu:/crab\n0::/\n")
    group(machine, "memory/crab", memory__limit_in_bytes="9223372036854771712")
    group(machine, "cpu/crab", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert outside.limits_of("pid:[2]") == {"memory_bytes": None, "pids": None, "cpus": None}


def test_a_sandbox_that_cannot_be_found_has_no_limits(machine: Path) -> None:
    process(machine, 11, "pid:[2]", "0::/\n")
    (machine / "proc" / "12").mkdir()
    (machine / "proc" / "self").mkdir()
    assert outside.limits_of("pid:[9]") == {}
    assert outside.limits_of(None) == {}


def test_our_own_namespace_is_known_on_this_machine() -> None:
    assert outside.own_pid_namespace() == str(Path("/proc/self/ns/pid").readlink())
    assert outside.limits_of(outside.own_pid_namespace()).keys() == {"memory_bytes", "pids", "cpus"}
