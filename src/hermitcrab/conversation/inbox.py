"""Files that people send: laid into their session's inbox, which containers see and cannot write.

Nothing of a sender's choice becomes part of a path: a message's folder is named after a digest of its id, its files
after their place, with the ending that tells programs what they are. A folder is there whole, or not at all. Methods
block; call them in a thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from hermitcrab.errors import BadInputError, DiskFullError, HermitcrabError
from hermitcrab.logic.file_names import shown_name
from hermitcrab.model.messages import InFile
from hermitcrab_wire.limits import MAX_FILE_BYTES

BYTES_AT_MOST = 256 * 1024 * 1024
"""Of one session. Beyond, the files of its oldest messages go, as far as those are answered."""
FILES_AT_MOST = 1024

_PART = ".part"
_COPY_BYTES = 1024 * 1024
_ENDING = re.compile(r"\.[a-z0-9]{1,10}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Attachment = dict[str, Any]


class Inbox:
    def __init__(self, folder: Path, *, bytes_at_most: int = BYTES_AT_MOST, files_at_most: int = FILES_AT_MOST) -> None:
        self._folder, self._bytes_at_most, self._files_at_most = folder, bytes_at_most, files_at_most

    def stage(self, message_id: str, files: Sequence[InFile], *, unanswered: Collection[str]) -> list[Attachment]:
        """Lay a message's files in, and return them as its row names them. The same message again changes nothing.

        `unanswered`: ids of the messages whose files must stay. Raises BadInputError when there is no room for these.
        """
        name = folder_of(message_id)
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            inbox = os.open(self._folder, _FOLDER)
            try:
                if not _exists(inbox, name):
                    self._make_room(sum(each.bytes for each in files), len(files), unanswered)
                    self._lay(inbox, name, files)
            finally:
                os.close(inbox)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DiskFullError(
                    "The disk is full, and nothing of the message was kept.",
                    hint="Free some space and send it again.",
                ) from error
            raise HermitcrabError(f"The files could not be kept: {error.strerror or error}.") from error
        return [
            {
                "type": each.kind,
                "name": shown_name(each.name),
                "localPath": f"inbox/{name}/{_name_of(number, each)}",
                "bytes": each.bytes,
            }
            for number, each in enumerate(files, 1)
        ]

    def _lay(self, inbox: int, name: str, files: Sequence[InFile]) -> None:
        part = f"{name}{_PART}"
        shutil.rmtree(self._folder / part, ignore_errors=True)
        os.mkdir(part, mode=0o755, dir_fd=inbox)
        folder = os.open(part, _FOLDER, dir_fd=inbox)
        try:
            os.fchmod(folder, 0o755)
            for number, each in enumerate(files, 1):
                _copy(each, folder, _name_of(number, each))
            os.fsync(folder)
        finally:
            os.close(folder)
        os.rename(part, name, src_dir_fd=inbox, dst_dir_fd=inbox)
        os.fsync(inbox)

    def _make_room(self, wanted_bytes: int, wanted_files: int, unanswered: Collection[str]) -> None:
        held = [(each.stat().st_mtime_ns, each, *_measure(each)) for each in self._folder.iterdir() if each.is_dir()]
        total, count = sum(size for _, _, size, _ in held), sum(number for _, _, _, number in held)
        kept = {folder_of(each) for each in unanswered}
        for _, folder, size, number in sorted(held):
            if total + wanted_bytes <= self._bytes_at_most and count + wanted_files <= self._files_at_most:
                return
            if folder.name not in kept:
                shutil.rmtree(folder)
                total, count = total - size, count - number
        if total + wanted_bytes > self._bytes_at_most or count + wanted_files > self._files_at_most:
            raise BadInputError(
                f"The files of messages that wait for an answer fill the inbox ({self._bytes_at_most:,} bytes).",
                hint="Send these again when the agent has answered.",
            )


def folder_of(message_id: str) -> str:
    """The name of a message's folder in its session's inbox."""
    return hashlib.sha256(message_id.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def check(files: Sequence[InFile], *, files_at_most: int) -> None:
    """Raises BadInputError for more than a message may have."""
    if len(files) > files_at_most:
        raise BadInputError(f"A message may have {files_at_most} files.", hint="Send them in several messages.")
    for each in files:
        if not 0 <= each.bytes <= MAX_FILE_BYTES:
            raise BadInputError(
                f"{shown_name(each.name)} has {each.bytes:,} bytes; a file may have {MAX_FILE_BYTES:,}.",
                hint="Send less of it, or put it into the agent's folder.",
            )


def _name_of(number: int, file: InFile) -> str:
    ending = Path(shown_name(file.name)).suffix.lower()
    return f"{number}{ending if _ENDING.fullmatch(ending) else ''}"


def _copy(file: InFile, folder: int, name: str) -> None:
    """A plain file of just that size, or an error."""
    source = os.open(file.path, _READ)
    try:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise BadInputError(f"{shown_name(file.name)} is no plain file.")
        target = os.open(name, _MAKE, 0o644, dir_fd=folder)
        try:
            os.fchmod(target, 0o644)
            left = file.bytes + 1
            while left > 0 and (data := os.read(source, min(left, _COPY_BYTES))):
                left -= len(data)
                while data:
                    data = data[os.write(target, data) :]
            if left != 1:
                raise BadInputError(f"{shown_name(file.name)} changed while it was taken in.", hint="Send it again.")
            os.fsync(target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _measure(folder: Path) -> tuple[int, int]:
    """Bytes and files directly in it."""
    sizes = [each.stat(follow_symlinks=False).st_size for each in os.scandir(folder)]
    return sum(sizes), len(sizes)
