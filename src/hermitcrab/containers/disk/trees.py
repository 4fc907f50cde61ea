"""Folders that an agent wrote, by descriptor: walked for a copy, filled from one, removed.

No link is followed and no special file is opened (law 4). Whoever calls this has made sure that no container can write
there meanwhile. All of it blocks; call it in a thread.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self, TypedDict

from hermitcrab.errors import BadInputError

DEPTH_AT_MOST = 200
"""Folders in folders. Each takes a descriptor while it is walked, and nobody's own work is nested like that."""

NAME_BYTES_AT_MOST = 255
LINK_BYTES_AT_MOST = 4095
LATEST_NS = (1 << 63) - 1

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1024 * 1024

Kind = Literal["folder", "file", "link"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing in a tree. Names are as the file system has them; what is no UTF-8 is in surrogates."""

    path: tuple[str, ...]
    kind: Kind
    mode: int = 0o644
    """Permission bits only: nothing that gives rights is kept."""
    modified_ns: int = 0
    size: int = 0
    target: str = ""
    """Of a link: where it leads, for whoever is in the container."""


class _Facts(TypedDict):
    path: tuple[str, ...]
    mode: int
    modified_ns: int


def walk(root: Path, *, without: Collection[str] = ()) -> Iterator[tuple[Entry, BinaryIO | None]]:
    """Everything below `root`, folders before what is in them; a file comes with its content, open until the next step.

    `without`: names directly in `root` that are passed over. Sockets, pipes and devices are passed over too: they hold
    nothing. Raises BadInputError for a tree that is nested too deeply.
    """
    stack: list[tuple[int, tuple[str, ...], list[str]]] = []
    try:
        here = os.open(root, _FOLDER)
        stack.append((here, (), sorted(set(_names(here)) - set(without), reverse=True)))
        while stack:
            folder, path, names = stack[-1]
            if not names:
                os.close(folder)
                stack.pop()
                continue
            name = names.pop()
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            below = (*path, name)
            facts: _Facts = {
                "path": below,
                "mode": stat.S_IMODE(found.st_mode) & 0o777,
                # An agent may set any time, and some file systems keep those that no archive does.
                "modified_ns": min(max(0, found.st_mtime_ns), LATEST_NS),
            }
            if stat.S_ISLNK(found.st_mode):
                yield Entry(kind="link", target=os.readlink(name, dir_fd=folder), **facts), None
            elif stat.S_ISDIR(found.st_mode):
                if len(below) > DEPTH_AT_MOST:
                    raise BadInputError(
                        f"{root} has more than {DEPTH_AT_MOST} folders in each other",
                        hint="Ask the agent to tidy up, or leave the files out.",
                    )
                inner = os.open(name, _FOLDER, dir_fd=folder)
                stack.append((inner, below, sorted(_names(inner), reverse=True)))
                yield Entry(kind="folder", **facts), None
            elif stat.S_ISREG(found.st_mode):
                yield from _file(name, folder, facts)
    finally:
        for folder, _, _ in stack:
            os.close(folder)


def _file(name: str, folder: int, facts: _Facts) -> Iterator[tuple[Entry, BinaryIO]]:
    descriptor = os.open(name, _READ, dir_fd=folder)
    with os.fdopen(descriptor, "rb", buffering=0) as opened:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):  # What was looked at by name may have been another one.
            yield Entry(kind="file", size=found.st_size, **facts), opened


class Filler:
    """Makes entries below `root`, which exists and is empty. Every part of a path must have been made before."""

    def __init__(self, root: Path, *, uid: int, gid: int) -> None:
        self._root = os.open(root, _FOLDER)
        self._uid, self._gid = uid, gid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._root)

    def add(self, entry: Entry, content: BinaryIO | None = None) -> None:
        """Raises BadInputError for an entry that no walk gives, and OSError as the file system does."""
        if problem := problem_of(entry):
            raise BadInputError(f"{printable(entry.path)} {problem}")
        folder = self._open(entry.path[:-1])
        try:
            self._make(entry, folder, content)
        finally:
            os.close(folder)

    def _make(self, entry: Entry, folder: int, content: BinaryIO | None) -> None:
        name = entry.path[-1]
        match entry.kind:
            case "link":
                os.symlink(entry.target, name, dir_fd=folder)
            case "folder":
                # It must stay enterable for us until it is filled, whatever the agent had made of it.
                os.mkdir(name, entry.mode | 0o700, dir_fd=folder)
            case "file":
                descriptor = os.open(name, _MAKE, entry.mode | 0o600, dir_fd=folder)
                with os.fdopen(descriptor, "wb") as opened:
                    while content is not None and (data := content.read(_COPY_BYTES)):
                        opened.write(data)
        if os.geteuid() == 0:
            os.chown(name, self._uid, self._gid, dir_fd=folder, follow_symlinks=False)
        os.utime(name, ns=(entry.modified_ns, entry.modified_ns), dir_fd=folder, follow_symlinks=False)

    def _open(self, path: tuple[str, ...]) -> int:
        here = os.dup(self._root)
        for part in path:
            try:
                inner = os.open(part, _FOLDER, dir_fd=here)
            finally:
                os.close(here)
            here = inner
        return here


def problem_of(entry: Entry) -> str:
    """Why nobody's tree can have this entry; empty if one can."""
    if not 0 < len(entry.path) <= DEPTH_AT_MOST + 1:
        return "is nested too deeply"
    for part in entry.path:
        if part in {"", ".", ".."} or "/" in part or "\0" in part or len(os.fsencode(part)) > NAME_BYTES_AT_MOST:
            return "is no path in a folder"
    if entry.kind == "link" and not (0 < len(os.fsencode(entry.target)) <= LINK_BYTES_AT_MOST):
        return "is a link to nowhere"
    if "\0" in entry.target:
        return "is a link to nowhere"
    if not 0 <= entry.mode <= 0o777:
        return "would give rights"
    if entry.size < 0 or not 0 <= entry.modified_ns <= LATEST_NS:
        return "has a size or a time that no file has"
    return ""


def printable(path: tuple[str, ...]) -> str:
    return "/".join(path).encode("utf-8", "backslashreplace").decode()[:300]


def remove(root: Path) -> None:
    """Remove the folder and all below it, however deep and wide. One that is not there is removed already.

    What is deep is brought up before it is emptied, so that it takes a handful of descriptors and no recursion.
    """
    try:
        top = _enter(str(root))
    except FileNotFoundError:
        return
    try:
        while names := _names(top):
            for name in names:
                _remove_one(name, top)
    finally:
        os.close(top)
    root.rmdir()


def _remove_one(name: str, top: int) -> None:
    """Remove what is called `name`; the folders that lie in it come up into `top`, under names that nobody has."""
    if _unlinked(name, top):
        return
    inner = _enter(name, top)
    try:
        for each in _names(inner):
            if not _unlinked(each, inner):
                os.close(_enter(each, inner))  # To move a folder takes the right to write in it.
                os.rename(each, secrets.token_hex(12), src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)


def _unlinked(name: str, folder: int) -> bool:
    """False: it is a folder."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return False
    return True


def _enter(name: str, folder: int | None = None) -> int:
    """Open a folder of ours although the agent may have taken every right to it away."""
    place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.chmod(f"/proc/self/fd/{place}", 0o700)  # noqa: PTH101  # no path: what the descriptor holds
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(place)


def _names(folder: int) -> list[str]:
    return os.listdir(folder)  # by descriptor, which a path object cannot
