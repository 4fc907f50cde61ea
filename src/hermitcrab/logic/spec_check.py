"""What must hold of every container's spec before any engine sees it: one pure check, whatever the engine.

Names and paths are judged by a grammar, never repaired. What is refused here could mean something else to one of the
parts that a spec goes through: a shell that is not there, an option of a program, a line of a file, a path of the host.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.credentials import credential_in, may_hold_credential
from hermitcrab.logic.mounts import EXTRA, name_problem
from hermitcrab.model.container import ContainerSpec, MountClass

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
"""Names of containers that every engine takes. Nothing in it can leave the path of an API address."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CONTROL_IN_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""Text may have lines and tabs."""

_OF_THE_SANDBOX = ("/proc", "/sys", "/dev")
_TO_BE_READ = ("/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr")
"""Programs and settings of the system: the host may put something there, which nobody can write."""

_READ_ONLY = frozenset({MountClass.HOST_WRITTEN, MountClass.LINK, MountClass.INSTALL_SURFACE})

_PATH_BYTES_AT_MOST = 4095
_TEXT_BYTES_AT_MOST = 128 * 1024
"""Of one argument or variable: the kernel takes no more."""

_ITEMS_AT_MOST = 512


def check(spec: ContainerSpec) -> None:
    """Raise EngineError `spec-invalid` that names everything wrong with it; `denied-by-policy` for a credential."""
    if faults := list(_faults(spec)):
        raise EngineError(
            Failure.SPEC_INVALID, f"Container {spec.name[:80]!r} cannot be made: {'; '.join(faults[:20])}"
        )
    if carriers := list(_credentials(spec)):
        raise EngineError(
            Failure.DENIED_BY_POLICY,
            f"Container {spec.name} is not made: {', '.join(carriers)} looks like a credential",
            hint="No secret goes into a container. Give the gateway the key, and the container a placeholder.",
        )


def _faults(spec: ContainerSpec) -> Iterator[str]:
    yield from _identity(spec)
    yield from _command(spec)
    yield from _environment(spec)
    yield from _limits(spec)
    count = len(spec.mounts) + len(spec.tmpfs)
    if count > _ITEMS_AT_MOST:
        yield f"{count} mounts are too many"
        return
    if spec.workdir != "/" and (fault := _path_fault("working folder", spec.workdir)):
        yield fault
    yield from (fault for mount in spec.mounts if (fault := _path_fault("source", mount.source)))
    places = tuple(_Place(mount.target, mount.writable, mount.mount_class) for mount in spec.mounts)
    yield from _layout_faults(places, spec.tmpfs)


class _Place(NamedTuple):
    """A mount, as the container sees it."""

    target: str
    writable: bool
    mount_class: MountClass


@lru_cache(maxsize=64)  # a container's layout is that of every other one of its group
def _layout_faults(places: tuple[_Place, ...], tmpfs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_faults_of_layout(places, tmpfs))


def _faults_of_layout(places: tuple[_Place, ...], tmpfs: tuple[str, ...]) -> Iterator[str]:
    paths = [*(place.target for place in places), *tmpfs]
    yield from (fault for path in paths if (fault := _path_fault("target", path)))
    writable = [*(place.target for place in places if place.writable), *tmpfs]
    yield from (f"{path!r} belongs to the sandbox itself" for path in paths if _covered(path, _OF_THE_SANDBOX))
    yield from (f"{path!r} would be writable" for path in writable if _covered(path, _TO_BE_READ))
    yield from (f"two mounts on {path!r}" for path, count in Counter(paths).items() if count > 1)
    for place in places:
        yield from _class(place)
        yield from _position(place, places)
    yield from (f"{path!r} would hide what the host put in {over!r}" for path, over in _hidden(places, tmpfs))


def _identity(spec: ContainerSpec) -> Iterator[str]:
    if NAME.fullmatch(spec.name) is None:
        yield f"the name {spec.name[:80]!r} is not one that engines take"
    for what, text in (("installation", spec.installation), ("session", spec.session)):
        if not text or len(text) > 512 or _CONTROL.search(text) or not _encodes(text):
            yield f"the {what} {text[:80]!r} is no id"
    if spec.generation < 0:
        yield f"{spec.generation!r} is no generation"
    if spec.image is not None and (
        not spec.image or spec.image.startswith("-") or _CONTROL.search(spec.image) or ".." in spec.image.split("/")
    ):
        yield f"{spec.image[:80]!r} is no image"
    if spec.uid <= 0 or spec.gid <= 0:
        yield "the user would be root"
    elif max(spec.uid, spec.gid) >= 2**32 - 1:
        yield f"uid {spec.uid}, gid {spec.gid} is no user"


def _command(spec: ContainerSpec) -> Iterator[str]:
    if not spec.argv or not spec.argv[0]:
        yield "there is no command"
    elif spec.argv[0].startswith("-"):
        yield f"the command {spec.argv[0][:80]!r} would be taken for an option"
    if len(spec.argv) > _ITEMS_AT_MOST:
        yield f"{len(spec.argv)} arguments are too many"
    for number, word in enumerate(spec.argv):
        if "\0" in word or not _fits(word):
            yield f"argument {number} cannot be passed on"


def _environment(spec: ContainerSpec) -> Iterator[str]:
    if len(spec.env) > _ITEMS_AT_MOST:
        yield f"{len(spec.env)} environment variables are too many"
    for name, value in spec.env.items():
        if _VARIABLE.fullmatch(name) is None:
            yield f"{name[:80]!r} is no name of an environment variable"
        if _CONTROL_IN_TEXT.search(value) or not _fits(value):
            yield f"the environment variable {name[:80]!r} cannot be passed on"


def _limits(spec: ContainerSpec) -> Iterator[str]:
    limits = spec.limits
    whole = (
        *(limits.memory_bytes, limits.pids, limits.open_files),
        *(limits.file_bytes, limits.tmp_bytes, limits.log_bytes),
    )
    if min(whole) < 1 or not 0 < limits.cpus < float("inf"):
        yield "a limit is not above zero"
    if max(whole) >= 2**63:
        yield "a limit is more than there can be"


@lru_cache(maxsize=1024)  # most paths of a container are those of every other one of its group
def _path_fault(what: str, path: str) -> str:
    if not path.startswith("/") or path.startswith("//") or path != posixpath.normpath(path):
        return f"the {what} {path[:80]!r} is no plain absolute path"
    if path == "/":
        return f"the {what} is the root"
    if _CONTROL.search(path):
        return f"the {what} {path[:80]!r} holds control characters"
    return "" if len(path.encode("utf-8", "surrogateescape")) <= _PATH_BYTES_AT_MOST else f"a {what} is too long"


def _covered(path: str, folders: tuple[str, ...]) -> bool:
    return any(_covers(folder, path) for folder in folders)


def _class(place: _Place) -> Iterator[str]:
    if place.writable and place.mount_class in _READ_ONLY:
        yield f"{place.target!r} is {place.mount_class}, and would be writable"


def _position(place: _Place, places: tuple[_Place, ...]) -> Iterator[str]:
    """Additional mounts have one place and nothing else is in it; the host's own places take in nothing else."""
    parent, _, name = place.target.rpartition("/")
    if place.mount_class is MountClass.EXTRA:
        if parent != EXTRA or name_problem(name):
            yield f"{place.target!r} is no place for an additional mount: {EXTRA}/NAME is"
        return
    if place.target != EXTRA and _covers(EXTRA, place.target):
        yield f"{place.target!r} is a place for additional mounts"
    if not place.writable:
        return
    for other in places:
        if other.mount_class in _READ_ONLY and other.target != place.target and _covers(other.target, place.target):
            yield f"{place.target!r} would be writable inside the read-only {other.target!r}"


def _hidden(places: tuple[_Place, ...], tmpfs: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Folders in memory inside what the host put there."""
    for path in tmpfs:
        for place in places:
            if path != place.target and _covers(place.target, path):
                yield path, place.target


def _credentials(spec: ContainerSpec) -> Iterator[str]:
    if not may_hold_credential((*spec.env.values(), *spec.argv, *spec.labels.values())):
        return
    yield from (f"the environment variable {name}" for name, value in spec.env.items() if credential_in(value))
    yield from (f"argument {number}" for number, word in enumerate(spec.argv) if credential_in(word))
    yield from (f"the label {name}" for name, value in spec.labels.items() if credential_in(value))


def _covers(folder: str, path: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _fits(text: str) -> bool:
    return _encodes(text) and len(text.encode("utf-8", "surrogateescape")) < _TEXT_BYTES_AT_MOST


def _encodes(text: str) -> bool:
    """Whether it can be written at all. Bytes that are no UTF-8 come as surrogates, as everywhere in Python."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
