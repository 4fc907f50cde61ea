"""Whether a path of this machine may be mounted into a container: one pure decision, which tells each of its reasons.

`containers/materials/mounts.py` looks at the machine and hands over `Facts`; nothing here opens a file. Places are
compared by device and inode along their whole way from `/`, never by their names: a name says nothing about what lies
there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from hermitcrab.model.container import Mount, MountClass

EXTRA = "/workspace/extra"
EVERY_GROUP = "*"

REFUSED_NAMES = (
    ".ssh",
    ".gnupg",
    ".gpg",
    ".aws",
    ".azure",
    ".gcloud",
    ".kube",
    ".docker",
    "credentials",
    ".env",
    ".env.*",
    ".netrc",
    ".npmrc",
    ".pypirc",
    ".git-credentials",
    "id_rsa",
    "id_ecdsa",
    "id_ed25519",
    "private_key",
    ".secret",
)
"""Never mounted, wherever they lie. They match whole names, so that `environment` is not taken for `.env`."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PATH_BYTES_AT_MOST = 4095

_KERNEL_FILE_SYSTEMS = frozenset(
    {
        *("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "securityfs", "selinuxfs", "debugfs", "tracefs"),
        *("bpf", "configfs", "efivarfs", "pstore", "mqueue", "nsfs", "binfmt_misc", "fusectl", "autofs"),
    }
)


class Identity(NamedTuple):
    """What a place is, whatever it is called."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a walk from `/` along a path met."""

    path: str
    chain: tuple[Identity, ...] = ()
    """Everything on the way, `/` first; when nothing stopped the walk, the place itself last."""
    problem: str = ""
    """Why the walk ended before the place."""
    kind: Literal["folder", "file", "other"] = "other"
    links: int = 1
    """Names that a file has."""
    origin: tuple[str, str] | None = None
    """The device of its file system, and its path in there: a part of a folder, bound elsewhere, is known by it."""

    @property
    def identity(self) -> Identity | None:
        return None if self.problem or not self.chain else self.chain[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForbiddenPlace:
    what: str
    place: Place
    may_be_read: bool = False
    """Only writing is forbidden."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerMount:
    """A file system that holds the place, or is mounted below it and would come along."""

    place: Place
    file_system: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A folder from which mounts are allowed."""

    path: str
    write: bool = False
    description: str = ""
    groups: tuple[str, ...] = (EVERY_GROUP,)

    def serves(self, group: str | None) -> bool:
        return EVERY_GROUP in self.groups or group in self.groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowlist:
    roots: tuple[Root, ...] = ()
    refused_names: tuple[str, ...] = ()
    """On top of REFUSED_NAMES."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRequest:
    path: str
    """Absolute, on the host."""
    name: str | None = None
    """Where below /workspace/extra; None: as the path's last part."""
    write: bool = False
    read_only_because: str = ""
    """Why it will be read-only whatever the allow-list says; empty: the allow-list decides."""
    group: str | None = None
    """The agent group's folder name; None: a group that no root names."""

    @property
    def target_name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2] if self.name is None else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the machine says, for one request."""

    place: Place
    roots: tuple[Place, ...] = ()
    """In the order of the allow-list's."""
    forbidden: tuple[ForbiddenPlace, ...] = ()
    inner_mounts: tuple[InnerMount, ...] = ()
    taken: frozenset[str] = frozenset()
    """Names below /workspace/extra that other mounts have."""


@dataclass(frozen=True, slots=True)
class Step:
    """One rule, and what it saw."""

    rule: str
    passed: bool
    saw: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    request: MountRequest
    steps: tuple[Step, ...]
    mount: Mount | None = None
    kind: Literal["folder", "file", "other"] = "other"
    chain: tuple[Identity, ...] = ()
    """What was decided on. Compare with what lies there when the container starts."""

    @property
    def allowed(self) -> bool:
        return self.mount is not None

    @property
    def reason(self) -> str:
        """The first refusal, or nothing."""
        return next((step.saw for step in self.steps if not step.passed), "")


def decide(request: MountRequest, allowlist: Allowlist | None, facts: Facts) -> Decision:
    """Every rule that can be judged, judged; one refusal refuses. `allowlist` None: there is none."""
    steps = [_allowlist_there(allowlist), _path(request), _name(request), _name_free(request, facts)]
    root: Root | None = None
    if allowlist is not None and steps[1].passed:
        steps.append(_found(facts.place))
        if facts.place.identity is not None:
            root, root_step = _nearest_root(request, allowlist, facts)
            steps += [
                _kind(facts.place),
                _names(facts.place, allowlist),
                _forbidden(request, facts),
                _inner_mounts(request, facts),
                root_step,
            ]
    if root is None or not all(step.passed for step in steps):
        return Decision(request=request, steps=tuple(steps))
    writable = root.write and request.write and not request.read_only_because
    steps.append(Step("mode", True, _mode(request, root)))
    return Decision(
        request=request,
        steps=tuple(steps),
        mount=Mount(
            source=facts.place.path,
            target=f"{EXTRA}/{request.target_name}",
            writable=writable,
            mount_class=MountClass.EXTRA,
        ),
        kind=facts.place.kind,
        chain=facts.place.chain,
    )


def name_problem(name: str) -> str:
    """Why this cannot be a name below /workspace/extra, or nothing."""
    if _NAME.fullmatch(name) and ".." not in name:
        return ""
    return (
        f"{name[:80]!r} is no name below {EXTRA}: 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter, digit or _, "
        "without '..'"
    )


def path_problem(path: str) -> str:
    """Why this cannot be the path of a mount or of a root, or nothing."""
    if not path.startswith("/"):
        return f"{path[:80]!r} is no absolute path"
    if _CONTROL.search(path) or not path.isprintable():
        return f"{path[:80]!r} holds characters that cannot be printed"
    if ":" in path:
        return f"{path[:80]!r} holds a ':', which container engines read as the end of a path"
    if ".." in path.split("/"):
        return f"{path[:80]!r} holds '..'; write where it leads"
    if len(path.encode()) > _PATH_BYTES_AT_MOST:
        return f"a path of {len(path.encode())} bytes is too long"
    return ""


def overlap(place: Place, other: Place) -> str:
    """How `place` and `other` touch each other: "is", "contains", "lies in", or nothing.

    What was not reached of `other` still counts on its way: a folder in which it could be made contains it.
    """
    if place.identity is None:
        return ""
    if place.identity == other.identity:
        return "is"
    if place.identity in other.chain:
        return "contains"
    if other.identity is not None and other.identity in place.chain:
        return "lies in"
    if place.origin is None or other.origin is None or place.origin[0] != other.origin[0]:
        return ""
    mine, theirs = place.origin[1], other.origin[1]
    if mine == theirs:
        return "is"
    if _lies_in(theirs, mine):
        return "contains"
    return "lies in" if _lies_in(mine, theirs) else ""


def _lies_in(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _allowlist_there(allowlist: Allowlist | None) -> Step:
    if allowlist is None:
        return Step("allow-list", False, "there is no allow-list, so that nothing may be mounted")
    return Step("allow-list", True, _count(len(allowlist.roots), "root"))


def _path(request: MountRequest) -> Step:
    problem = path_problem(request.path)
    return Step("path", not problem, problem or request.path)


def _name(request: MountRequest) -> Step:
    problem = name_problem(request.target_name)
    return Step("container path", not problem, problem or f"{EXTRA}/{request.target_name}")


def _name_free(request: MountRequest, facts: Facts) -> Step:
    if request.target_name in facts.taken:
        return Step("target free", False, f"another mount is at {request.target_name[:80]!r} already")
    return Step("target free", True, "no other mount is there")


def _found(place: Place) -> Step:
    return Step("found", place.identity is not None, place.problem or f"{place.kind} {place.path}")


def _kind(place: Place) -> Step:
    if place.kind == "other":
        return Step("kind", False, "it is neither a folder nor a file")
    if place.kind == "file" and place.links != 1:
        return Step("kind", False, f"the file has {place.links} names, and another of them may lie where nothing may")
    return Step("kind", True, f"a {place.kind}")


def _names(place: Place, allowlist: Allowlist) -> Step:
    for part in place.path.split("/"):
        for pattern in (*REFUSED_NAMES, *allowlist.refused_names):
            if fnmatchcase(part.casefold(), pattern.casefold()):
                return Step("names", False, f"{part!r} on its way is a refused name ({pattern})")
    return Step("names", True, "no refused name on its way")


def _forbidden(request: MountRequest, facts: Facts) -> Step:
    for each in facts.forbidden:
        if each.may_be_read and not request.write:
            continue
        if how := overlap(facts.place, each.place):
            wish = ", and may only be read" if each.may_be_read else ""
            return Step("forbidden places", False, f"it {how} {each.place.path}: {each.what}{wish}")
    return Step("forbidden places", True, f"apart from all of {_count(len(facts.forbidden), 'forbidden place')}")


def _inner_mounts(request: MountRequest, facts: Facts) -> Step:
    for inner in facts.inner_mounts:
        path = inner.place.path
        if inner.file_system in _KERNEL_FILE_SYSTEMS:
            return Step("inner mounts", False, f"{path} is of the kernel's own file system {inner.file_system}")
        if inner.place.identity is None:
            return Step("inner mounts", False, f"{path} is mounted there, and cannot be looked at")
        if path == facts.place.path:
            continue  # judged by the rule before this one
        for each in facts.forbidden:
            if overlap(inner.place, each.place) and not (each.may_be_read and not request.write):
                return Step("inner mounts", False, f"{path} brings in {each.place.path}: {each.what}")
    return Step("inner mounts", True, f"{_count(len(facts.inner_mounts), 'file system')} in it, none forbidden")


def _nearest_root(request: MountRequest, allowlist: Allowlist, facts: Facts) -> tuple[Root | None, Step]:
    """The root nearest to the place decides alone, so that an inner root can narrow an outer one and can widen it."""
    chain = facts.place.chain
    nearest: list[Root] = []
    depth = -1
    for root, place in zip(allowlist.roots, facts.roots, strict=True):
        if place.identity is None or place.kind != "folder" or place.identity not in chain:
            continue
        found = chain.index(place.identity)
        if found > depth:
            nearest, depth = [], found
        if found == depth:
            nearest.append(root)
    if not nearest:
        return None, Step("root", False, _no_root(allowlist.roots, facts.roots))
    for root in nearest:
        if root.serves(request.group):
            return root, Step("root", True, f"in {root.path}, which is open to {_listed(root.groups)}")
    whom = f"group {request.group[:80]!r}" if request.group is not None else "every group"
    groups = sorted({group for root in nearest for group in root.groups})
    return None, Step("root", False, f"in {nearest[0].path}, which is open to {_listed(groups)}, not to {whom}")


def _no_root(roots: Sequence[Root], places: Sequence[Place]) -> str:
    missing = [root.path for root, place in zip(roots, places, strict=True) if place.problem]
    told = f"; not found: {', '.join(missing)}" if missing else ""
    return f"it lies in none of the allowed roots ({_listed([root.path for root in roots]) or 'there are none'}){told}"


def _mode(request: MountRequest, root: Root) -> str:
    if request.write and request.read_only_because:
        return f"read-only: writing was asked for, but {request.read_only_because}"
    if request.write and root.write:
        return "read-write: asked for, and the root allows it"
    if request.write:
        return f"read-only: writing was asked for, but {root.path} does not allow it"
    return "read-only: writing was not asked for"


def _listed(names: Iterable[str]) -> str:
    return ", ".join("every group" if name == EVERY_GROUP else name for name in names)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
