"""The allow-list of additional mounts: `mounts.toml` in the home, where no container can reach it.

    [[roots]]
    path = "~/projects"
    write = false
    description = "source code"
    groups = ["*"]

    [refused]
    names = ["*.kdbx"]

It is read anew for each decision, so that an edit counts at once, and whole: one mistake refuses the file.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError

from hermitcrab.errors import SettingsError
from hermitcrab.logic.mounts import EVERY_GROUP, Allowlist, Root, path_problem

_BYTES_AT_MOST = 256 * 1024
_SECTIONS = {"roots": ("path", "write", "description", "groups"), "refused": ("names",)}
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_REFUSED_NAME = re.compile(r"[^/\x00-\x1f\x7f?\[\]]{1,255}")


def _check_path(path: str) -> str:
    if path != "~" and not path.startswith(("~/", "/")):
        raise ValueError("must be absolute, or begin with ~/")
    if problem := path_problem("/" + path.removeprefix("~").lstrip("/")):
        raise ValueError(f"is no path that can be used: {problem}")
    return path


def _check_group(group: str) -> str:
    if group != EVERY_GROUP and not _GROUP.fullmatch(group):
        raise ValueError("must be the folder name of an agent group, or * for every group")
    return group


def _check_refused_name(name: str) -> str:
    if not _REFUSED_NAME.fullmatch(name) or name in {".", ".."}:
        raise ValueError("must be one name without '/', in which * stands for anything")
    if not name.strip("*"):
        raise ValueError("would refuse everything")
    return name


class _Part(BaseModel):
    # Most hosts have no allow-list: the validators are made when there is a file to be checked.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class _RootEntry(_Part):
    path: Annotated[StrictStr, AfterValidator(_check_path)]
    write: StrictBool = False
    description: Annotated[StrictStr, Field(max_length=500)] = ""
    groups: Annotated[list[Annotated[StrictStr, AfterValidator(_check_group)]], Field(min_length=1)] = [EVERY_GROUP]


class _Refused(_Part):
    names: list[Annotated[StrictStr, AfterValidator(_check_refused_name)]] = []


class _File(_Part):
    roots: list[_RootEntry] = []
    refused: _Refused = Field(default_factory=_Refused)


def read(file: Path, *, user_home: str | None = None) -> Allowlist | None:
    """The allow-list, or None when there is no file. Raises SettingsError that names everything wrong with it.

    `user_home`: what `~` stands for, if not the home folder of the user who runs this.
    """
    data = _read_private(file)
    if data is None:
        return None
    try:
        parsed = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise _refusal(file, [f"is not valid TOML: {error}"]) from error
    return _checked(file, parsed, os.path.expanduser("~") if user_home is None else user_home)  # noqa: PTH111


def _read_private(file: Path) -> bytes | None:
    """The file's bytes, once it is certain that only its owner could have written them."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refusal(file, [f"cannot be opened as a plain file: {error.strerror or error}"]) from error
    try:
        _check_private(file, os.fstat(descriptor))
        with os.fdopen(descriptor, "rb", closefd=False) as opened:
            data = opened.read(_BYTES_AT_MOST + 1)
    except OSError as error:
        raise _refusal(file, [f"cannot be read: {error.strerror or error}"]) from error
    finally:
        os.close(descriptor)
    if len(data) > _BYTES_AT_MOST:
        raise _refusal(file, [f"is larger than {_BYTES_AT_MOST} bytes"])
    return data


def _check_private(file: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _refusal(file, ["is no plain file"])
    if found.st_uid != os.geteuid():
        raise SettingsError(
            f"{file} belongs to user {found.st_uid}, and this process runs as {os.geteuid()}",
            hint="Nothing is mounted on its word. It must belong to the user who runs crab.",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise SettingsError(
            f"{file} has mode {stat.S_IMODE(found.st_mode):04o}: others than its owner can use it",
            hint=f"Nothing is mounted on its word. Make it private: chmod 600 {file}",
        )


def _checked(file: Path, parsed: dict[str, object], user_home: str) -> Allowlist:
    try:
        entries = _File.model_validate(parsed)
    except ValidationError as error:
        problems = [
            _problem(each["loc"], each["type"], each["msg"])
            for each in error.errors(include_input=False, include_url=False, include_context=False)
        ]
        raise _refusal(file, problems) from error
    roots = tuple(
        Root(
            path=_absolute(entry.path, user_home),
            write=entry.write,
            description=entry.description,
            groups=tuple(entry.groups),
        )
        for entry in entries.roots
    )
    if problems := _doubles(roots):
        raise _refusal(file, problems)
    return Allowlist(roots=roots, refused_names=tuple(entries.refused.names))


def _absolute(path: str, user_home: str) -> str:
    if path.startswith("~"):
        path = user_home.rstrip("/") + path[1:]
    return "/" + "/".join(part for part in path.split("/") if part not in {"", "."})


def _doubles(roots: tuple[Root, ...]) -> list[str]:
    """Two answers to one question would leave it to chance which of them is meant."""
    seen: set[tuple[str, str]] = set()
    problems = []
    for number, root in enumerate(roots, start=1):
        for group in root.groups:
            if (root.path, group) in seen:
                problems.append(f"roots entry {number}: {root.path} is there already for group {group}")
            seen.add((root.path, group))
    return problems


def _problem(where: tuple[int | str, ...], kind: str, message: str) -> str:
    section = str(where[0])
    if kind == "extra_forbidden":
        known = _SECTIONS.get(section, ()) if len(where) > 1 else tuple(_SECTIONS)
        key = str(where[-1])
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        return f"{_named(where[:-1])}there is no key {key[:80]!r}" + (
            f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
        )
    reason = message.removeprefix("Value error, ")
    return f"{_named(where)}{reason[:1].lower()}{reason[1:]}"


def _named(where: tuple[int | str, ...]) -> str:
    words = [f"entry {part + 1}" if isinstance(part, int) else part for part in where]
    return f"{' '.join(words)}: " if words else ""


def _refusal(file: Path, problems: list[str]) -> SettingsError:
    return SettingsError(
        f"{file}: {'; '.join(problems)}",
        hint="Nothing is mounted until it is right. `crab mounts list` reads it and says what is wrong.",
    )
