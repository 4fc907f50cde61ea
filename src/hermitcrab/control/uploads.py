"""Files that a client of the control socket is sending: kept, part by part, until a message names them."""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from hermitcrab.errors import BadInputError, DiskFullError, HermitcrabError, NotFoundError
from hermitcrab.model.messages import InFile
from hermitcrab_wire.limits import FILE_CHUNK_BYTES, MAX_FILE_BYTES

UPLOADS_AT_MOST = 16
"""Beyond, the one that was not touched for longest is dropped. Its client hears of that, and sends it again."""

_READ_BYTES = 1024 * 1024


class Uploads:
    """Methods block; call them in a thread."""

    def __init__(self, folder: Path) -> None:
        """`folder` is this class's own, and is emptied by nobody while the host runs."""
        self._folder = folder
        self._turn = threading.Lock()
        self._known: OrderedDict[str, int] = OrderedDict()
        """The size that was announced, by the client's id."""

    def add(self, key: str, size: int, offset: int, data: str) -> int:
        """Take a part in. Returns how much there is now: the next part begins there, whatever this one was."""
        if not 0 <= size <= MAX_FILE_BYTES:
            raise BadInputError(f"A file may have {MAX_FILE_BYTES:,} bytes; this one has {size:,}.")
        try:
            part = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadInputError("A part of a file is not Base64.") from error
        if len(part) > FILE_CHUNK_BYTES:
            raise BadInputError(f"A part of a file may have {FILE_CHUNK_BYTES:,} bytes.")
        with self._turn:
            if self._known.setdefault(key, size) != size:
                raise BadInputError("A file has another size than it was said to have.")
            self._known.move_to_end(key)
            while len(self._known) > UPLOADS_AT_MOST:
                self._drop(next(iter(self._known)))
            try:
                return self._write(key, size, offset, part)
            except OSError as error:
                if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                    raise HermitcrabError(f"The file cannot be kept: {error.strerror or error}.") from error
                self._drop(key)
                raise DiskFullError(
                    "The disk is full, and nothing of the message was kept.", hint="Free some space and send it again."
                ) from error

    def _write(self, key: str, size: int, offset: int, part: bytes) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path(key), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            there = os.fstat(descriptor).st_size
            if offset == there and offset + len(part) <= size:
                written = 0
                while written < len(part):
                    written += os.pwrite(descriptor, part[written:], offset + written)
                there += written
        finally:
            os.close(descriptor)
        return there

    def whole(self, key: str, name: str, sha256: str) -> InFile:
        """A file that is here as it was announced. Raises NotFoundError for any other: it is to be sent again."""
        with self._turn:
            size = self._known.get(key)
            path = self._path(key)
            if size is None or not path.is_file():
                raise NotFoundError("A file of this message is not here.", hint="Send it again.")
            if _digest(path) != sha256 or path.stat().st_size != size:
                self._drop(key)
                raise NotFoundError("A file of this message is not as it was announced.", hint="Send it again.")
            return InFile(name=name, path=path, bytes=size)

    def drop(self, keys: Iterable[str]) -> None:
        """Their message is kept, and has copies."""
        with self._turn:
            for each in keys:
                self._drop(each)

    def _drop(self, key: str) -> None:
        self._known.pop(key, None)
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()
