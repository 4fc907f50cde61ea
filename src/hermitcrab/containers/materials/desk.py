"""What must lie on disk before a container can start: its folders, and the files that only the host writes.

Folders that an agent writes are only ever touched through their descriptor, without following a link (law 4).
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from hermitcrab.containers.materials import runner_source
from hermitcrab.containers.materials.generated import folder_of, publish
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic import instructions
from hermitcrab.logic.mounts import Decision
from hermitcrab.logic.spec import INTERPRETER, PACKAGES, RUNNER_SOURCE, SKILLS, Materials
from hermitcrab.model.documents import Document, text_document
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import Generation
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home

_SHARED = "shared/CLAUDE.md"
_EMPTY_FILE = "empty.md"
_EMPTY_FOLDER = "empty"
_SKILLS_FOLDER = "skills"

_WORK_MOUNT_POINTS = ("agent", "extra", "inbox", "global")
_WORK_FILES = ("CLAUDE.md",)
_WORK_FOLDERS = (".claude",)
_GROUP_FILES = (instructions.CONFIG_FILE, instructions.ENTRY_FILE)
_GROUP_FOLDERS = (instructions.FRAGMENTS_FOLDER, ".claude")
_SETTINGS = "settings.json"
_STATE_FILES = (_SETTINGS, "CLAUDE.md")
_STATE_FOLDERS = ("agents", "commands", "hooks", "output-styles", "plugins", "rules", "skills", "workflows")
"""What a harness would run or obey wherever it finds it, from its working folder up: empty and read-only, or the host's
own. Otherwise one turn could give orders to every later one, and one chat to all others of its group."""

_GENERATED_FOLDERS = (_EMPTY_FOLDER, _SKILLS_FOLDER, *_GROUP_FOLDERS)

PLACES = {
    "work": frozenset((*_WORK_MOUNT_POINTS, *_WORK_FILES, *_WORK_FOLDERS)),
    "state": frozenset((*_STATE_FILES, *_STATE_FOLDERS)),
    "inbox": frozenset[str](),
    "outbox": frozenset[str](),
}
"""Names in a session's folders that are the host's own: each is made anew where it is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFolders:
    """A session on disk (design section 5)."""

    root: Path

    @property
    def mailbox(self) -> Path:
        return self.root / "mailbox"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def outbox(self) -> Path:
        """Files on their way from the agent to its chats. No container sees it."""
        return self.root / "outbox"

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def certificates(self) -> Path:
        return self.logs / "certificates.jsonl"

    def run(self, generation: Generation) -> Path:
        """Each generation has a socket folder of its own: an old container cannot reach a new one's link."""
        return self.root / f"run/{generation}"

    def extra_points(self, generation: Generation) -> Path:
        """Only the places of additional mounts, which differ from one generation to the next."""
        return self.root / f"extra/{generation}"


def session_folders(home: Home, session: Session) -> SessionFolders:
    return SessionFolders(root=home.sessions / f"{session.agent_group_id}/{session.id}")


class MaterialsDesk:
    """Prepares and clears away what containers are given. All methods block; call them in a thread."""

    def __init__(self, home: Home, *, uid: int, gid: int) -> None:
        self._home = home
        self._uid, self._gid = uid, gid
        self._runner: Path | None = None

    def prepare(
        self,
        session: Session,
        group: AgentGroup,
        generation: Generation,
        *,
        documents: Mapping[str, Document],
        packages: Path | None,
        host_interpreter: bool,
        extra: Sequence[Decision] = (),
        is_foreign: bool = False,
    ) -> Materials:
        """Make everything for one generation of the session's container. Idempotent.

        `documents`: what the group's containers read, by path: the instructions with their fragments, the config, the
        skills. `is_foreign`: a foreign runner will be in it, whose harness's settings are made in the container.
        """
        folders = session_folders(self._home, session)
        for each in (folders.inbox, folders.logs, folders.run(generation)):
            each.mkdir(parents=True, exist_ok=True)
        # The container's user must be able to pass through to the sockets, and nobody else gets this far.
        folders.run(generation).chmod(0o755)
        folders.inbox.chmod(0o755)
        self._writable_folder(
            folders.work,
            mount_point_files=_WORK_FILES,
            mount_point_folders=(*_WORK_MOUNT_POINTS, *_WORK_FOLDERS),
        )
        self._writable_folder(
            folders.state,
            mount_point_files=tuple(each for each in _STATE_FILES if not (is_foreign and each == _SETTINGS)),
            mount_point_folders=_STATE_FOLDERS,
        )
        self.initialise(group)
        generated = self.publish(group, documents)
        self._extra_points(folders.extra_points(generation), extra)
        return self.plan(
            session,
            group,
            generation,
            generated=generated,
            packages=packages,
            host_interpreter=host_interpreter,
            extra=extra,
        )

    def plan(
        self,
        session: Session,
        group: AgentGroup,
        generation: Generation,
        *,
        generated: Path,
        packages: Path | None,
        host_interpreter: bool,
        extra: Sequence[Decision] = (),
    ) -> Materials:
        """What `prepare` gives, with nothing made for the session. `generated`: as `publish` or `place` say."""
        folders = session_folders(self._home, session)
        app, python = self._installation(host_interpreter=host_interpreter)
        if not host_interpreter:
            # An image knows nothing of our user; bubblewrap's own /etc is made with it.
            app["/etc/passwd"] = f"{generated}/passwd"
        app[SKILLS] = f"{generated}/{_SKILLS_FOLDER}"
        if packages is not None:
            app[PACKAGES] = str(packages.resolve())
        global_memory = self._home.groups / "global"
        empty, nothing = f"{generated}/{_EMPTY_FOLDER}", f"{generated}/{_EMPTY_FILE}"
        return Materials(
            work=str(folders.work),
            inbox=str(folders.inbox),
            run=str(folders.run(generation)),
            state=str(folders.state),
            group_folder=str(self._home.groups / group.folder),
            generated={
                **{name: f"{generated}/{name}" for name in _GROUP_FILES},
                **{name: f"{generated}/{name}" for name in _GROUP_FOLDERS},
            },
            app=app,
            work_overlays={**dict.fromkeys(_WORK_FILES, nothing), **dict.fromkeys(_WORK_FOLDERS, empty)},
            state_overlays={
                **dict.fromkeys(_STATE_FILES, nothing),
                **dict.fromkeys(_STATE_FOLDERS, empty),
                _SETTINGS: f"{generated}/{instructions.SETTINGS_FILE}",
                "skills": f"{generated}/{_SKILLS_FOLDER}",
            },
            global_memory=str(global_memory) if global_memory.is_dir() and not global_memory.is_symlink() else None,
            extra_points=str(folders.extra_points(generation)),
            extra=tuple(each.mount for each in extra if each.mount is not None),
            python=python,
        )

    def publish(self, group: AgentGroup, documents: Mapping[str, Document]) -> Path:
        """Have the group's documents on disk, in use from now on, and say where. Idempotent."""
        return publish(*self._generated(group, documents), folders=_GENERATED_FOLDERS)

    def place(self, group: AgentGroup, documents: Mapping[str, Document]) -> Path:
        """Where `publish` has them, with nothing made."""
        return folder_of(*self._generated(group, documents), folders=_GENERATED_FOLDERS)

    def initialise(self, group: AgentGroup, memory: str = "") -> None:
        """Make the group's own folder, if it is not there, with the memory that it begins with.

        What is there is the agent's: it is looked at, and never overwritten.
        """
        self._writable_folder(
            self._home.groups / group.folder,
            mount_point_files=_GROUP_FILES,
            mount_point_folders=_GROUP_FOLDERS,
            first_files={instructions.MEMORY_FILE: memory},
        )

    def clear(self, session: Session, generation: Generation) -> None:
        """Remove what only that generation and older ones needed: a host may have been killed before it could."""
        folders = session_folders(self._home, session)
        for parent in (folders.run(generation).parent, folders.extra_points(generation).parent):
            if parent.is_dir():
                for each in parent.iterdir():
                    if each.name.isdecimal() and int(each.name) <= generation:
                        shutil.rmtree(each, ignore_errors=True)

    def _extra_points(self, folder: Path, extra: Sequence[Decision]) -> None:
        """The host's own folder, so that no agent can put anything in the way of a mount."""
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        wanted = {each.mount.target.rpartition("/")[2]: each.kind for each in extra if each.mount is not None}
        for left in folder.iterdir():
            if wanted.get(left.name) != ("folder" if left.is_dir() else "file"):
                left.rmdir() if left.is_dir() else left.unlink()
        for name, kind in wanted.items():
            (folder / name).mkdir(exist_ok=True) if kind == "folder" else (folder / name).touch()

    def _installation(self, *, host_interpreter: bool) -> tuple[dict[str, str], str]:
        """The read-only parts of this installation by their path in the container, and the interpreter's path there."""
        if self._runner is None:
            self._runner = runner_source.snapshot(self._home.generated)
        app = {RUNNER_SOURCE: str(self._runner), instructions.SHARED_PATH: _shared_instructions()}
        if not host_interpreter:
            return app, "python3"
        prefix = _interpreter_prefix()
        executable = f"bin/python{sys.version_info.major}.{sys.version_info.minor}"
        if prefix.is_relative_to("/usr"):
            return app, str(prefix / executable)
        app[INTERPRETER] = str(prefix)
        return app, f"{INTERPRETER}/{executable}"

    def _generated(self, group: AgentGroup, documents: Mapping[str, Document]) -> tuple[Path, dict[str, Document]]:
        """Where the group's host-written files are published, and all of them."""
        return self._home.generated / group.id, {
            instructions.SETTINGS_FILE: instructions.claude_settings(),
            **documents,
            _EMPTY_FILE: text_document(""),
            "passwd": instructions.passwd(self._uid, self._gid),
        }

    def _writable_folder(
        self,
        folder: Path,
        *,
        mount_point_files: tuple[str, ...] = (),
        mount_point_folders: tuple[str, ...] = (),
        first_files: dict[str, str] | None = None,
    ) -> None:
        """A folder that the agent owns, with the places where the host's own things are mounted on top.

        The places are made once; later a container can neither remove nor replace them, as they are mount points in it.
        """
        new = False
        try:
            folder.mkdir(parents=True)
            new = True
        except FileExistsError:
            pass
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # Made, or else looked at: another session of the group may be making the same at this moment.
            for name in mount_point_folders:
                try:
                    os.mkdir(name, 0o755, dir_fd=descriptor)
                except FileExistsError:
                    _must_be(stat.S_ISDIR, descriptor, name, folder)
            files = {**dict.fromkeys(mount_point_files, ""), **((first_files or {}) if new else {})}
            for name, text in files.items():
                try:
                    self._create(descriptor, name, text)
                except FileExistsError:
                    _must_be(stat.S_ISREG, descriptor, name, folder)
            if os.geteuid() == 0 and os.fstat(descriptor).st_uid != self._uid:
                os.fchown(descriptor, self._uid, self._gid)
        finally:
            os.close(descriptor)

    def _create(self, folder: int, name: str, text: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o644, dir_fd=folder)
        try:
            os.write(descriptor, text.encode())
            if os.geteuid() == 0:
                os.fchown(descriptor, self._uid, self._gid)
        finally:
            os.close(descriptor)


def _must_be(kind: Callable[[int], bool], folder: int, name: str, path: Path) -> None:
    """Refuse what is of another kind: it was planted, and the container does not start over it."""
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not kind(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink != 1):
        raise EngineError(
            Failure.DENIED_BY_POLICY,
            f"{path / name} is not what the host put there",
            hint="Something in the agent's folder stands where the host mounts its own; move it away.",
        )


@cache
def _shared_instructions() -> str:
    return str(Path(str(resources.files("hermitcrab.groups") / _SHARED)).resolve())


@cache
def _interpreter_prefix() -> Path:
    return Path(sys.base_prefix).resolve()


@cache
def interpreter_env() -> Mapping[str, str]:
    """What the host's interpreter needs in its environment to run at another path."""
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and not _interpreter_prefix().is_relative_to("/usr"):
        return {"LD_LIBRARY_PATH": f"{INTERPRETER}/lib"}
    return {}
