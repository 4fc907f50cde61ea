"""The Python packages of a provider (an agent harness and what it needs), as a folder that containers mount read-only.

One way for all engines: installed once into the home's cache, at exactly the version that the runner's distribution
pins, and never into the host's own environment or into an image. Called before the first container with that provider.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from hermitcrab.containers.file_lock import locked
from hermitcrab.containers.materials.tool import run_tool
from hermitcrab.errors import EngineError, Failure, SettingsError

INSTALL_DEADLINE_S = 900.0

_RUNNER = "hermitcrab-runner"
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.+!-]*)", re.ASCII)
_EXTRA = re.compile(r"""extra\s*==\s*['"](?P<extra>[^'"]+)['"]""")


def pin_of(provider: str, requirements: Sequence[str]) -> tuple[str, str] | None:
    """Name and version of the provider's package among a distribution's requirements; None if it needs none."""
    for requirement in requirements:
        what, _, marker = requirement.partition(";")
        extra = _EXTRA.search(marker)
        if extra is None or extra["extra"] != provider:
            continue
        pin = _PIN.fullmatch(what.strip())
        if pin is None:
            raise SettingsError(f"The packages of provider {provider} are not pinned exactly: {what.strip()}")
        return pin["name"], pin["version"]
    return None


def installer_argv(
    requirement: str, target: Path, *, uv: str | None, interpreter: str, python: tuple[int, int]
) -> list[str]:
    """The command that installs `requirement` for Python `python` into the folder `target`."""
    version = f"{python[0]}.{python[1]}"
    if uv is not None:
        return [
            # Copies: links would share their files with the cache of whoever runs the host.
            uv, "pip", "install", "--no-progress", "--link-mode", "copy", "--only-binary", ":all:",
            "--python", interpreter, "--python-version", version, "--target", str(target), requirement,
        ]  # fmt: skip
    return [
        interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
        "--only-binary", ":all:", "--python-version", version, "--target", str(target), requirement,
    ]  # fmt: skip


def provider_packages_folder(provider: str, cache: Path, *, python: tuple[int, int] | None = None) -> Path | None:
    """Where the provider's packages are once they are installed. None: it needs none."""
    pin = pin_of(provider, importlib.metadata.requires(_RUNNER) or [])
    if pin is None:
        return None
    python = python or (sys.version_info.major, sys.version_info.minor)
    return cache / f"{provider}-{pin[1]}-cp{python[0]}{python[1]}"


async def ensure_provider_packages(
    provider: str,
    cache: Path,
    *,
    progress: Callable[[str], object],
    python: tuple[int, int] | None = None,
) -> Path | None:
    """The folder with the provider's packages, installed now if it is not there yet. None: the provider needs none.

    `python` is the version of Python in the container; left out, it is the host's. Several hosts may ask at once.
    Raises EngineError `image-unavailable` when the packages cannot be had.
    """
    pin = pin_of(provider, importlib.metadata.requires(_RUNNER) or [])
    folder = provider_packages_folder(provider, cache, python=python)
    if pin is None or folder is None:
        return None
    name, version = pin
    python = python or (sys.version_info.major, sys.version_info.minor)
    if await anyio.Path(folder).is_dir():
        return folder
    await anyio.Path(cache).mkdir(parents=True, exist_ok=True)
    async with locked(cache / f".{folder.name}.lock", progress, f"another host installs {name} {version}"):
        if not await anyio.Path(folder).is_dir():
            progress(f"installing {name} {version} for Python {python[0]}.{python[1]}")
            making = cache / f".{folder.name}.making"
            # What a killed host left: the lock says that nobody works on it.
            await anyio.to_thread.run_sync(partial(shutil.rmtree, making, ignore_errors=True))
            try:
                await _install(f"{name}=={version}", making, python=python, progress=progress)
                await anyio.to_thread.run_sync(readable_for_all, making)
                await anyio.Path(making).rename(folder)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(partial(shutil.rmtree, making, ignore_errors=True))
    return folder


async def _install(
    requirement: str, target: Path, *, python: tuple[int, int], progress: Callable[[str], object]
) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    argv = installer_argv(requirement, target, uv=uv, interpreter=sys.executable, python=python)
    end = await run_tool(argv, progress=progress, seconds=INSTALL_DEADLINE_S)
    if end.code == 0:
        return
    why = f"took longer than {INSTALL_DEADLINE_S:.0f} s" if end.code is None else "failed"
    raise EngineError(
        Failure.IMAGE_UNAVAILABLE,
        f"Installing {requirement} {why}. The installer's last words:\n{end.tail}",
        hint="Can this machine reach its package registry? Try: " + " ".join([*argv[:-2], "/tmp/try", requirement]),  # noqa: S108
    )


def readable_for_all(folder: Path) -> None:
    """Containers run as another user, and engines may map their root to one without rights here."""
    for place, _, files in os.walk(folder):
        Path(place).chmod(0o755)
        for each in files:
            path = Path(place, each)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
