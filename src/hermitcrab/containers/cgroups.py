"""What this machine allows in control groups: where a bubblewrap engine's own may lie, and what they can do.

Both layouts occur: version 1 has a tree for each controller, version 2 one tree for all of them. Ours is the subtree
`hermitcrab/<installation>/<container>`. What this machine does not allow is said by name in `unrealized`; the engine
passes that on instead of pretending. Everything here blocks for a moment; the bubblewrap engine calls it in threads.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hermitcrab.containers.control_group import CgroupFiles, Group, GroupVersion1, GroupVersion2
from hermitcrab.model.ids import InstallationId

SUBTREE = "hermitcrab"

_V1_PROMISES = {"memory": "memory", "pids": "pids", "cpu": "cpus", "freezer": "freeze", "cpuacct": ""}
_V2_PROMISES = {"memory": "memory", "pids": "pids", "cpu": "cpus"}


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
                with suppress(FileExistsError):  # Another host that opens just now has made it.
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
