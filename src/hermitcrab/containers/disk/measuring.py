"""How much lies in folders that an agent writes, while it writes: by descriptor, following no link, opening no file.

Whatever is moved or swapped meanwhile, nothing outside of the folders is looked at; at worst something is counted twice
or not at all, which a second look at a container that stands still puts right. All of it blocks; call it in a thread.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from hermitcrab.containers.disk.trees import DEPTH_AT_MOST
from hermitcrab.logic.workspace import BLOCK_BYTES, Allowance, Free, Usage

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = stat.S_IRUSR | stat.S_IXUSR

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def measure(roots: Sequence[Path], allowance: Allowance) -> Usage:
    """What the folders hold together, each file once however many names it has. Ends as soon as it is too much."""
    measuring = _Measuring(allowance)
    for root in roots:
        if measuring.is_done:
            break
        measuring.add(root)
    return Usage(
        parts=measuring.parts, files=measuring.files, too_deep=measuring.too_deep, closed=len(measuring.closed)
    )


def free(folder: Path) -> Free:
    """What is left on the folder's disk for those who are not the superuser."""
    found = os.statvfs(folder)
    return Free(bytes=found.f_bavail * found.f_frsize, files=found.f_favail)


class _Measuring:
    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self.parts: dict[str, int] = {}
        self.files = 0
        self.too_deep = False
        self.closed: set[int] = set()
        self._seen: set[int] = set()
        """Inodes of files that have more than one name."""
        self._bytes = 0

    @property
    def is_done(self) -> bool:
        most = self._allowance
        return bool(
            self.too_deep or (most.files and self.files > most.files) or (most.bytes and self._bytes > most.bytes)
        )

    def add(self, root: Path) -> None:
        before = self._bytes
        try:
            self._walk(os.open(root, _FOLDER))
        except FileNotFoundError:
            return  # Nothing was made yet.
        self.parts[str(root)] = self._bytes - before

    def _walk(self, top: int) -> None:
        """Folder by folder, each opened from the one that it lies in. Takes over `top`."""
        device = os.fstat(top).st_dev
        stack = [_Folder(top)]
        try:
            while stack and not self.is_done:
                entry = stack[-1].next()
                if entry is None:
                    stack.pop().close()
                elif (inner := self._count(entry, stack[-1].descriptor, device)) is not None:
                    stack.append(inner)
                    self.too_deep = len(stack) > DEPTH_AT_MOST
        finally:
            for folder in stack:
                folder.close()

    def _count(self, entry: os.DirEntry[str], folder: int, device: int) -> _Folder | None:
        """What was counted, if it is a folder to be looked into."""
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        if found.st_dev != device:
            return None  # Somebody has mounted something there; it takes no place of ours.
        self.files += 1
        if stat.S_ISDIR(found.st_mode):
            self._bytes += found.st_blocks * BLOCK_BYTES
            return self._opened(entry.name, folder, found.st_ino)
        if found.st_nlink == 1 or found.st_ino not in self._seen:
            self._bytes += found.st_blocks * BLOCK_BYTES
        if found.st_nlink > 1:
            self._seen.add(found.st_ino)
        return None

    def _opened(self, name: str, folder: int, inode: int) -> _Folder | None:
        try:
            return _Folder.open(name, folder)
        except PermissionError:
            self.closed.add(inode)
            return None
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise


class _Folder:
    """One that is being looked into."""

    def __init__(self, descriptor: int, mode: int | None = None) -> None:
        """`mode`: what it is to have again."""
        self.descriptor = descriptor
        self._mode = mode
        self._entries = os.scandir(descriptor)

    @classmethod
    def open(cls, name: str, folder: int) -> _Folder:
        """One of ours that its agent has closed is looked into all the same. Raises PermissionError for others'."""
        place = os.open(name, _PLACE, dir_fd=folder)
        try:
            mode = stat.S_IMODE(os.fstat(place).st_mode)
            is_closed = os.geteuid() != 0 and mode & _LOOK != _LOOK
            if is_closed:
                os.chmod(f"/proc/self/fd/{place}", mode | _LOOK)  # noqa: PTH101  # no path: what the descriptor holds
            return cls(os.open(f"/proc/self/fd/{place}", _FOLDER & ~os.O_NOFOLLOW), mode if is_closed else None)
        finally:
            os.close(place)

    def next(self) -> os.DirEntry[str] | None:
        return next(self._entries, None)

    def close(self) -> None:
        self._entries.close()
        if self._mode is not None:
            os.fchmod(self.descriptor, self._mode)
        os.close(self.descriptor)
