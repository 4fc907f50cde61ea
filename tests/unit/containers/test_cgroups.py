"""Both layouts of control groups: version 2 in a tree of ordinary files, version 1 also for real where this machine has it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hermitcrab.containers.cgroups import Cgroups
from hermitcrab.containers.control_group import CgroupFiles, Group, GroupVersion1
from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import Limits
from hermitcrab.model.ids import InstallationId

INSTALLATION = InstallationId("t3st")
LIMITS = Limits(memory_bytes=64 * 1024 * 1024, pids=10, cpus=0.5)

V2_FILES = {
    "memory": {"memory.max": "max", "memory.swap.max": "max", "memory.current": "0", "memory.events": "oom_kill 0\n",
               "memory.stat": "inactive_file 0\n"},
    "pids": {"pids.max": "max", "pids.current": "0"},
    "cpu": {"cpu.max": "max 100000"},
}  # fmt: skip


class FakeV2(CgroupFiles):
    """A version 2 tree: a new folder has the files of the controllers that its parent enabled."""

    def __init__(self, *, freezes: bool = True) -> None:
        self.lives: Callable[[], bool] = lambda: False
        self.freezes = freezes

    def make(self, folder: Path) -> None:
        folder.mkdir()
        enabled = (folder.parent / "cgroup.subtree_control").read_text().split()
        files = {"cgroup.controllers": " ".join(enabled), "cgroup.subtree_control": "", "cgroup.procs": "",
                 "cgroup.freeze": "0", "cgroup.events": "populated 0\nfrozen 0\n", "cpu.stat": "usage_usec 0\n"}  # fmt: skip
        for controller in enabled:
            files |= V2_FILES[controller]
        for name, text in files.items():
            (folder / name).write_text(text)

    def remove(self, folder: Path) -> None:
        if self.lives():
            raise OSError(16, "Device or resource busy")
        if not folder.exists():
            raise FileNotFoundError
        shutil.rmtree(folder)

    def write(self, file: Path, text: str) -> None:
        if not file.exists():
            raise FileNotFoundError(2, "No such file or directory", str(file))
        if file.name == "cgroup.subtree_control":
            text = " ".join(sorted({*file.read_text().split(), *text.replace("+", "").split()}))
        file.write_text(text)
        if file.name == "cgroup.freeze" and self.freezes:
            (file.parent / "cgroup.events").write_text(f"populated 1\nfrozen {text}\n")


def version_2(
    tmp_path: Path, *, controllers: str = "cpuset cpu io memory pids", files: FakeV2 | None = None
) -> Cgroups:
    root = tmp_path / "cgroup"
    if not root.exists():
        root.mkdir()
        (root / "cgroup.controllers").write_text(controllers)
        (root / "cgroup.subtree_control").write_text("")
    found = Cgroups(INSTALLATION, superuser=True, root=root, files=files or FakeV2())
    found.open()
    return found


def made(cgroups: Cgroups, name: str = "one") -> Group:
    group = cgroups.group(name)
    assert group is not None
    group.make(LIMITS)
    return group


def test_version_2_limits_are_written_and_swap_gives_nothing_more(tmp_path: Path) -> None:
    cgroups = version_2(tmp_path)
    made(cgroups)
    folder = tmp_path / "cgroup/hermitcrab/t3st/one"
    assert cgroups.unrealized == {}
    assert {name: (folder / name).read_text() for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max")} == {
        "memory.max": str(64 * 1024 * 1024),
        "memory.swap.max": "0",
        "pids.max": "11",
        "cpu.max": "50000 100000",
    }


def test_opening_twice_changes_nothing(tmp_path: Path) -> None:
    version_2(tmp_path)
    assert version_2(tmp_path).version == 2


def test_a_folder_that_another_host_makes_at_the_same_moment_is_used(tmp_path: Path) -> None:
    class Slower(FakeV2):
        def make(self, folder: Path) -> None:
            super().make(folder)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))

    cgroups = version_2(tmp_path, files=Slower())
    assert (cgroups.version, cgroups.unrealized) == (2, {})


def test_a_subtree_without_containers_is_tidied_away_and_made_again(tmp_path: Path) -> None:
    cgroups = version_2(tmp_path)
    cgroups.close()
    assert not (tmp_path / "cgroup/hermitcrab/t3st").exists()
    cgroups.ensure()
    assert made(cgroups).exists()


def test_a_controller_that_is_not_delegated_is_said(tmp_path: Path) -> None:
    cgroups = version_2(tmp_path, controllers="memory pids")
    group = made(cgroups)
    assert list(cgroups.unrealized) == ["cpus"]
    assert group.exists()


def test_version_2_joins_by_its_one_file(tmp_path: Path) -> None:
    assert made(version_2(tmp_path)).entrances() == [str(tmp_path / "cgroup/hermitcrab/t3st/one/cgroup.procs")]


def test_version_2_freezes_and_thaws(tmp_path: Path) -> None:
    group = made(version_2(tmp_path))
    assert not group.frozen()
    group.freeze()
    assert group.frozen()
    group.thaw()
    assert not group.frozen()


def test_what_does_not_freeze_is_thawed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermitcrab.containers.control_group._SETTLE_S", 0.0)
    group = made(version_2(tmp_path, files=FakeV2(freezes=False)))
    with pytest.raises(EngineError):
        group.freeze()
    assert not group.frozen()


def test_version_2_is_measured(tmp_path: Path) -> None:
    group = made(version_2(tmp_path))
    folder = tmp_path / "cgroup/hermitcrab/t3st/one"
    (folder / "memory.current").write_text("5000\n")
    (folder / "memory.stat").write_text("anon 1\ninactive_file 1000\n")
    (folder / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (folder / "pids.current").write_text("4\n")
    (folder / "memory.events").write_text("oom 3\noom_kill 2\n")
    usage = group.usage()
    assert (usage.memory_bytes, usage.cpu_s, usage.pids) == (4000, 2.5, 3)
    assert group.out_of_memory_kills() == 2


def test_a_removed_group_is_unknown_not_an_error(tmp_path: Path) -> None:
    group = made(version_2(tmp_path))
    assert group.remove()
    assert group.remove()
    assert not group.exists()
    assert group.out_of_memory_kills() == 0
    assert group.usage().memory_bytes is None


def test_thawing_a_group_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    group = made(version_2(tmp_path))
    assert group.remove()
    group.thaw()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV], ids=["before it was opened", "after"])
def test_a_group_that_goes_while_it_is_thawed_is_thawed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    files = FakeV2()
    group = made(version_2(tmp_path, files=files))

    def write(file: Path, text: str) -> None:
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(files, "write", write)
    group.thaw()


def test_a_group_that_cannot_be_thawed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = FakeV2()
    group = made(version_2(tmp_path, files=files))

    def write(file: Path, text: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

    monkeypatch.setattr(files, "write", write)
    with pytest.raises(PermissionError):
        group.thaw()


def test_a_group_of_an_earlier_container_is_replaced(tmp_path: Path) -> None:
    cgroups = version_2(tmp_path)
    made(cgroups)
    folder = tmp_path / "cgroup/hermitcrab/t3st/one"
    (folder / "memory.events").write_text("oom_kill 1\n")
    assert made(cgroups).out_of_memory_kills() == 0


def test_a_group_with_living_processes_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermitcrab.containers.control_group._LET_GO_S", 0.0)
    files = FakeV2()
    cgroups = version_2(tmp_path, files=files)
    group = made(cgroups)
    files.lives = lambda: True
    with pytest.raises(EngineError) as caught:
        group.make(LIMITS)
    assert caught.value.failure is Failure.UNKNOWN
    assert not group.remove()


def test_who_is_left_in_a_group_is_killed_when_it_is_removed(tmp_path: Path) -> None:
    """In version 2; see below for version 1."""
    files = FakeV2()
    group = made(version_2(tmp_path, files=files))
    with subprocess.Popen(["sleep", "30"]) as left, subprocess.Popen(["sleep", "30"]) as bystander:
        (tmp_path / "cgroup/hermitcrab/t3st/one/cgroup.procs").write_text(f"{left.pid}\n")
        files.lives = lambda: left.poll() is None
        assert group.remove()
        assert left.returncode == -signal.SIGKILL
        assert bystander.poll() is None
        bystander.kill()


def test_an_ordinary_user_uses_the_delegated_group_above_its_own(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    service = root / "user.slice/hermitcrab.service"
    (service / "host").mkdir(parents=True)
    (root / "cgroup.controllers").write_text("memory pids cpu")
    (service / "cgroup.controllers").write_text("memory pids")
    (service / "cgroup.subtree_control").write_text("")
    own = tmp_path / "own"
    own.write_text("0::/user.slice/hermitcrab.service/host\n")
    cgroups = Cgroups(INSTALLATION, superuser=False, root=root, own=own, files=FakeV2())
    cgroups.open()
    assert cgroups.parents == {"": service / "hermitcrab/t3st"}
    assert list(cgroups.unrealized) == ["cpus"]


def test_without_delegation_everything_is_unrealized(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").write_text("memory pids cpu")
    own = tmp_path / "own"
    own.write_text("0::/\n")
    cgroups = Cgroups(INSTALLATION, superuser=False, root=root, own=own, files=FakeV2())
    cgroups.open()
    assert cgroups.group("one") is None
    assert sorted(cgroups.unrealized) == ["cpus", "freeze", "memory", "pids"]


def test_a_machine_without_control_groups_says_so_for_each_promise(tmp_path: Path) -> None:
    cgroups = Cgroups(INSTALLATION, superuser=True, root=tmp_path / "none")
    cgroups.open()
    assert cgroups.group("one") is None
    assert sorted(cgroups.unrealized) == ["cpus", "freeze", "memory", "pids"]


@pytest.fixture
def version_1() -> Iterator[Cgroups]:
    cgroups = Cgroups(InstallationId(f"t3st-{os.getpid()}"), superuser=True)
    if os.geteuid() != 0 or not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists():
        pytest.skip("no writable control groups of version 1 here")
    cgroups.open()
    yield cgroups
    for parent in cgroups.parents.values():
        parent.rmdir()


def test_version_1_limits_freezes_and_counts_a_real_process(version_1: Cgroups) -> None:
    if version_1.unrealized:
        pytest.skip(str(version_1.unrealized))
    group = made(version_1)
    joined = ["/bin/sh", "-c", 'for each; do echo 0 > "$each"; done; echo in; read x', "sh", *group.entrances()]
    with subprocess.Popen(joined, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        assert Path(version_1.parents["memory"], "one/memory.limit_in_bytes").read_text() == f"{64 * 1024 * 1024}\n"
        assert Path(version_1.parents["cpu"], "one/cpu.cfs_quota_us").read_text() == "50000\n"
        group.freeze()
        assert group.frozen()
        assert group.usage().memory_bytes is not None
        group.thaw()
        assert not group.frozen()
        process.stdin.close()
    assert group.out_of_memory_kills() == 0
    assert group.remove()


def test_version_1_lets_go_and_freezes_again_what_would_not_stand_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hermitcrab.containers.control_group._SETTLE_S", 0.0)
    written: list[str] = []

    class Stubborn(CgroupFiles):
        def write(self, file: Path, text: str) -> None:
            written.append(text)
            frozen = "FREEZING" if text == "FROZEN" and written.count("FROZEN") == 1 else text
            file.write_text(frozen)

    group = GroupVersion1({"freezer": tmp_path}, Stubborn())
    group.freeze()
    assert group.frozen()
    assert written == ["FROZEN", "THAWED", "FROZEN"]


def test_version_1_kills_who_is_left_in_a_group_also_a_frozen_one(version_1: Cgroups) -> None:
    if version_1.unrealized:
        pytest.skip(str(version_1.unrealized))
    group = made(version_1)
    # One process: a shell whose child was killed before it could end by itself with what came of that.
    joined = ["/bin/sh", "-c", 'for each; do echo 0 > "$each"; done; echo in; exec sleep 30', "sh", *group.entrances()]
    with subprocess.Popen(joined, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        group.freeze()
        assert group.remove()
        assert process.wait() == -signal.SIGKILL
    assert not group.exists()


def test_version_1_takes_a_group_that_goes_while_it_is_thawed_as_thawed(version_1: Cgroups) -> None:
    if version_1.unrealized:
        pytest.skip(str(version_1.unrealized))
    state = Path(version_1.parents["freezer"], "one/freezer.state")

    class Late(CgroupFiles):
        """Opens the file, as the real ones do, and has the group removed before it writes."""

        def write(self, file: Path, text: str) -> None:
            assert file == state
            descriptor = os.open(file, os.O_WRONLY)
            file.parent.rmdir()
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)

    made(version_1)
    GroupVersion1({"freezer": state.parent}, Late()).thaw()
    group = version_1.group("one")
    assert group is not None
    assert group.remove()
