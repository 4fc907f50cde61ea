"""Control groups: how a bubblewrap container is limited, frozen and measured where the kernel lets us.

Both layouts occur: version 1 has a tree for each controller, version 2 one tree for all of them. Ours is the subtree
`hermitcrab/<installation>/<container>`. What this machine does not allow is said by name in `unrealized`; the engine
passes that on instead of pretending. Everything here blocks for a moment; the bubblewrap engine calls it in threads.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import ContainerStats, Limits
from hermitcrab.model.ids import InstallationId

SUBTREE = "hermitcrab"

SUPERVISORS = 1
"""Processes of ours in each group, which the limit must not take from the agent: bubblewrap's own."""

_PERIOD_US = 100_000
_SETTLE_S = 2.0
"""How long the kernel may take to freeze a group, or to let go of one whose last process has just ended."""
_SETTLE_STEP_S = 0.005

_V1_PROMISES = {"memory": "memory", "pids": "pids", "cpu": "cpus", "freezer": "freeze", "cpuacct": ""}
_V2_PROMISES = {"memory": "memory", "pids": "pids", "cpu": "cpus"}


class CgroupFiles:
    """The file operations that control groups are made of. A test puts a tree of ordinary files in their place."""

    def may_change(self, folder: Path) -> bool:
        return os.access(folder, os.W_OK)

    def make(self, folder: Path) -> None:
        folder.mkdir()

    def remove(self, folder: Path) -> None:
        folder.rmdir()

    def read(self, file: Path) -> str:
        return file.read_text()

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


@dataclass(slots=True)
class Cgroups:
    """What this machine allows, found out once."""

    installation: InstallationId
    superuser: bool
    root: Path = Path("/sys/fs/cgroup")
    own: Path = Path("/proc/self/cgroup")
    files: CgroupFiles = field(default_factory=CgroupFiles)
    version: int = 0
    """0: none can be used."""
    unrealized: dict[str, str] = field(default_factory=dict)
    parents: dict[str, Path] = field(default_factory=dict)
    """The installation's folder by controller; version 2 has the one entry ''."""

    def open(self) -> None:
        """Make the installation's subtree, as far as that is allowed. Idempotent."""
        self.unrealized = {}
        self.parents = {}
        if (self.root / "cgroup.controllers").exists():
            self._open_version_2()
        else:
            self._open_version_1()

    def ensure(self) -> None:
        """Open again if another host of this installation, that ended just now, tidied the subtree away."""
        if not all(parent.exists() for parent in self.parents.values()):
            self.open()

    def close(self) -> None:
        """Tidy the subtree away, unless there are containers in it."""
        for parent in self.parents.values():
            with suppress(OSError):
                self.files.remove(parent)

    def group(self, name: str) -> Group | None:
        """The group of that container, made or not; None where there are no groups."""
        folders = {controller: parent / name for controller, parent in self.parents.items()}
        match self.version:
            case 1:
                return GroupVersion1(folders, self.files)
            case 2:
                return GroupVersion2(folders[""], self.files)
            case _:
                return None

    def _open_version_1(self) -> None:
        for controller, promise in _V1_PROMISES.items():
            parent = self.root / controller / SUBTREE / self.installation
            try:
                self._make_all(self.root / controller, parent)
                if controller == "cpu":
                    self.files.read(parent / "cpu.cfs_quota_us")
            except OSError as error:
                if promise:
                    self.unrealized[promise] = f"the control group {controller} cannot be used: {error.strerror}"
            else:
                self.parents[controller] = parent
        self.version = 1 if self.parents else 0

    def _open_version_2(self) -> None:
        reason = "no control group is delegated to this user"
        for base in self._version_2_bases():
            parent = base / SUBTREE / self.installation
            try:
                self._make_all(base, parent, enable=True)
            except OSError as error:
                reason = f"the control groups below {base} cannot be used: {error.strerror}"
                continue
            enabled = self._enabled(parent)
            self.unrealized = {
                promise: f"the control group controller {controller} is not delegated"
                for controller, promise in _V2_PROMISES.items()
                if controller not in enabled
            }
            self.parents[""] = parent
            self.version = 2
            return
        self.version = 0
        self.unrealized = dict.fromkeys((*_V2_PROMISES.values(), "freeze"), reason)

    def _version_2_bases(self) -> list[Path]:
        """Where our subtree may lie: in the root for the superuser, else in the group that a service manager delegated.

        That one is our own or, as it must hold no process once its controllers are enabled, the one above.
        """
        if self.superuser:
            return [self.root]
        for line in self.files.read(self.own).splitlines():
            if line.startswith("0::/"):
                own = self.root / line.removeprefix("0::/")
                return [each for each in (own, own.parent) if each != self.root]
        return []

    def _make_all(self, base: Path, leaf: Path, *, enable: bool = False) -> None:
        folder = base
        for part in ("", *leaf.relative_to(base).parts):
            folder /= part
            if not folder.exists():
                self.files.make(folder)
            if enable:
                offered = self.files.read(folder / "cgroup.controllers").split()
                missing = [each for each in _V2_PROMISES if each in offered and each not in self._enabled(folder)]
                if missing:
                    self.files.write(folder / "cgroup.subtree_control", " ".join(f"+{each}" for each in missing))
        if not self.files.may_change(leaf):
            # Made by another user's host, with the same installation's name.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(leaf))

    def _enabled(self, folder: Path) -> list[str]:
        return self.files.read(folder / "cgroup.subtree_control").split()


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
        self.files.write(state, "FROZEN")
        if not _settled(lambda: self.files.read(state).strip() == "FROZEN"):
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
        if not _settled(lambda: _field(self.files, self.folder / "cgroup.events", "frozen") == 1):
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

    return _settled(gone)


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


def _settled(done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _SETTLE_S
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
