"""The home: the folder with everything that one installation owns, and the lock that one host holds on it.

Whoever needs a place in the home asks `Home` for it; nobody else joins paths below it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from hermitcrab.errors import BadInputError, HomeError, HomeInUseError
from hermitcrab.settings.filesystem import file_system_of

HOME_VARIABLE = "HERMITCRAB_HOME"

_OURS = "hermitcrab."
"""Files directly in a home begin with this; a folder that holds other things and none of these is not a home."""

_MOVE_HINT = f"Choose a folder on a disk of this machine: crab --home FOLDER, or {HOME_VARIABLE}."


def resolve(option: str | None, *, environment: Mapping[str, str] | None = None) -> Path:
    """The home's path: what was asked for, else HERMITCRAB_HOME, else the data folder that the platform names.

    Absolute and free of symbolic links, because containers mount what lies below it.
    """
    environment = os.environ if environment is None else environment
    if option is not None:
        chosen = option
    elif chosen := environment.get(HOME_VARIABLE, ""):
        pass
    elif os.geteuid() == 0:
        chosen = "/var/lib/hermitcrab"
    elif data := environment.get("XDG_DATA_HOME", ""):
        chosen = f"{data}/hermitcrab"
    else:
        chosen = "~/.local/share/hermitcrab"
    if not chosen or "\0" in chosen:
        raise BadInputError("The home must be the path of a folder", hint=_MOVE_HINT)
    try:
        return Path(chosen).expanduser().resolve()
    except (OSError, RuntimeError, UnicodeError) as error:
        raise BadInputError(f"The home {chosen!r} is no path that can be used: {error}", hint=_MOVE_HINT) from error


@dataclass(frozen=True, slots=True)
class Home:
    path: Path

    @property
    def database(self) -> Path:
        return self.path / "hermitcrab.db"

    @property
    def settings_file(self) -> Path:
        return self.path / "hermitcrab.toml"

    @property
    def mounts_file(self) -> Path:
        """The allow-list of additional mounts."""
        return self.path / "mounts.toml"

    @property
    def lock_file(self) -> Path:
        return self.path / "hermitcrab.lock"

    @property
    def machine_file(self) -> Path:
        """Which run of the machine the last host was on."""
        return self.path / "machine"

    @property
    def run(self) -> Path:
        """Sockets of the host itself. Bind and connect through `settings.sockets`: the path may be long."""
        return self.path / "run"

    @property
    def control_socket(self) -> Path:
        return self.run / "control.sock"

    @property
    def sessions(self) -> Path:
        return self.path / "sessions"

    @property
    def groups(self) -> Path:
        return self.path / "groups"

    @property
    def generated(self) -> Path:
        return self.path / "generated"

    @property
    def skills(self) -> Path:
        """Skills that this installation adds to the shipped ones. Only people write here."""
        return self.path / "skills"

    def group_skills(self, folder: str) -> Path:
        """One group's own skills. Beside its workspace, not in it: no agent writes here."""
        return self.path / "group-skills" / folder

    @property
    def trash(self) -> Path:
        """What is about to be removed, and what is not whole yet. A starting host clears it."""
        return self.path / "trash"

    @property
    def received(self) -> Path:
        """Files that agents sent to people at this machine's terminals, by group."""
        return self.path / "received"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def images(self) -> Path:
        """What builds of images need and leave: their locks and logs, and unpacked images for bubblewrap."""
        return self.path / "images"

    def engine_folder(self, name: str) -> Path:
        """Where the engine of that name keeps its own records."""
        return self.path / "engines" / name

    def prepare(self, *, mountinfo: str | None = None) -> None:
        """Make the home and its folders, for this user alone, or raise HomeError with what to do.

        `mountinfo`: the text of /proc/self/mountinfo, if not this process's.
        """
        self._refuse_unsafe_file_system(mountinfo)
        _make_folder(self.path)
        self._check_owner_and_mode()
        folders = (self.run, self.sessions, self.groups, self.generated, self.trash, self.logs, self.cache, self.images)
        for folder in folders:
            _make_folder(folder)
        _make_folder(self.engine_folder("x").parent)
        self._check_writable()

    def _refuse_unsafe_file_system(self, mountinfo: str | None) -> None:
        if mountinfo is None:
            try:
                mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
            except OSError:
                return  # Not Linux, or a /proc that hides it: nothing can be said.
        found = file_system_of(self.path, mountinfo)
        if found is not None and not found.safe:
            raise HomeError(
                f"The home {self.path} lies on {found.mount_point}, a {found.kind} file system: "
                "databases on it can be damaged and locks on it do not hold",
                hint=_MOVE_HINT,
            )

    def _check_owner_and_mode(self) -> None:
        found = self.path.stat()
        if found.st_uid != os.geteuid():
            raise HomeError(
                f"The home {self.path} belongs to user {found.st_uid}, and this process runs as {os.geteuid()}",
                hint=f"Run crab as that user, or choose another folder with --home or {HOME_VARIABLE}.",
            )
        if stat.S_IMODE(found.st_mode) == 0o700:
            return
        names = os.listdir(self.path)  # noqa: PTH208  # names only
        if names and not any(name.startswith(_OURS) for name in names):
            raise HomeError(
                f"The home {self.path} is a folder that other users can enter and that holds other things",
                hint=f"Give Hermitcrab a folder of its own, or make this one private first: chmod 700 {self.path}",
            )
        self.path.chmod(0o700)

    def _check_writable(self) -> None:
        probe = self.path / f"hermitcrab.probe-{os.getpid()}"
        try:
            descriptor = os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, b"x")
            finally:
                os.close(descriptor)
                probe.unlink()
        except OSError as error:
            raise _not_writable(self.path, error) from error


class HomeLock:
    """Holds the home for this process while the context is open. Raises HomeInUseError when another host holds it.

    The kernel lets go of the lock when the process ends, however it ends: a lock file that is left over means nothing.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        while self._descriptor is None:
            self._descriptor = self._try()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self) -> int | None:
        path = self._home.lock_file
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _not_writable(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Somebody may have removed the file while we took the lock: then the next host would lock another one.
            same = os.path.samestat(os.fstat(descriptor), path.stat())
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise HomeInUseError(
                f"A host runs on {self._home.path} already: {who}",
                hint="Use it as it is (crab status), stop it first, or give this one another --home.",
            ) from error
        except FileNotFoundError:
            same = False
        except OSError as error:
            os.close(descriptor)
            raise HomeError(f"{path} cannot be locked: {error.strerror or error}", hint=_MOVE_HINT) from error
        if not same:
            os.close(descriptor)
            return None
        return descriptor


def lock_holder(home: Home) -> int | None:
    """The process that holds the home now, or None: nobody does, or it cannot be told. For `crab doctor`."""
    try:
        descriptor = os.open(home.lock_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
    return None


def _make_folder(path: Path) -> None:
    try:
        # Folders above the home are nobody's secret; the home and all below it are.
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from error


def _not_writable(path: Path, error: OSError) -> HomeError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return HomeError(f"There is no space left for {path}", hint="Free some space on that disk.")
    return HomeError(
        f"The home cannot be written: {path}: {error.strerror or error}",
        hint=f"Give the user who runs crab the right to write there, or choose another folder with --home "
        f"or {HOME_VARIABLE}.",
    )
