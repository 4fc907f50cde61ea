"""Between the turn loop and the link: what is said goes after the files that it names, in order.

A message of the loop names files by their paths; the courier sends each file first, in chunks that the host
acknowledges, and puts the files' ids in the place of the paths. A file that cannot be sent costs itself only, and its
message says so.
"""

from __future__ import annotations

import binascii
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from hermitcrab_runner.digest import hasher
from hermitcrab_runner.logs import note
from hermitcrab_wire import frames
from hermitcrab_wire.limits import FILE_CHUNK_BYTES, FILE_WINDOW, MAX_FILE_BYTES

Outs = list[dict[str, Any]]


class _File:
    """One file on its way."""

    def __init__(self, key: str, descriptor: int, size: int) -> None:
        self.key, self.descriptor, self.size = key, descriptor, size
        self.sent = 0
        self.hash = hasher(b"")
        self.begun_anew = True
        """The host says next from where to go on."""
        self.ended = False


class Courier:
    def __init__(self, send: Callable[[frames.Frame], None], folder: str) -> None:
        """`folder`: to which paths are relative."""
        self._send, self._folder = send, folder
        self._lock = threading.RLock()
        self._queue: deque[frames.Out | frames.Complete] = deque()
        self._file: _File | None = None
        self._settled: dict[str, str | None] = {}
        """Of the message that is next: by the file's id why it could not be sent, or None when it was."""

    @property
    def waiting(self) -> int:
        """Messages that wait for files."""
        return len(self._queue)

    def send(self, frame: frames.Frame) -> None:
        """Send it, after what was said before it. Only what is said waits for files."""
        with self._lock:
            if isinstance(frame, (frames.Out, frames.Complete)) and (self._queue or any(_paths(_outs(frame)))):
                self._queue.append(frame)
                self._go_on()
            else:
                self._send(frame)

    def receive(self, frame: frames.Frame) -> bool:
        """Whether the frame was about a file, and is dealt with."""
        with self._lock:
            file = self._file
            match frame:
                case frames.Welcome() if file is not None:
                    # Another link, perhaps another host: it says what it has of the file.
                    file.begun_anew, file.ended = True, False
                    self._send(frames.FileBegin(id=file.key, bytes=file.size))
                case frames.FileReady() if file is not None and frame.id == file.key:
                    self._stream(file, frame.offset)
                    return True
                case frames.FileStored() if file is not None and frame.id == file.key:
                    self._settle(file, None)
                    return True
                case frames.Refused() if file is not None and frame.id == file.key:
                    self._settle(file, frame.text)
                    return True
                case frames.FileReady() | frames.FileStored():
                    return True
            return False

    def _go_on(self) -> None:
        while self._queue and self._file is None:
            frame = self._queue[0]
            outs = _outs(frame)
            missing = [(key, path) for key, path in _paths(outs) if key not in self._settled]
            if missing:
                self._begin(*missing[0])
                continue
            self._queue.popleft()
            said = [_with_ids(out, self._settled) for out in outs]
            self._settled.clear()
            self._send(_with_outs(frame, said))

    def _begin(self, key: str, path: str) -> None:
        try:
            descriptor = os.open(os.path.join(self._folder, path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            self._settled[key] = getattr(error, "strerror", None) or str(error)
            return
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
            os.close(descriptor)
            regular = stat.S_ISREG(found.st_mode)
            self._settled[key] = f"it has more than {MAX_FILE_BYTES:,} bytes" if regular else "it is no file"
            return
        self._file = _File(key, descriptor, found.st_size)
        self._send(frames.FileBegin(id=key, bytes=found.st_size))

    def _stream(self, file: _File, offset: int) -> None:
        """The host has so much of it: send more, never far ahead of what it has."""
        if file.begun_anew:
            file.begun_anew = False
            file.sent, file.hash = 0, hasher(b"")
            while file.sent < offset and self._read(file, min(FILE_CHUNK_BYTES, offset - file.sent)):
                pass
        while file.sent < file.size and file.sent - offset < FILE_WINDOW * FILE_CHUNK_BYTES:
            begin = file.sent
            data = self._read(file, FILE_CHUNK_BYTES)
            if not data:
                break  # It became shorter: the host finds that out at its end.
            self._send(
                frames.FileChunk(id=file.key, offset=begin, data=binascii.b2a_base64(data, newline=False).decode())
            )
        else:
            if file.sent < file.size or offset < file.size:
                return
        if not file.ended:
            file.ended = True
            self._send(frames.FileEnd(id=file.key, sha256=file.hash.hexdigest()))

    @staticmethod
    def _read(file: _File, most: int) -> bytes:
        data = os.pread(file.descriptor, min(most, file.size - file.sent), file.sent)
        file.hash.update(data)
        file.sent += len(data)
        return data

    def _settle(self, file: _File, why_not: str | None) -> None:
        if why_not is not None:
            note("file.not-sent", id=file.key, reason=why_not)
        os.close(file.descriptor)
        self._settled[file.key], self._file = why_not, None
        self._go_on()


def _outs(frame: frames.Out | frames.Complete) -> Outs:
    return [frame.to_json()] if isinstance(frame, frames.Out) else frame.outs


def _paths(outs: Outs) -> list[tuple[str, str]]:
    """Id and path of every file that is named."""
    return [(f"{out['id']}-{number}", path) for out in outs for number, path in enumerate(out.get("files") or ())]


def _with_ids(out: dict[str, Any], settled: dict[str, str | None]) -> dict[str, Any]:
    if not out.get("files"):
        return out
    content = dict(out["content"])
    keys = [f"{out['id']}-{number}" for number in range(len(out["files"]))]
    pairs = list(zip(keys, content.get("files", ()), strict=True))
    lost = [f"[{name} could not be sent: {settled[key]}]" for key, name in pairs if settled.get(key) is not None]
    content["files"] = [name for key, name in pairs if settled.get(key) is None]
    content["text"] = "\n".join(part for part in (content.get("text", ""), *lost) if part)
    changed = {**out, "content": content, "files": [key for key, _ in pairs if settled.get(key) is None]}
    if not content["files"]:
        del content["files"], changed["files"]
    return changed


def _with_outs(frame: frames.Out | frames.Complete, outs: Outs) -> frames.Frame:
    if isinstance(frame, frames.Out):
        return frames.Out(**{key: value for key, value in outs[0].items() if key != "type"})
    return frames.Complete(turn=frame.turn, ids=frame.ids, outs=outs, failed=frame.failed)
