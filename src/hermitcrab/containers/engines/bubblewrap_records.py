"""The engine's memory of its containers: a folder for each, which outlives the host.

The folder's name is the lock on the container's name. A new folder is filled under another name and then renamed, which
fails if the name is taken; a removed one is renamed away and then emptied. So whoever looks sees whole containers only,
and what a crash leaves under a passing name is nobody's as soon as nobody holds its lock. All functions block.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hermitcrab.containers.engines import bubblewrap_processes as process
from hermitcrab.containers.engines.bubblewrap_processes import Process
from hermitcrab.containers.small_files import read_whole
from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import ContainerSpec, Limits, Mount, MountClass
from hermitcrab.model.ids import Generation, InstallationId, SessionId

_NEW = ".new-"
_GONE = ".gone-"
TRIAL = ".trial-"
"""Containers that preflight makes and removes; never shown."""

_TRIAL_IS_OVER_S = 3600

RECORD = "record.json"
PROCESSES = "processes.json"
STATUS = "status.json"
LOG = "log"


@dataclass(frozen=True, slots=True)
class Record:
    """What was decided when the container was made. Never changes."""

    id: str
    created_at: str
    spec: ContainerSpec
    spec_hash: str
    """As it was then, whatever a later version makes of the same spec."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Written before the start with neither process, and after it with both."""

    boot: str
    supervisor: Process | None = None
    """Bubblewrap outside of the sandbox, which writes down the exit code."""
    main: Process | None = None
    """The container's pid 1."""


@dataclass(frozen=True, slots=True)
class Status:
    """What bubblewrap itself wrote down."""

    main_pid: int | None = None
    pid_namespace: int | None = None
    exit_code: int | None = None
    finished_at: str | None = None

    def main(self) -> Process | None:
        """The main process, unless it has ended."""
        main = None if self.main_pid is None else process.identify(self.main_pid)
        return main if main is not None and process.pid_namespace(main.pid) == self.pid_namespace else None


@dataclass(frozen=True, slots=True)
class ContainerFolder:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def record(self) -> Record | None:
        """None when the container is gone, or its record cannot be read (after a broken disk, say)."""
        try:
            found = json.loads(read_whole(self.path / RECORD))
            return Record(found["id"], found["created_at"], _spec(found["spec"]), found["spec_hash"])
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None

    def processes(self) -> Processes | None:
        """None when it was never started."""
        try:
            found = json.loads(read_whole(self.path / PROCESSES))
        except FileNotFoundError:
            return None
        except ValueError:
            # Cut short together with the machine, and all its processes.
            return Processes(boot="")
        return Processes(
            found["boot"], *(Process(**found[who]) if found[who] else None for who in ("supervisor", "main"))
        )

    def write_processes(self, processes: Processes) -> None:
        # Not forced to the disk: should the machine end, so have they.
        _write(self.path / PROCESSES, asdict(processes), durably=False)

    def status(self) -> Status:
        file = self.path / STATUS
        try:
            lines = read_whole(file).splitlines()
            finished = file.stat().st_mtime
        except FileNotFoundError:
            return Status()
        found: dict[str, Any] = {}
        for line in lines:
            # The last line may be cut short when the machine was.
            with contextlib.suppress(ValueError):
                found |= json.loads(line)
        exit_code = found.get("exit-code")
        at = datetime.fromtimestamp(finished, UTC).isoformat(timespec="milliseconds") if exit_code is not None else None
        return Status(found.get("child-pid"), found.get("pid-namespace"), exit_code, at)

    def open_new(self, name: str, flags: int) -> int:
        return os.open(self.path / name, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """One process at a time starts or removes it. The bool: whether it is still there."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield _is_at(descriptor, self.path)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Shelf:
    """All containers' folders of one engine."""

    folder: Path

    def open(self) -> None:
        """Make the folder, and clear away what crashes left behind."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in self.folder.iterdir():
            if each.name.startswith((_NEW, _GONE)):
                _clear_unless_locked(each)
            elif each.name.startswith(TRIAL):
                with contextlib.suppress(FileNotFoundError):  # Another process has ended its trial just now.
                    if each.stat().st_mtime < time.time() - _TRIAL_IS_OVER_S:
                        shutil.rmtree(each, ignore_errors=True)

    def create(self, spec: ContainerSpec) -> None:
        """Raises `name-in-use`."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self.folder / f"{_NEW}{secrets.token_hex(8)}"
        new.mkdir(mode=0o700)
        try:
            descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return self.create(spec)  # As below.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_at(descriptor, new):
                # A host that started just now cleared it away before it was locked.
                return self.create(spec)
            created_at = datetime.now(UTC).isoformat(timespec="milliseconds")
            values = asdict(spec) | {"env": dict(spec.env)}
            record = {
                "id": secrets.token_hex(16),
                "created_at": created_at,
                "spec": values,
                "spec_hash": spec.spec_hash,
            }
            _write(new / RECORD, record, durably=True)
            new.rename(self.folder / spec.name)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise EngineError(
                    Failure.NAME_IN_USE,
                    f"There is a container {spec.name} already",
                    hint="It is the session's earlier one; remove it first.",
                ) from error
            raise
        finally:
            os.close(descriptor)

    def find(self, name: str) -> ContainerFolder | None:
        path = self.folder / name
        return ContainerFolder(path) if path.is_dir() else None

    def all(self) -> list[ContainerFolder]:
        try:
            names = sorted(os.listdir(self.folder))  # noqa: PTH208  # comparing hundreds of paths takes milliseconds
        except FileNotFoundError:
            return []
        return [ContainerFolder(self.folder / name) for name in names if not name.startswith(".")]

    def forget(self, container: ContainerFolder) -> None:
        """Free the name at once, then remove the files."""
        gone = self.folder / f"{_GONE}{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            container.path.rename(gone)
            shutil.rmtree(gone)


def _spec(values: Mapping[str, Any]) -> ContainerSpec:
    mounts = tuple(Mount(**{**each, "mount_class": MountClass(each["mount_class"])}) for each in values["mounts"])
    return ContainerSpec(
        **{
            **values,
            "installation": InstallationId(values["installation"]),
            "session": SessionId(values["session"]),
            "generation": Generation(values["generation"]),
            "argv": tuple(values["argv"]),
            "mounts": mounts,
            "tmpfs": tuple(values["tmpfs"]),
            "limits": Limits(**values["limits"]),
        }
    )


def _write(path: Path, values: Mapping[str, Any], *, durably: bool) -> None:
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w") as file:
        json.dump(values, file)
        if durably:
            file.flush()
            os.fsync(file.fileno())
    temporary.rename(path)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _clear_unless_locked(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its maker may have renamed it since; then it is whole and has a name.
        if _is_at(descriptor, path):
            shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
