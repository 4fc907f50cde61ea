"""Files that the foreign runner sends: taken from outbox/<message>/ by descriptor, and streamed to the host in turn."""

from __future__ import annotations

import base64
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hermitcrab_runner.digest import sha256_of, turn_id
from hermitcrab_runner.shim.layout import OUTBOX, Workspace
from hermitcrab_wire import frames
from hermitcrab_wire.limits import FILE_CHUNK_BYTES, MAX_FILE_BYTES


class OutFile(NamedTuple):
    """A file that is open, and what is known of it."""

    id: str
    name: str
    descriptor: int
    size: int


class UnusableError(Exception):
    """A file is not there, or is not what may be sent."""


def open_file(workspace: Workspace, message: str, name: str) -> OutFile:
    """Raises UnusableError for anything but a plain file of bearable size in the message's own folder."""
    for part in (message, name):
        if part in {"", ".", ".."} or "/" in part or "\0" in part:
            raise UnusableError(f"{part[:80]!r} is no name of a file")
    folder = -1
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        outbox = os.open(workspace.path(OUTBOX), flags | os.O_DIRECTORY)
        try:
            folder = os.open(message, flags | os.O_DIRECTORY, dir_fd=outbox)
        finally:
            os.close(outbox)
        descriptor = os.open(name, flags | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise UnusableError(f"{name[:80]} cannot be read: {error.strerror}") from error
    finally:
        if folder >= 0:
            os.close(folder)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        raise UnusableError(f"{name[:80]} is no plain file")
    if found.st_size > MAX_FILE_BYTES:
        os.close(descriptor)
        raise UnusableError(f"{name[:80]} has {found.st_size:,} bytes, and may have {MAX_FILE_BYTES:,}")
    return OutFile(turn_id(f"{message}/{name}").replace("turn-", "file-"), name, descriptor, found.st_size)


def clear(workspace: Workspace, message: str) -> None:
    """Drop a message's folder after it was passed on. What cannot be removed stays: it is sent no second time."""
    if message not in {"", ".", ".."} and "/" not in message:
        shutil.rmtree(workspace.path(f"{OUTBOX}/{message}"), ignore_errors=True)


class Upload:
    """One file on its way. The host says from where on it wants it: also after a broken link."""

    def __init__(self, file: OutFile, send: Callable[[frames.Frame], None]) -> None:
        self.file = file
        self._send = send
        self.begin()

    def begin(self) -> None:
        self._send(frames.FileBegin(id=self.file.id, bytes=self.file.size))

    def ready(self, offset: int) -> None:
        """The host has so much of it."""
        if offset < self.file.size:
            data = os.pread(self.file.descriptor, FILE_CHUNK_BYTES, offset)
            # A file that has become shorter is found out by the host.
            data = data or b"\0" * min(FILE_CHUNK_BYTES, self.file.size - offset)
            text = base64.b64encode(data[: self.file.size - offset]).decode()
            self._send(frames.FileChunk(id=self.file.id, offset=offset, data=text))
        else:
            self._send(frames.FileEnd(id=self.file.id, sha256=sha256_of(self._parts())))

    def close(self) -> None:
        os.close(self.file.descriptor)

    def _parts(self) -> Iterator[bytes]:
        return (
            os.pread(self.file.descriptor, min(FILE_CHUNK_BYTES, self.file.size - at), at)
            for at in range(0, self.file.size, FILE_CHUNK_BYTES)
        )
