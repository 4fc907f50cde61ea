"""An ordinary user for tests that root runs: with a name, a home and ids of its own, and only for what the test starts.

The user exists in a mount namespace of the test's own, where /etc is a copy: nothing of the machine is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import hermitcrab
import hermitcrab_runner

UID = 20_000 + os.getpid() % 10_000
"""Of this process's tests alone: Podman, for one, keeps locks for a user that are the same in every home."""
NAME = "crabtest"
SUB_IDS = "500000:65536"

_PACKAGES = [Path(hermitcrab.__file__).parents[1], Path(hermitcrab_runner.__file__).parents[1]]
_ENTER = f'mount --bind "$1" /etc && shift && exec setpriv --reuid={UID} --regid={UID} --clear-groups -- "$@"'


@dataclass(frozen=True, slots=True)
class OrdinaryUser:
    folder: Path
    """The user's own, and open to nobody else but root."""
    python: str

    uid: int = UID
    name: str = NAME

    @property
    def etc(self) -> Path:
        """What it has for /etc."""
        return self.folder.parent / "etc"

    @property
    def runtime(self) -> Path:
        return self.folder / "run"

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "TMPDIR": str(self.folder),
            "PYTHONPATH": os.pathsep.join(map(str, [*_PACKAGES, sysconfig.get_path("purelib")])),
            "PYTHONDONTWRITEBYTECODE": "1",
            # Without a driver of its own to mount with, the kernel's overlay does; copies of a whole image would not.
            "STORAGE_DRIVER": "overlay",
            **(more or {}),
        }

    def command(self, *argv: str) -> list[str]:
        """What root runs to have the user run it."""
        return ["unshare", "--mount", "--", "sh", "-c", _ENTER, "sh", str(self.etc), *argv]

    def run(self, *argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*argv), cwd=self.folder, env=self.environment(env), capture_output=True, text=True, check=False
        )

    def crab(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return self.run(self.python, "-m", "hermitcrab.cli.main", *words, env=env)


@contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """The user, or a skip that says what is missing. For root only."""
    if os.geteuid() != 0:
        pytest.skip("this user's own run of the suite is the one")
    if missing := [name for name in ("unshare", "setpriv", "mount") if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    # Not below root's own scratch folder, which is closed to others.
    base = Path(tempfile.mkdtemp(prefix="hermitcrab-user-", dir="/tmp"))
    base.chmod(0o755)
    try:
        shutil.copytree("/etc", base / "etc", symlinks=True)
        _add_user(base / "etc", base / "home")
        for each in (base / "home", base / "home/run"):
            each.mkdir(mode=0o700)
            os.chown(each, UID, UID)
        user = OrdinaryUser(base / "home", "")
        python = _interpreter(user)
        if python is None:
            pytest.skip("no Python of this version that another user may run")
        yield OrdinaryUser(base / "home", python)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _add_user(etc: Path, home: Path) -> None:
    with (etc / "passwd").open("a") as file:
        file.write(f"{NAME}:x:{UID}:{UID}::{home}:/bin/sh\n")
    with (etc / "group").open("a") as file:
        file.write(f"{NAME}:x:{UID}:\n")
    for name in ("subuid", "subgid"):
        (etc / name).write_text(f"{NAME}:{SUB_IDS}\n")


def _interpreter(user: OrdinaryUser) -> str | None:
    """A Python like ours that another user may run: ours can lie in a home that is closed to others."""
    # What starts it still has root's rights to look around, and what it starts has not.
    check = (
        "import os, sys, hermitcrab.cli.main, anyio; "
        f"sys.exit(sys.version_info[:2] != {sys.version_info[:2]} or not os.access(sys.executable, os.X_OK))"
    )
    candidates = (sys.executable, "/usr/bin/python3")
    return next((each for each in candidates if user.run(each, "-c", check).returncode == 0), None)
