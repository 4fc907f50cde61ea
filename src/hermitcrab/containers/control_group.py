"""The control group of one bubblewrap container, in both layouts: how it is limited, frozen, measured and killed.

Made by `cgroups.py`, which knows what this machine allows. Everything here blocks for a moment.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from hermitcrab.containers.small_files import read_whole
from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import ContainerStats, Limits

SUPERVISORS = 1
"""Processes of ours in each group, which the limit must not take from the agent: bubblewrap's own."""

_PERIOD_US = 100_000
_SETTLE_S = 2.0
"""How long the kernel may take to freeze a group."""
_LET_GO_S = 10.0
"""How long it may take to let go of one whose last process was killed, which ends when it has its turn."""
_SETTLE_STEP_S = 0.005
_ROUNDS = 3
"""Attempts to freeze a group of version 1, where one may never end that the next does at once."""


class CgroupFiles:
    """The file operations that control groups are made of. A test puts a tree of ordinary files in their place."""

    def may_change(self, folder: Path) -> bool:
        return os.access(folder, os.W_OK)

    def make(self, folder: Path) -> None:
        folder.mkdir()

    def remove(self, folder: Path) -> None:
        folder.rmdir()

    def read(self, file: Path) -> str:
        return read_whole(file).decode()

    def write(self, file: Path, text: str) -> None:
        # Without O_CREAT and O_TRUNC: a file that is not there is a controller that is not there. By descriptor, as a
        # Python file object looks for its position first, which fails oddly when the group is removed meanwhile.
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


class Group(Protocol):
    """The control group of one container."""

    def make(self, limits: Limits) -> None:
        """A fresh group with these limits. Raises EngineError when the kernel refuses."""

    def entrances(self) -> list[str]:
        """The files into which a process writes `0` to join."""

    def exists(self) -> bool: ...

    def can_freeze(self) -> bool: ...

    def freeze(self) -> None:
        """Raises EngineError when not everything in it stood still in time."""

    def thaw(self) -> None:
        """A group that is gone has nothing to thaw."""

    def frozen(self) -> bool: ...

    def out_of_memory_kills(self) -> int: ...

    def usage(self) -> ContainerStats: ...

    def remove(self) -> bool:
        """Kill what is left in it, and remove it. Whether it is gone; False: something in it cannot be killed."""


@dataclass(frozen=True, slots=True)
class GroupVersion1:
    folders: Mapping[str, Path]
    files: CgroupFiles

    def make(self, limits: Limits) -> None:
        for folder in self.folders.values():
            _make_fresh(self.files, folder)
        try:
            if memory := self.folders.get("memory"):
                self.files.write(memory / "memory.limit_in_bytes", str(limits.memory_bytes))
                if (memory / "memory.memsw.limit_in_bytes").exists():
                    self.files.write(memory / "memory.memsw.limit_in_bytes", str(limits.memory_bytes))
                else:
                    self.files.write(memory / "memory.swappiness", "0")
            if pids := self.folders.get("pids"):
                self.files.write(pids / "pids.max", str(limits.pids + SUPERVISORS))
            if cpu := self.folders.get("cpu"):
                self.files.write(cpu / "cpu.cfs_period_us", str(_PERIOD_US))
                self.files.write(cpu / "cpu.cfs_quota_us", str(int(limits.cpus * _PERIOD_US)))
        except OSError as error:
            raise _refused(error) from error

    def entrances(self) -> list[str]:
        # `tasks` takes one thread, which for a shell is all there is: for a thread that moves itself the kernel takes
        # no lock over the whole machine, while `cgroup.procs` waits some 10 ms for it, for each controller.
        return [str(folder / "tasks") for folder in self.folders.values()]

    def exists(self) -> bool:
        return any(folder.exists() for folder in self.folders.values())

    def can_freeze(self) -> bool:
        return "freezer" in self.folders

    def freeze(self) -> None:
        state = self.folders["freezer"] / "freezer.state"
        # Version 1 can come to no end with a process in the middle of a fork: let on for a moment, it gets through.
        for _ in range(_ROUNDS):
            self.files.write(state, "FROZEN")
            if _settled(lambda: self.files.read(state).strip() == "FROZEN", _SETTLE_S):
                return
            self.files.write(state, "THAWED")
        raise _not_frozen()

    def thaw(self) -> None:
        if folder := self.folders.get("freezer"):
            _write_unless_gone(self.files, folder / "freezer.state", "THAWED")

    def frozen(self) -> bool:
        folder = self.folders.get("freezer")
        return folder is not None and _read(self.files, folder / "freezer.state").strip() in {"FROZEN", "FREEZING"}

    def out_of_memory_kills(self) -> int:
        folder = self.folders.get("memory")
        return _field(self.files, folder / "memory.oom_control", "oom_kill") or 0 if folder else 0

    def usage(self) -> ContainerStats:
        memory, cpu, pids = (self.folders.get(each) for each in ("memory", "cpuacct", "pids"))
        used = _number(self.files, memory / "memory.usage_in_bytes") if memory else None
        if memory and used is not None:
            # Cache that the kernel would give back for the asking is no memory that anybody needs.
            used -= _field(self.files, memory / "memory.stat", "total_inactive_file") or 0
        nanoseconds = _number(self.files, cpu / "cpuacct.usage") if cpu else None
        count = _number(self.files, pids / "pids.current") if pids else None
        return ContainerStats(
            memory_bytes=used,
            cpu_s=None if nanoseconds is None else nanoseconds / 1e9,
            pids=None if count is None else max(0, count - SUPERVISORS),
        )

    def remove(self) -> bool:
        # What is frozen here dies when it is thawed, and not before.
        self.thaw()
        return all(list(map(partial(_remove, self.files), self.folders.values())))


@dataclass(frozen=True, slots=True)
class GroupVersion2:
    folder: Path
    files: CgroupFiles

    def make(self, limits: Limits) -> None:
        _make_fresh(self.files, self.folder)
        try:
            if (self.folder / "memory.max").exists():
                self.files.write(self.folder / "memory.max", str(limits.memory_bytes))
                if (self.folder / "memory.swap.max").exists():
                    self.files.write(self.folder / "memory.swap.max", "0")
            if (self.folder / "pids.max").exists():
                self.files.write(self.folder / "pids.max", str(limits.pids + SUPERVISORS))
            if (self.folder / "cpu.max").exists():
                self.files.write(self.folder / "cpu.max", f"{int(limits.cpus * _PERIOD_US)} {_PERIOD_US}")
        except OSError as error:
            raise _refused(error) from error

    def entrances(self) -> list[str]:
        return [str(self.folder / "cgroup.procs")]

    def exists(self) -> bool:
        return self.folder.exists()

    def can_freeze(self) -> bool:
        return (self.folder / "cgroup.freeze").exists()

    def freeze(self) -> None:
        self.files.write(self.folder / "cgroup.freeze", "1")
        if not _settled(lambda: _field(self.files, self.folder / "cgroup.events", "frozen") == 1, _SETTLE_S):
            self.files.write(self.folder / "cgroup.freeze", "0")
            raise _not_frozen()

    def thaw(self) -> None:
        _write_unless_gone(self.files, self.folder / "cgroup.freeze", "0")

    def frozen(self) -> bool:
        return _read(self.files, self.folder / "cgroup.freeze").strip() == "1"

    def out_of_memory_kills(self) -> int:
        return _field(self.files, self.folder / "memory.events", "oom_kill") or 0

    def usage(self) -> ContainerStats:
        used = _number(self.files, self.folder / "memory.current")
        if used is not None:
            used -= _field(self.files, self.folder / "memory.stat", "inactive_file") or 0
        microseconds = _field(self.files, self.folder / "cpu.stat", "usage_usec")
        count = _number(self.files, self.folder / "pids.current")
        return ContainerStats(
            memory_bytes=used,
            cpu_s=None if microseconds is None else microseconds / 1e6,
            pids=None if count is None else max(0, count - SUPERVISORS),
        )

    def remove(self) -> bool:
        return _remove(self.files, self.folder)


def _make_fresh(files: CgroupFiles, folder: Path) -> None:
    """A group that nobody has used: an earlier one's counters would tell of the wrong container."""
    try:
        if folder.exists() and not _remove(files, folder):
            raise EngineError(
                Failure.UNKNOWN,
                f"Processes of an earlier container still live in the control group {folder}",
                hint="They were killed and do not go. A process that hangs in the kernel ends with the machine.",
            )
        files.make(folder)
    except OSError as error:
        raise _refused(error) from error


def _remove(files: CgroupFiles, folder: Path) -> bool:
    def gone() -> bool:
        try:
            files.remove(folder)
        except FileNotFoundError:
            pass
        except OSError:
            # Busy: a start that broke off has left something in it, or the kernel has not counted an ended process out.
            _kill_all(files, folder)
            return False
        return True

    return _settled(gone, _LET_GO_S)


def _kill_all(files: CgroupFiles, folder: Path) -> None:
    def members() -> set[int]:
        # 0 stands for processes that this pid namespace does not see.
        return {int(pid) for pid in _read(files, folder / "cgroup.procs").split()} - {0}

    for pid in members():
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                # Asked again: before it was opened, the pid could have gone to a process of somebody else.
                if pid in members():
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def _settled(done: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(_SETTLE_STEP_S)
    return True


def _write_unless_gone(files: CgroupFiles, file: Path, text: str) -> None:
    """Whoever else ended the container may have removed its group, before the file was opened or after."""
    try:
        files.write(file, text)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENODEV}:
            raise


def _read(files: CgroupFiles, file: Path) -> str:
    try:
        return files.read(file)
    except OSError:
        return ""


def _number(files: CgroupFiles, file: Path) -> int | None:
    text = _read(files, file).strip()
    return int(text) if text.isdecimal() else None


def _field(files: CgroupFiles, file: Path, name: str) -> int | None:
    for line in _read(files, file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return None


def _refused(error: OSError) -> EngineError:
    return EngineError(
        Failure.RESOURCES_EXHAUSTED,
        f"The kernel refused a control group: {error}",
        hint="Look at `crab doctor`; a limit above what the parent group allows is refused too.",
    )


def _not_frozen() -> EngineError:
    return EngineError(Failure.UNKNOWN, "Not every process of the container could be frozen in time; it was thawed")
