"""Files of the person at the terminal: opened to be sent to an agent, and saved when an agent sends some.

An agent writes its own folders, and people send files from there. No link is followed in them, so that what is sent is
what the path says. What an agent sends is saved under a name of ours beside what is there, and replaces nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermitcrab.errors import BadInputError, HermitcrabError
from hermitcrab.logic.file_names import shown_name
from hermitcrab.settings.home import Home
from hermitcrab_wire.limits import MAX_FILE_BYTES, MAX_FILES_IN_A_MESSAGE

_PATH_HINT = "Give the path of a file that you may read."

SAVED_BYTES_AT_MOST = 1024 * 1024 * 1024
"""In one folder for files of agents: beyond, nothing is saved there until somebody makes room."""

NAMESAKES_AT_MOST = 1000

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file that is open, to be sent."""

    descriptor: int
    name: str
    size: int
    sha256: str

    def part(self, offset: int, most: int) -> bytes:
        return os.pread(self.descriptor, min(most, self.size - offset), offset)


@contextmanager
def opened(paths: Sequence[str], home: Home) -> Iterator[list[LocalFile]]:
    """The files at these paths. Raises BadInputError for what is no plain file, too large, or behind a link."""
    if len(paths) > MAX_FILES_IN_A_MESSAGE:
        raise BadInputError(f"A message may have {MAX_FILES_IN_A_MESSAGE} files.", hint="Send the others after it.")
    with ExitStack() as stack:
        yield [_kept_open(stack, path, home) for path in paths]


def _kept_open(stack: ExitStack, path: str, home: Home) -> LocalFile:
    file = _open(path, home)
    stack.callback(os.close, file.descriptor)
    return file


def _open(given: str, home: Home) -> LocalFile:
    if not given or "\0" in given:
        raise BadInputError(
            "A file has a path that is not empty and has no NUL in it.", hint="crab chat --file report.pdf TEXT"
        )
    path = Path(given).expanduser().absolute()
    try:
        descriptor = _descriptor(path, home)
    except OSError as error:
        if error.errno == errno.ELOOP or path.is_symlink():
            raise BadInputError(
                f"{given} is, or is behind, a symbolic link.", hint="Give the path of the file itself."
            ) from error
        raise BadInputError(f"{given} cannot be read: {error.strerror or error}.", hint=_PATH_HINT) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BadInputError(f"{given} is no plain file.", hint="Pack a folder first, for example with tar.")
        if found.st_size > MAX_FILE_BYTES:
            raise BadInputError(
                f"{given} has {found.st_size:,} bytes; a file may have {MAX_FILE_BYTES:,}.",
                hint="Put it into the agent's folder instead.",
            )
        digest, size = hashlib.sha256(), 0
        while data := os.pread(descriptor, min(_COPY_BYTES, MAX_FILE_BYTES + 1 - size), size):
            digest.update(data)
            size += len(data)
    except OSError as error:
        os.close(descriptor)
        raise BadInputError(f"{given} cannot be read: {error.strerror or error}.", hint=_PATH_HINT) from error
    except BaseException:
        os.close(descriptor)
        raise
    return LocalFile(descriptor, shown_name(path.name), size, digest.hexdigest())


def _descriptor(path: Path, home: Home) -> int:
    """In the home, where agents write, no part of the path may be a link; elsewhere only the file itself may not."""
    clean = Path(os.path.normpath(path))
    if not clean.is_relative_to(home.path):
        return os.open(path, _READ)
    here = os.open(home.path, _FOLDER)
    try:
        *folders, name = clean.relative_to(home.path).parts or (".",)
        for each in folders:
            inner = os.open(each, _FOLDER, dir_fd=here)
            os.close(here)
            here = inner
        return os.open(name, _READ, dir_fd=here)
    except NotADirectoryError as error:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
    finally:
        os.close(here)


def save(folder: Path, file: dict[str, Any]) -> Path | None:
    """Copy a file that an agent sent into `folder`, and return where it is. None: another terminal has it.

    Raises HermitcrabError when it could not be saved; the message then waits.
    """
    name, size = shown_name(str(file.get("name"))), int(file.get("bytes") or 0)
    try:
        source = os.open(str(file.get("path")), _READ)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HermitcrabError(
            f"{name} could not be read: {error.strerror or error}.", hint="It comes again when this is mended."
        ) from error
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_room(folder, size)
        target, path = _make(folder, name)
        try:
            with os.fdopen(target, "wb") as written:
                digest = hashlib.sha256()
                while data := os.read(source, _COPY_BYTES):
                    digest.update(data)
                    written.write(data)
                written.flush()
                os.fsync(written.fileno())
            if digest.hexdigest() != file.get("sha256"):
                raise HermitcrabError(f"{name} is not what the agent sent.", hint="It comes again; nothing was saved.")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise HermitcrabError(
            f"{name} could not be saved in {folder}: {error.strerror or error}.",
            hint="It comes again when this is mended.",
        ) from error
    finally:
        os.close(source)
    return path


def _check_room(folder: Path, size: int) -> None:
    held = sum(each.stat(follow_symlinks=False).st_size for each in os.scandir(folder))
    if held + size > SAVED_BYTES_AT_MOST:
        raise HermitcrabError(
            f"{folder} has no room for {size:,} bytes: agents' files there may have {SAVED_BYTES_AT_MOST:,} in all.",
            hint="Move some of them elsewhere; the message comes again.",
        )


def _make(folder: Path, name: str) -> tuple[int, Path]:
    """A new file of that name, or with a number in it."""
    stem, ending = os.path.splitext(name)  # noqa: PTH122  # a name, not a path
    for number in range(1, NAMESAKES_AT_MOST + 1):
        path = folder / (name if number == 1 else f"{stem} ({number}){ending}")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(path, flags, 0o600), path
        except FileExistsError:
            continue
    raise HermitcrabError(f"{folder} has {NAMESAKES_AT_MOST:,} files called {name}.", hint="Move some of them away.")
