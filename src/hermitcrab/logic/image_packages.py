"""What may be installed into an agent group's image: names and versions of packages, by one grammar per ecosystem.

A package's name reaches package managers that give some names a meaning of their own: `-o` is an option, `libc6-`
removes, `x.tgz` is a file, `a/b` a repository. None of those gets through here, whoever asked for it. Called where a
group's configuration is edited, and again before a build.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hermitcrab.errors import BadInputError

Ecosystem = Literal["apt", "npm", "pip"]

PACKAGES_AT_MOST = 100
"""In one image, all ecosystems together."""

_NAMES: dict[Ecosystem, re.Pattern[str]] = {
    # A `-` at the end would make apt remove the package, so a name ends with anything else.
    "apt": re.compile(r"[a-z0-9][a-z0-9+.-]{0,98}[a-z0-9+.]", re.ASCII),
    "npm": re.compile(r"(?=.{1,214}\Z)(?:@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*", re.ASCII),
    "pip": re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?", re.ASCII | re.IGNORECASE),
}
_VERSIONS: dict[Ecosystem, re.Pattern[str]] = {
    "apt": re.compile(r"(?:\d{1,9}:)?[A-Za-z0-9][A-Za-z0-9.+~-]{0,99}", re.ASCII),
    # Exact ones only: a range, a tag or an alias (`npm:other`) would say later what was not said now.
    "npm": re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}(?:-[0-9A-Za-z.-]{1,60})?(?:\+[0-9A-Za-z.-]{1,60})?", re.ASCII),
    "pip": re.compile(r"\d[A-Za-z0-9.!]{0,60}(?:\+[A-Za-z0-9.]{1,30})?", re.ASCII),
}
_JOINTS: dict[Ecosystem, str] = {"apt": "=", "npm": "@", "pip": "=="}
_EXAMPLES: dict[Ecosystem, str] = {
    "apt": "ffmpeg or ffmpeg=7:5.1.6-0+deb12u1",
    "npm": "typescript, @types/node or typescript@5.9.2",
    "pip": "requests or requests==2.32.4",
}
_FILES = (".tgz", ".tar", ".tar.gz")
"""npm takes such a name for an archive on disk."""


@dataclass(frozen=True, slots=True, order=True)
class Package:
    ecosystem: Ecosystem
    name: str
    version: str | None = None

    def __str__(self) -> str:
        """As it is written in a configuration, and as its package manager takes it."""
        return self.name if self.version is None else f"{self.name}{_JOINTS[self.ecosystem]}{self.version}"


@dataclass(frozen=True, slots=True)
class PackageList:
    """What one image has, in the order of names and each once: the same wishes make the same image."""

    apt: tuple[Package, ...] = ()
    npm: tuple[Package, ...] = ()
    pip: tuple[Package, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.apt or self.npm or self.pip)

    @property
    def texts(self) -> dict[str, list[str]]:
        return {
            "apt": [str(each) for each in self.apt],
            "npm": [str(each) for each in self.npm],
            "pip": [str(each) for each in self.pip],
        }


def parse_package(ecosystem: Ecosystem, text: str) -> Package:
    """The package that `text` names. Raises BadInputError for anything that is not plainly a name and a version."""
    name, version = _divided(ecosystem, text)
    if _NAMES[ecosystem].fullmatch(name) is None or (ecosystem == "npm" and name.endswith(_FILES)):
        raise _refused(ecosystem, text)
    if version is not None and _VERSIONS[ecosystem].fullmatch(version) is None:
        raise _refused(ecosystem, text)
    if ecosystem == "pip":
        # One package has one spelling, or it could be asked for twice (PEP 503).
        name = re.sub(r"[._-]+", "-", name).lower()
    return Package(ecosystem, name, version)


def parse_packages(*, apt: Iterable[str] = (), npm: Iterable[str] = (), pip: Iterable[str] = ()) -> PackageList:
    """All of an image's packages. Raises BadInputError for a bad one, for two versions of one, and for too many."""
    found = PackageList(apt=_parse("apt", apt), npm=_parse("npm", npm), pip=_parse("pip", pip))
    count = len(found.apt) + len(found.npm) + len(found.pip)
    if count > PACKAGES_AT_MOST:
        raise BadInputError(f"{count} packages are too many for one image; {PACKAGES_AT_MOST} are the most")
    return found


def _parse(ecosystem: Ecosystem, texts: Iterable[str]) -> tuple[Package, ...]:
    packages: dict[str, Package] = {}
    for text in texts:
        package = parse_package(ecosystem, text)
        other = packages.setdefault(package.name, package)
        if other != package:
            raise BadInputError(
                f"{ecosystem} package {package.name} is asked for twice: as {other} and as {package}",
                hint="Leave one of them.",
            )
    return tuple(packages[name] for name in sorted(packages))


def _divided(ecosystem: Ecosystem, text: str) -> tuple[str, str | None]:
    # From the second character on: the @ of an npm scope is none between name and version.
    rest, joint, version = text[1:].partition(_JOINTS[ecosystem])
    return text[:1] + rest, version if joint else None


def _refused(ecosystem: Ecosystem, text: str) -> BadInputError:
    return BadInputError(
        f"{text[:100]!r} is not the name of a package of {ecosystem}",
        hint=f"Write a name, or a name and an exact version: {_EXAMPLES[ecosystem]}.",
    )
