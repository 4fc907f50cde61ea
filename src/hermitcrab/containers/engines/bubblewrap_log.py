"""The log of a bubblewrap container: one file that the container appends to, with no process in between.

So it needs no host to be written, and it survives every host. The other side of this is that only a host can keep it
small: see `trim`.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_BLOCK_BYTES = 512
"""The unit of `st_blocks`, whatever the file system's own is."""

_TAIL_AT_MOST = 1024 * 1024
_LINE_AT_MOST = 16 * 1024


def tail(path: str, lines: int) -> list[str]:
    """The last lines, oldest first, of at most 1 MiB. What cannot be read as UTF-8 is replaced."""
    if lines <= 0:
        return []
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        length = min(size, _TAIL_AT_MOST, lines * _LINE_AT_MOST)
        content = os.pread(descriptor, length, size - length)
    finally:
        os.close(descriptor)
    found = content.replace(b"\0", b"").decode(errors="replace").split("\n")
    if found[-1] == "":
        found.pop()
    if length < size and len(found) > 1:
        # Begins in the middle of a line.
        found = found[1:]
    return found[-lines:]


def trim(path: str, limit: int) -> bool:
    """Give the disk back all but the last half of `limit`, when the log holds more; whether it did.

    The head becomes a hole: the size stays, so that nothing that is written meanwhile is lost or torn.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_blocks * _BLOCK_BYTES <= limit:
            return False
        head = max(0, found.st_size - limit // 2)
        flags = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if _fallocate()(descriptor, flags, 0, head) != 0:
            if ctypes.get_errno() not in {errno.EOPNOTSUPP, errno.ENOSYS}:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
            # A file system without holes: all of it, as its writer could not be stopped while a part is copied.
            os.ftruncate(descriptor, 0)
        return True
    finally:
        os.close(descriptor)


@cache
def _fallocate() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return function
