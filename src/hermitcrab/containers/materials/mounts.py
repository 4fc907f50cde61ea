"""Additional mounts: what the machine says of a place, and whether the place is still the same when a container starts.

A path is walked part by part from `/`, each part opened below the last one and no symbolic link followed, so that
whoever renames folders meanwhile can make the walk fail but never lead it astray. `logic/mounts.py` decides.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import hermitcrab
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.mounts import (
    Allowlist,
    Decision,
    Facts,
    ForbiddenPlace,
    Identity,
    InnerMount,
    MountRequest,
    Place,
    decide,
    path_problem,
)
from hermitcrab.settings.home import Home

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_OF_THE_MACHINE = {
    "/etc": "the machine's settings",
    "/proc": "the kernel's view of processes",
    "/sys": "the kernel's view of the machine",
    "/dev": "devices",
    "/boot": "what the machine boots",
    "/run": "sockets of the machine's services, container engines among them",
    "/var/run": "sockets of the machine's services, container engines among them",
    "/var/lib/docker": "Docker's own store",
    "/var/lib/containerd": "containerd's own store",
    "/var/lib/containers": "Podman's own store",
    "/var/spool/cron": "what the machine runs by the clock",
}
_OF_A_USER = {
    **dict.fromkeys((".ssh", ".gnupg", ".password-store", ".local/share/keyrings", ".pki"), "keys"),
    **dict.fromkeys((".aws", ".azure", ".config/gcloud", ".kube", ".config/gh", ".config/op"), "access to a cloud"),
    **dict.fromkeys((".netrc", ".npmrc", ".pypirc", ".git-credentials", ".config/git"), "access to services"),
    **dict.fromkeys((".docker", ".config/containers", ".local/share/containers"), "a container engine's folder"),
    **dict.fromkeys((".claude", ".claude.json", ".config/nanoclaw"), "another agent's folder"),
    **dict.fromkeys((".bashrc", ".bash_profile", ".profile", ".zshrc", ".zshenv", ".gitconfig"), "run at each login"),
    **dict.fromkeys((".config/systemd", ".config/autostart", ".local/bin"), "run for the user"),
    **dict.fromkeys((".mozilla", ".config/google-chrome", ".config/chromium"), "a browser's passwords"),
}


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of /proc/self/mountinfo."""

    point: str
    file_system: str
    device: str
    root: str
    """What of the file system is mounted there."""


def mount_table(mountinfo: str | None = None) -> tuple[MountEntry, ...]:
    """What is mounted where, as this process sees it. Raises EngineError when that cannot be read."""
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError as error:
            raise EngineError(
                Failure.DENIED_BY_POLICY,
                f"/proc/self/mountinfo cannot be read, and without it no additional mount is safe: {error.strerror}",
            ) from error
    entries = []
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if separator and len(fields) > 4:
            entries.append(MountEntry(_unescape(fields[4]), after.split(" ")[0], fields[2], _unescape(fields[3])))
    return tuple(entries)


def walk(path: str) -> Place:
    """What lies at the absolute `path`. A symbolic link on the way ends the walk, and so does whatever is missing."""
    parts = [part for part in path.split("/") if part not in {"", "."}]
    path = "/" + "/".join(parts)
    if problem := path_problem(path):
        return Place(path=path, problem=problem)
    here = os.open("/", _LOOK | os.O_DIRECTORY)
    try:
        found = os.fstat(here)
        chain = [_identity(found)]
        for number, part in enumerate(parts, start=1):
            so_far = "/" + "/".join(parts[:number])
            try:
                inner = os.open(part, _LOOK, dir_fd=here)
            except OSError as error:
                return Place(path=path, chain=tuple(chain), problem=_stopped(so_far, error))
            os.close(here)
            here = inner
            found = os.fstat(here)
            if stat.S_ISLNK(found.st_mode):
                leads = os.readlink("", dir_fd=here)
                problem = f"{so_far} is a symbolic link to {leads}; write the path without links"
                return Place(path=path, chain=tuple(chain), problem=problem)
            chain.append(_identity(found))
        return Place(path=path, chain=tuple(chain), kind=_kind(found.st_mode), links=found.st_nlink)
    finally:
        os.close(here)


def gather(
    request: MountRequest,
    allowlist: Allowlist | None,
    *,
    forbidden: Iterable[ForbiddenPlace],
    taken: Iterable[str] = (),
    table: Sequence[MountEntry] | None = None,
) -> Facts:
    """What `decide` needs to know. `table`: what is mounted where, if not as it is now."""
    table = mount_table() if table is None else table
    place = _with_origin(walk(request.path), table)
    return Facts(
        place=place,
        # Roots are the operator's own words, and a link in them is the operator's own link.
        roots=tuple(walk(os.path.realpath(root.path)) for root in (allowlist.roots if allowlist else ())),
        forbidden=tuple(replace(each, place=_with_origin(each.place, table)) for each in forbidden),
        inner_mounts=tuple(_inner_mounts(place, table)),
        taken=frozenset(taken),
    )


def decide_each(
    requests: Iterable[MountRequest], allowlist: Allowlist | None, *, forbidden: Sequence[ForbiddenPlace]
) -> tuple[Decision, ...]:
    """One decision for each request, in order: of two that want one place in the container, the first may have it."""
    table = mount_table()
    taken: set[str] = set()
    decisions = []
    for request in requests:
        facts = gather(request, allowlist, forbidden=forbidden, taken=taken, table=table)
        decisions.append(decide(request, allowlist, facts))
        if decisions[-1].allowed:
            taken.add(request.target_name)
    return tuple(decisions)


def forbidden_places(
    home: Home, *, allowlist_file: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[ForbiddenPlace, ...]:
    """Places that no allow-list can open, as they are now: ours, the machine's, and those with a user's secrets."""
    environment = os.environ if environment is None else environment
    named: dict[str, str] = {
        str(home.path): "Hermitcrab's home, with every session in it",
        str(allowlist_file or home.mounts_file): "the allow-list itself",
        **_OF_THE_MACHINE,
    }
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        named[runtime] = "sockets of the user's services"
    for variable in ("DOCKER_HOST", "CONTAINER_HOST"):
        if (socket := environment.get(variable, "")).startswith("unix:///"):
            named[os.path.dirname(socket.removeprefix("unix://"))] = "the folder of a container engine's socket"  # noqa: PTH120
    if agent := environment.get("SSH_AUTH_SOCK"):
        named[agent] = "the socket of a key agent"
    for user_home in _user_homes(environment):
        named |= {f"{user_home}/{name}": what for name, what in _OF_A_USER.items()}
    named = {**dict.fromkeys(_dot_entries("/root"), "of the machine's administrator"), **named}

    run_by_host = {sys.prefix, sys.base_prefix, str(Path(hermitcrab.__file__).parent)}
    run_by_host |= {folder for folder in environment.get("PATH", "").split(":") if folder.startswith("/")}
    return (
        *(place for path, what in named.items() for place in _forbid(path, what)),
        *(
            place
            for path in sorted(run_by_host)
            for place in _forbid(path, "programs that the host runs", may_be_read=True)
        ),
    )


def verify_after_create(decisions: Iterable[Decision]) -> None:
    """Between create and start: every allowed place is still what was decided on. Raises EngineError; do not start."""
    for decision in decisions:
        if decision.mount is None:
            continue
        now = walk(decision.mount.source)
        if now.identity is None or now.chain != decision.chain:
            raise _changed(decision, now.problem or "something else lies there")


def verify_inside(decisions: Iterable[Decision], pid: int) -> None:
    """After start: what the container of process `pid` has at each place is what was decided on.

    For engines that mount when they start, which `verify_after_create` is too early to see. Raises EngineError; the
    container must go.
    """
    for decision in decisions:
        if decision.mount is None:
            continue
        try:
            found = _identity_inside(pid, decision.mount.target)
        except OSError as error:
            raise _changed(decision, f"{decision.mount.target} in the container: {error.strerror}") from error
        if found != decision.chain[-1]:
            raise _changed(decision, f"the container has something else at {decision.mount.target}")


def _identity_inside(pid: int, target: str) -> Identity:
    here = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in target.strip("/").split("/"):
            inner = os.open(part, _LOOK, dir_fd=here)
            os.close(here)
            here = inner
        return _identity(os.fstat(here))
    finally:
        os.close(here)


def _changed(decision: Decision, why: str) -> EngineError:
    return EngineError(
        Failure.DENIED_BY_POLICY,
        f"{decision.request.path} changed after it was allowed to be mounted: {why}",
        hint="Somebody renamed or replaced it just then. Look who can write there, and try again.",
    )


def _forbid(path: str, what: str, *, may_be_read: bool = False) -> Iterator[ForbiddenPlace]:
    real = os.path.realpath(path)
    yield ForbiddenPlace(what=what, place=walk(real), may_be_read=may_be_read)
    # Whoever can write where the link lies can lead it elsewhere.
    if real != os.path.normpath(path):
        yield ForbiddenPlace(what=what, place=walk(path), may_be_read=may_be_read)


def _user_homes(environment: Mapping[str, str]) -> list[str]:
    homes = {"/root"}
    if (named := environment.get("HOME", "")).startswith("/"):
        homes.add(named.rstrip("/") or "/")
    with contextlib.suppress(KeyError):  # a uid without an account has no home of its own
        homes.add(pwd.getpwuid(os.geteuid()).pw_dir)
    return sorted(homes)


def _dot_entries(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)  # noqa: PTH208  # names only
    except OSError:
        return []  # who cannot list it cannot mount from it
    return [f"{folder}/{name}" for name in sorted(names) if name.startswith(".")]


def _inner_mounts(place: Place, table: Sequence[MountEntry]) -> Iterator[InnerMount]:
    if place.identity is None:
        return
    if holder := _holder(place.path, table):
        yield InnerMount(place=place, file_system=holder.file_system)
    for entry in table:
        if _lies_in(entry.point, place.path) and entry.point != place.path:
            yield InnerMount(place=_with_origin(walk(entry.point), table), file_system=entry.file_system)


def _with_origin(place: Place, table: Sequence[MountEntry]) -> Place:
    holder = None if place.identity is None else _holder(place.path, table)
    if holder is None:
        return place
    below = place.path.removeprefix(holder.point.rstrip("/")).strip("/")
    return replace(place, origin=(holder.device, f"{holder.root.rstrip('/')}/{below}".rstrip("/") or "/"))


def _holder(path: str, table: Sequence[MountEntry]) -> MountEntry | None:
    """The mount that `path` lies on: the innermost, and of several on one point the last."""
    best: MountEntry | None = None
    for entry in table:
        if _lies_in(path, entry.point) and (best is None or len(entry.point) >= len(best.point)):
            best = entry
    return best


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _identity(found: os.stat_result) -> Identity:
    return Identity(found.st_dev, found.st_ino)


def _kind(mode: int) -> Literal["folder", "file", "other"]:
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"


def _stopped(path: str, error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return f"{path} does not exist"
        case NotADirectoryError():
            return f"{os.path.dirname(path)} is no folder"  # noqa: PTH120
        case _:
            return f"{path} cannot be looked at: {error.strerror or error}"


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
