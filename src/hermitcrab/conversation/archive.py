"""The file that a session is exported to: a zip archive of host-made members, read as if an enemy had written it.

    manifest.json        which session it is, and the SHA-256 and size of every other member; written last
    inbound.jsonl        the mailbox's rows (`mailbox/copies.py`)
    outbound.jsonl
    certificates.jsonl   how the session's containers ended
    work.jsonl           one line for each entry of the tree: path, kind, mode, time, and the member with its content
    state.jsonl, inbox.jsonl, outbox.jsonl
    data/1, data/2, ...  contents of files; no name that an agent chose is a member's name

All of it blocks; call it in a thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, NamedTuple, Self

from hermitcrab.containers.disk.trees import Entry, printable, problem_of
from hermitcrab.errors import BadInputError, ConflictError

FORMAT = 1

TREES = ("work", "state", "inbox", "outbox")
"""Folders of a session that go along."""

HOST_WRITTEN = frozenset({"inbox", "outbox"})
"""Those of them that no agent writes to."""

ROWS = ("inbound", "outbound", "certificates")

MEMBERS_AT_MOST = 500_000
BYTES_AT_MOST = 20 * 1024**3
"""Of everything in it, unpacked."""

_MANIFEST = "manifest.json"
_MANIFEST_BYTES_AT_MOST = 128 * 1024 * 1024
_COPY_BYTES = 1024 * 1024

_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,  # a compression that nobody here knows
    RuntimeError,  # a password; nesting without end
    ValueError,
    AttributeError,
)
"""What reading a file that is no archive, or a damaged one, raises."""

_LINE_BYTES_AT_MOST = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Which session an archive holds."""

    session: str
    group: str
    """The name of its agent group's folder."""
    provider: str | None
    generation: int
    created_at: str
    thread: str | None
    channel_type: str | None
    """Of its chat; None for a session that belongs to no chat."""
    platform_id: str | None
    exported_at: str
    version: str
    """Of the Hermitcrab that wrote it."""


class _Member(NamedTuple):
    sha256: str
    size: int


class ArchiveWriter:
    """Writes beside `path` and moves there at the end, verified and on the disk: no crash leaves half of it there."""

    def __init__(self, path: Path, *, replace: bool = False, bytes_at_most: int = BYTES_AT_MOST) -> None:
        self._path, self._replace = path, replace
        self._most = self._left = bytes_at_most
        self._part = path.with_name(f".{path.name}.part-{os.getpid()}")
        self._members: dict[str, _Member] = {}
        self._files = 0

    def __enter__(self) -> Self:
        if self._path.exists() and not self._replace:
            raise ConflictError(f"{self._path} is there already", hint="Choose another name, or add --replace.")
        try:
            self._part.unlink(missing_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._opened = os.fdopen(os.open(self._part, flags, 0o600), "w+b")
        except OSError as error:
            raise BadInputError(
                f"{self._path} cannot be written: {error.strerror}", hint="Name a file in a folder that is there."
            ) from error
        self._zip = zipfile.ZipFile(self._opened, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.fp = None  # What was given up is not to be finished, least of all on a disk that is full.
        self._opened.close()
        self._part.unlink(missing_ok=True)

    def lines(self, name: str, lines: Iterable[bytes]) -> int:
        """A member `name`.jsonl; how many lines it has."""
        count = 0
        with self._member(f"{name}.jsonl") as write:
            for line in lines:
                write(line)
                count += 1
        return count

    def tree(self, name: str, entries: Iterable[tuple[Entry, BinaryIO | None]]) -> int:
        """One of TREES; how many entries it has."""
        listed: list[bytes] = []
        for entry, content in entries:
            if len(listed) >= MEMBERS_AT_MOST:
                raise BadInputError(f"{name} holds more than {MEMBERS_AT_MOST:,} files", hint="Leave the files out.")
            facts = {**asdict(entry), "path": list(entry.path)}
            if content is not None:
                self._files += 1
                facts["member"] = member = f"data/{self._files}"
                with self._member(member) as write:
                    while data := content.read(_COPY_BYTES):
                        write(data)
                facts["size"] = self._members[member].size
            listed.append(json.dumps(facts).encode() + b"\n")
        return self.lines(name, listed)

    def finish(self, about: About) -> int:
        """Write the manifest, verify the whole, and give it its name. How many bytes it holds, unpacked."""
        members = {name: each._asdict() for name, each in self._members.items()}
        self._zip.writestr(_MANIFEST, json.dumps({"format": FORMAT, "about": asdict(about), "members": members}))
        self._zip.close()
        self._opened.flush()
        os.fsync(self._opened.fileno())
        with ArchiveReader(self._part) as reader:
            reader.verify()
        if self._replace:
            self._part.replace(self._path)
        else:
            try:
                os.link(self._part, self._path)
            except FileExistsError as error:
                raise ConflictError(f"{self._path} came into being meanwhile") from error
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return self._most - self._left

    @contextmanager
    def _member(self, name: str) -> Iterator[Callable[[bytes], None]]:
        digest = hashlib.sha256()
        size = 0

        def write(data: bytes) -> None:
            nonlocal size
            self._left -= len(data)
            if self._left < 0:
                raise BadInputError(
                    f"The session holds more than {self._most:,} bytes", hint="Leave the files out: --without-files."
                )
            digest.update(data)
            size += len(data)
            opened.write(data)

        with self._zip.open(name, "w", force_zip64=True) as opened:
            yield write
        self._members[name] = _Member(digest.hexdigest(), size)


class ArchiveReader:
    """Reads an archive that anybody may have made. Raises BadInputError for what no writer writes."""

    def __init__(self, path: Path, *, bytes_at_most: int = BYTES_AT_MOST) -> None:
        self._path, self._most = path, bytes_at_most

    def __enter__(self) -> Self:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise BadInputError(f"{self._path} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BadInputError(f"{self._path} is no file")
        self._opened = os.fdopen(descriptor, "rb")
        try:
            self._zip = zipfile.ZipFile(self._opened)
            self.about, self._members = self._manifest()
        except _BROKEN as error:
            self._opened.close()
            raise BadInputError(f"{self._path} is no archive of a session: {error}") from error
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def verify(self) -> None:
        """Every member is there, whole and unchanged, and there is nothing else."""
        found = sorted(self._zip.namelist())
        if found != sorted([*self._members, _MANIFEST]):
            raise self._refused("its members are not those that its manifest lists")
        for name in self._members:
            with self._member(name) as opened:
                while opened.read(_COPY_BYTES):
                    pass

    def lines(self, name: str) -> Iterator[bytes]:
        """The lines of member `name`.jsonl; none if there is no such member."""
        if f"{name}.jsonl" not in self._members:
            return
        with self._member(f"{name}.jsonl") as opened:
            while line := opened.readline(_LINE_BYTES_AT_MOST):
                if not line.endswith(b"\n"):
                    raise self._refused(f"{name} has a line without an end")
                yield line

    def tree(self, name: str) -> Iterator[tuple[Entry, BinaryIO | None]]:
        """The entries of one of TREES, as `trees.Filler` takes them."""
        for number, line in enumerate(self.lines(name), start=1):
            entry, member = self._entry(line, f"{name} line {number}")
            if member is None:
                yield entry, None
            else:
                with self._member(member) as opened:
                    yield entry, opened

    def _entry(self, line: bytes, where: str) -> tuple[Entry, str | None]:
        try:
            told = json.loads(line)
            member = told.pop("member", None)
            entry = Entry(**{**told, "path": tuple(told["path"])})
            fits = (
                entry.kind in {"folder", "file", "link"}
                and all(isinstance(each, str) for each in (*entry.path, entry.target))
                and all(type(each) is int for each in (entry.mode, entry.modified_ns, entry.size))
                and (member in self._members if entry.kind == "file" else member is None)
            )
            problem = problem_of(entry) if fits else "is no entry of a tree"
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._refused(f"{where} is no entry of a tree") from error
        if problem:
            raise self._refused(f"{where}: {printable(entry.path) if fits else 'it'} {problem}")
        return entry, member

    @contextmanager
    def _member(self, name: str) -> Iterator[BinaryIO]:
        """One member, checked at its end against the manifest, and never longer than that says."""
        try:
            opened = self._zip.open(name)
        except _BROKEN as error:
            raise self._refused(f"{name} is damaged: {error}") from error
        with opened:
            checked = _Checked(opened, self._members[name], lambda why: self._refused(f"{name} {why}"))
            yield checked  # type: ignore[misc]  # as much of a binary file as is used here
            checked.end()

    def _manifest(self) -> tuple[About, dict[str, _Member]]:
        if len(self._zip.namelist()) > MEMBERS_AT_MOST + 10:
            raise ValueError("it has too many members")
        with self._zip.open(_MANIFEST) if _MANIFEST in self._zip.namelist() else _no_manifest() as opened:
            text = opened.read(_MANIFEST_BYTES_AT_MOST + 1)
        if len(text) > _MANIFEST_BYTES_AT_MOST:
            raise ValueError("its manifest is too long")
        manifest = json.loads(text)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"it is of another format than {FORMAT}, the one that is known here")
        about, members = manifest.get("about"), manifest.get("members")
        names = {each.name for each in fields(About)}
        if not isinstance(about, dict) or about.keys() != names or not isinstance(members, dict):
            raise ValueError("its manifest is incomplete")
        texts = {name: about[name] for name in names - {"generation"}}
        if any(each is not None and not (isinstance(each, str) and len(each) <= 1000) for each in texts.values()):
            raise ValueError("its manifest names no session")
        if any(about[name] is None for name in ("session", "group", "created_at", "exported_at", "version")):
            raise ValueError("its manifest names no session")
        if type(about["generation"]) is not int or not 0 <= about["generation"] < 1 << 53:
            raise ValueError("its manifest has no generation")
        listed: dict[str, _Member] = {}
        for name, facts in members.items():
            digest, size = facts.get("sha256"), facts.get("size")
            if not isinstance(digest, str) or type(size) is not int or size < 0:
                raise ValueError("its manifest lists a member without a size")
            listed[name] = _Member(digest, size)
        if sum(each.size for each in listed.values()) > self._most:
            raise ValueError(f"it holds more than {self._most:,} bytes")
        return About(**about), listed

    def _refused(self, why: str) -> BadInputError:
        return BadInputError(f"{self._path}: {why}", hint="Nothing of it was taken in.")


class _Checked:
    """A member while it is read: counted, digested, and cut off where the manifest says that it ends."""

    def __init__(self, opened: IO[bytes], expected: _Member, refused: Callable[[str], BadInputError]) -> None:
        self._opened, self._expected, self._refused = opened, expected, refused
        self._digest = hashlib.sha256()
        self._size = 0

    def read(self, count: int) -> bytes:
        return self._take(self._opened.read, min(count, self._expected.size - self._size))

    def readline(self, count: int) -> bytes:
        return self._take(self._opened.readline, min(count, self._expected.size - self._size))

    def end(self) -> None:
        """Raises unless all of it was read, and it was what the manifest says."""
        if self._size != self._expected.size or self._take(self._opened.read, 1):
            raise self._refused("is not as long as the manifest says")
        if self._digest.hexdigest() != self._expected.sha256:
            raise self._refused("is not what the manifest says")

    def _take(self, read: Callable[[int], bytes], count: int) -> bytes:
        try:
            data = read(count)
        except _BROKEN as error:
            raise self._refused(f"is damaged: {error}") from error
        self._digest.update(data)
        self._size += len(data)
        return data


def _no_manifest() -> BinaryIO:
    raise ValueError("it has no manifest")
