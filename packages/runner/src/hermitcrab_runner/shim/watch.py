"""Tells when the foreign runner has changed its files, as soon as the kernel knows.

By inotify, which wakes nobody while nothing happens. Its watches are counted for all containers of a user together, so
that there may be none left; then the files' times are looked at a few times a second.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time
from collections.abc import Callable

from hermitcrab_runner.logs import note
from hermitcrab_runner.shim.layout import HEARTBEAT, OUTBOUND

LOOK_EVERY_S = 0.25

_IN_MODIFY, _IN_ATTRIB = 0x2, 0x4
_IN_MOVED_TO, _IN_CREATE, _IN_DELETE, _IN_Q_OVERFLOW = 0x80, 0x100, 0x200, 0x4000
_MASK = _IN_MODIFY | _IN_ATTRIB | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
"""Not the closing of a file that was open for writing: some runners open theirs at every look, and write nothing."""
_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 * 1024


class Changed:
    """The runner's files have changed."""


class Watch:
    """Calls `changed` from a thread of its own; not again before `look` was called."""

    def __init__(self, folder: str, changed: Callable[[], None]) -> None:
        self._folder = folder
        self._changed = changed
        self._told = threading.Event()

    def start(self) -> None:
        descriptor = _watch(self._folder)
        work = self._look_again if descriptor is None else lambda: self._listen(descriptor)
        threading.Thread(target=work, name="watch", daemon=True).start()

    def look(self) -> None:
        """Whoever was told looks now: what changes from here on is told again."""
        self._told.clear()

    def _tell(self) -> None:
        if not self._told.is_set():
            self._told.set()
            self._changed()

    def _listen(self, descriptor: int) -> None:
        while True:
            if any(_concerns(name) for name in _names(os.read(descriptor, _READ_BYTES))):
                self._tell()

    def _look_again(self) -> None:
        note("watch.by-looking", folder=self._folder)
        before = self._times()
        while True:
            time.sleep(LOOK_EVERY_S)
            if (now := self._times()) != before:
                before = now
                self._tell()

    def _times(self) -> list[tuple[int, int] | None]:
        return [_time(f"{self._folder}/{name}") for name in (OUTBOUND, f"{OUTBOUND}-journal", HEARTBEAT)]


def _watch(folder: str) -> int | None:
    """A descriptor from which changes in the folder can be read; None: the kernel gives none."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = int(library.inotify_init1(os.O_CLOEXEC))
    if descriptor < 0:
        return None
    if library.inotify_add_watch(descriptor, os.fsencode(folder), _MASK) < 0:
        os.close(descriptor)
        return None
    return descriptor


def _names(events: bytes) -> list[str | None]:
    """Which files the events are about; None: some were lost."""
    names: list[str | None] = []
    at = 0
    while at + _EVENT.size <= len(events):
        _, mask, _, length = _EVENT.unpack_from(events, at)
        at += _EVENT.size
        name = events[at : at + length].rstrip(b"\0")
        at += length
        names.append(None if mask & _IN_Q_OVERFLOW else os.fsdecode(name))
    return names


def _concerns(name: str | None) -> bool:
    return name is None or name == HEARTBEAT or name.startswith(OUTBOUND)


def _time(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
