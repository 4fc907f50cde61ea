"""Files that a runner sends: taken in as a bounded stream, and kept where no container sees them.

What is on the disk is all that there is to know: a file under way is `<handle>.part` and can be gone on with after a
broken link or another host; a whole one is `<handle>`. The handle is the host's own, made from the runner's id, so that
nothing of an agent's choice ever becomes part of a path. Methods block; call them in a thread.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hermitcrab.logic.file_names import shown_name
from hermitcrab.model.ids import Generation
from hermitcrab.model.messages import OutFile
from hermitcrab_wire import frames
from hermitcrab_wire.codec import WireError
from hermitcrab_wire.limits import (
    FILE_CHUNK_BYTES,
    MAX_FILE_BYTES,
    MAX_FILES_UNDER_WAY,
    MIN_FILE_CHUNK_BYTES,
)

STORED_BYTES_AT_MOST = 256 * 1024 * 1024
"""Of one session: files under way, and whole ones that were not delivered yet."""
STORED_FILES_AT_MOST = 256

_PART = ".part"
_READ_BYTES = 1024 * 1024

Reply = frames.FileReady | frames.FileStored | frames.Refused


@dataclass(slots=True)
class _Upload:
    handle: str
    size: int
    received: int


class Uploads:
    """For one generation of a session's container."""

    def __init__(self, folder: Path, generation: Generation, *, bytes_at_most: int = STORED_BYTES_AT_MOST) -> None:
        self._folder, self._generation, self._bytes_at_most = folder, generation, bytes_at_most
        self._turn = threading.Lock()
        """A link that was cut may still be at its last frame when the next one begins."""
        self._under_way: dict[str, _Upload] = {}
        self._whole: dict[str, tuple[int, str]] = {}
        """Size and SHA-256 of whole files, by the runner's id, as far as this host has looked at them."""

    def handle(self, frame: frames.FileBegin | frames.FileChunk | frames.FileEnd) -> Reply | None:
        """Act on one frame. Raises WireError when it breaks the contract."""
        try:
            with self._turn:
                match frame:
                    case frames.FileBegin():
                        return self._begin(frame)
                    case frames.FileChunk():
                        return self._chunk(frame)
                    case frames.FileEnd():
                        return self._end(frame)
        except OSError as error:
            self._give_up(frame.id)
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            code, text = (
                ("disk-full", "the host's disk is full") if full else ("not-stored", "the host could not keep it")
            )
            return frames.Refused(code=code, text=text, id=frame.id)

    def take(self, ids: Sequence[str], names: Sequence[str]) -> tuple[OutFile, ...] | None:
        """The whole files of these ids, under these names; None when one of them is not there."""
        found: list[OutFile] = []
        for key, name in zip(ids, names, strict=True):
            handle = self._handle(key)
            if key not in self._whole:
                try:
                    self._whole[key] = _measure(self._folder / handle)
                except FileNotFoundError:
                    return None
            size, digest = self._whole[key]
            found.append(OutFile(handle=handle, name=shown_name(name), bytes=size, sha256=digest))
        return tuple(found)

    def sweep(self, kept: Collection[str]) -> int:
        """Remove what no message waits for any more: all but handles in `kept` and this generation's own."""
        removed = 0
        for path in self._files():
            own = path.name.startswith(f"{self._generation}-")
            if path.name not in kept and not own:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _begin(self, frame: frames.FileBegin) -> Reply:
        if frame.bytes < 0:
            raise WireError("malformed", "a file of a negative size")
        if frame.bytes > MAX_FILE_BYTES:
            return _refused(frame.id, "too-large", f"a file may have {MAX_FILE_BYTES:,} bytes")
        handle = self._handle(frame.id)
        if (self._folder / handle).exists():
            return frames.FileStored(id=frame.id)
        self._under_way.pop(frame.id, None)
        if len(self._under_way) >= MAX_FILES_UNDER_WAY:
            return _refused(frame.id, "too-many", f"{MAX_FILES_UNDER_WAY} files may be under way")
        part = self._folder / f"{handle}{_PART}"
        received = part.stat().st_size if part.exists() else 0
        if received > frame.bytes:
            part.unlink()
            received = 0
        promised = sum(each.size - each.received for each in self._under_way.values())
        sizes = [path.stat().st_size for path in self._files()]
        if len(sizes) >= STORED_FILES_AT_MOST:
            return _refused(frame.id, "quota", f"a session may have {STORED_FILES_AT_MOST} undelivered files")
        if sum(sizes) + promised + frame.bytes - received > self._bytes_at_most:
            return _refused(frame.id, "quota", f"a session's undelivered files may have {self._bytes_at_most:,} bytes")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(part, os.O_WRONLY | os.O_CREAT):
            pass
        self._under_way[frame.id] = _Upload(handle, frame.bytes, received)
        return frames.FileReady(id=frame.id, offset=received)

    def _chunk(self, frame: frames.FileChunk) -> Reply | None:
        upload = self._under_way.get(frame.id)
        if upload is None:
            return None  # It was refused, and the runner had sent this before it heard of that.
        try:
            data = base64.b64decode(frame.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise WireError("malformed", "a chunk of a file that is no Base64") from error
        if frame.offset != upload.received:
            # What was under way when the link broke comes twice.
            return frames.FileReady(id=frame.id, offset=upload.received)
        left = upload.size - upload.received
        if not MIN_FILE_CHUNK_BYTES <= len(data) <= FILE_CHUNK_BYTES and not (
            0 < len(data) == left <= FILE_CHUNK_BYTES
        ):
            raise WireError("malformed", f"a chunk of {len(data)} bytes")
        if len(data) > left:
            raise WireError("malformed", "more of a file than was announced")
        with _opened(self._folder / f"{upload.handle}{_PART}", os.O_WRONLY) as descriptor:
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], upload.received + written)
        upload.received += len(data)
        return frames.FileReady(id=frame.id, offset=upload.received)

    def _end(self, frame: frames.FileEnd) -> Reply | None:
        if (self._folder / self._handle(frame.id)).exists():
            return frames.FileStored(id=frame.id)
        upload = self._under_way.get(frame.id)
        if upload is None:
            return None
        if upload.received != upload.size:
            self._give_up(frame.id)
            return _refused(frame.id, "truncated", f"{upload.received:,} of {upload.size:,} bytes came")
        part = self._folder / f"{upload.handle}{_PART}"
        _, digest = _measure(part)
        if digest != frame.sha256.lower():
            self._give_up(frame.id)
            return _refused(frame.id, "wrong-hash", "what came is not what was sent")
        with _opened(part, os.O_RDONLY) as descriptor:
            os.fsync(descriptor)
        part.rename(self._folder / upload.handle)
        with _opened(self._folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            os.fsync(descriptor)
        self._whole[frame.id] = upload.size, digest
        del self._under_way[frame.id]
        return frames.FileStored(id=frame.id)

    def _give_up(self, key: str) -> None:
        upload = self._under_way.pop(key, None)
        if upload is not None:
            (self._folder / f"{upload.handle}{_PART}").unlink(missing_ok=True)

    def _handle(self, key: str) -> str:
        return f"{self._generation}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"

    def _files(self) -> Iterator[Path]:
        if self._folder.is_dir():
            yield from self._folder.iterdir()


def _refused(key: str, code: str, text: str) -> frames.Refused:
    return frames.Refused(code=code, text=text, id=key)


def _measure(path: Path) -> tuple[int, str]:
    """Size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with _opened(path, os.O_RDONLY) as descriptor:
        while data := os.read(descriptor, _READ_BYTES):
            digest.update(data)
            size += len(data)
    return size, digest.hexdigest()


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
