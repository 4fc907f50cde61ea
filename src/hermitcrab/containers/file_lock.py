"""Files between processes: a lock, which the kernel lets go of when its holder dies; and notes that are whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio

LOCK_PAUSE_S = 0.2


def write_note(path: Path, text: str) -> None:
    """Write a small file that is there whole or not at all, whenever this process or the machine ends."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.asynccontextmanager
async def locked(path: Path, progress: Callable[[str], object], waiting: str) -> AsyncIterator[None]:
    """Hold the lock file, made if it is not there. `waiting` is told once when another process has it."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    progress(waiting)
                told = True
                await anyio.sleep(LOCK_PAUSE_S)  # not a blocking wait in a thread: this one can be cancelled
        yield
    finally:
        os.close(descriptor)
