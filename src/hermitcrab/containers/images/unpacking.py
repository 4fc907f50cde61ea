"""An image as a folder, for bubblewrap: unpacked from an archive that nobody trusts. Used by `shelf.py`.

Whoever made the archive decides names, links, modes and sizes in it. So every path is walked by descriptors without
following a link, nothing but folders, plain files and links is made, no file keeps a right that another user's program
would give, and the whole is bounded. The host never runs or opens what was unpacked; containers see it read-only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hermitcrab.errors import EngineError, Failure

ENTRIES_AT_MOST = 1_000_000
DEPTH_AT_MOST = 100
NAME_BYTES_AT_MOST = 255
LINK_BYTES = 4096
NAMED_AT_MOST = 10

_COPY_BYTES = 1024 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Unpacked:
    entries: int
    size_bytes: int
    left_out: tuple[str, ...]
    """Names of the first entries that no image may have."""


def unpack(archive: IO[bytes], folder: Path, *, bytes_at_most: int, entries_at_most: int = ENTRIES_AT_MOST) -> Unpacked:
    """Unpack the archive into `folder`, which must be there and empty. Raises EngineError; blocks."""
    root = os.open(folder, _FOLDER)
    try:
        return _Unpacking(root, bytes_at_most, entries_at_most).run(archive)
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise EngineError(Failure.IMAGE_UNAVAILABLE, f"The archive of the image is damaged: {error}") from error
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise EngineError(Failure.RESOURCES_EXHAUSTED, f"There is no space left for the image in {folder}") from error
    finally:
        os.close(root)


class _Unpacking:
    def __init__(self, root: int, bytes_at_most: int, entries_at_most: int) -> None:
        self._root = root
        self._bytes_at_most, self._entries_at_most = bytes_at_most, entries_at_most
        self._size = 0
        self._left_out: list[str] = []
        self._modes: dict[str, int] = {}
        """Of folders; set last, as a folder that may not be written could not be filled."""

    def run(self, archive: IO[bytes]) -> Unpacked:
        count = 0
        with tarfile.open(fileobj=archive, mode="r|") as tar:
            for entry in tar:
                count += 1
                if count > self._entries_at_most:
                    raise _too_much(f"more than {self._entries_at_most} entries")
                if not self._place(tar, entry) and not _is_device_file(entry) and len(self._left_out) < NAMED_AT_MOST:
                    self._left_out.append(entry.name[:200])
        for path, mode in sorted(self._modes.items(), reverse=True):
            with self._folder(path.split("/")) as descriptor:
                if descriptor is not None:
                    os.fchmod(descriptor, mode)
        return Unpacked(count, self._size, tuple(self._left_out))

    def _place(self, tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bool:
        """Whether the entry was made. What is not made is no error: an image is no worse without its devices."""
        parts = _parts(entry.name)
        if parts is None:
            return False
        if not parts:
            return entry.isdir()  # the root itself
        *above, name = parts
        with self._folder(above, make=True) as parent:
            if parent is None:
                return False
            try:
                if entry.isdir():
                    return self._make_folder(parent, parts, entry)
                if entry.isreg():
                    return self._make_file(tar, parent, name, entry)
                if entry.issym():
                    return self._make_link(parent, name, entry)
                return entry.islnk() and self._make_hard_link(parent, name, entry)
            except FileExistsError:
                return False  # two entries of one name: the first one counts

    def _make_folder(self, parent: int, parts: list[str], entry: tarfile.TarInfo) -> bool:
        with contextlib.suppress(FileExistsError):
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        if not stat.S_ISDIR(os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode):
            return False
        # We must be able to read it, to show it to containers, and to remove it again.
        self._modes["/".join(parts)] = (entry.mode & 0o1777) | 0o700
        return True

    def _make_file(self, tar: tarfile.TarFile, parent: int, name: str, entry: tarfile.TarInfo) -> bool:
        self._size += entry.size
        if self._size > self._bytes_at_most:
            raise _too_much(f"more than {self._bytes_at_most // 1024**2} MB")
        content = tar.extractfile(entry)
        if content is None:
            return False
        descriptor = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        with os.fdopen(descriptor, "wb") as file:
            shutil.copyfileobj(content, file, _COPY_BYTES)
            os.fchmod(descriptor, (entry.mode & 0o777) | 0o400)  # no setuid, no setgid
        return True

    def _make_link(self, parent: int, name: str, entry: tarfile.TarInfo) -> bool:
        # Wherever it leads: it is followed in a container only, where nothing lies outside.
        if "\0" in entry.linkname or not 0 < len(os.fsencode(entry.linkname)) < LINK_BYTES:
            return False
        os.symlink(entry.linkname, name, dir_fd=parent)
        return True

    def _make_hard_link(self, parent: int, name: str, entry: tarfile.TarInfo) -> bool:
        target = _parts(entry.linkname)
        if not target:
            return False
        with self._folder(target[:-1]) as other:
            if other is None:
                return False
            try:
                found = os.stat(target[-1], dir_fd=other, follow_symlinks=False)
            except FileNotFoundError:
                return False
            if not stat.S_ISREG(found.st_mode):
                return False
            os.link(target[-1], name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
        return True

    @contextlib.contextmanager
    def _folder(self, parts: list[str], *, make: bool = False) -> Iterator[int | None]:
        """The folder at that path below the root, no link followed; None if something else is on the way."""
        here: int | None = os.dup(self._root)
        try:
            for part in parts:
                inner = _inside(here, part, make=make) if here is not None else None
                if here is not None:
                    os.close(here)
                here = inner
            yield here
        finally:
            if here is not None:
                os.close(here)


def _inside(folder: int, name: str, *, make: bool) -> int | None:
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=folder)
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            raise
        return None


def _is_device_file(entry: tarfile.TarInfo) -> bool:
    """Every archive of a root file system has some in /dev; the sandbox has its own."""
    return entry.isdev() and "dev" in (_parts(entry.name) or [])[:1]


def _parts(name: str) -> list[str] | None:
    """The path's parts; None for one that leads out, or that no file system takes."""
    if name.startswith("/") or "\0" in name:
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if len(parts) > DEPTH_AT_MOST or ".." in parts:
        return None
    if any(len(part.encode("utf-8", "surrogateescape")) > NAME_BYTES_AT_MOST for part in parts):
        return None
    return parts


def _too_much(what: str) -> EngineError:
    return EngineError(Failure.RESOURCES_EXHAUSTED, f"The image has {what} and was not unpacked")
