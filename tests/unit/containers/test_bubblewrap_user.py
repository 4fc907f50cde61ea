"""The whole suite once more as an ordinary user, when the superuser runs it: another way of making sandboxes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
USER = 23456
PACKAGES = [ROOT / "src", ROOT / "packages/runner/src", Path(sysconfig.get_path("purelib"))]
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]


def environment(home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join(map(str, PACKAGES)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def interpreter(home: Path) -> str | None:
    """A Python like ours that another user may run: ours can lie in a home that is closed to others."""
    check = f"import sys, pytest, hermitcrab.testing.engines; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    for python in (sys.executable, "/usr/bin/python3"):
        done = subprocess.run([*AS_USER, python, "-c", check], env=environment(home), capture_output=True, check=False)
        if done.returncode == 0:
            return python
    return None


@pytest.mark.engine("bubblewrap")
@pytest.mark.timeout(300)
def test_an_ordinary_users_sandboxes_keep_the_same_promises(tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.geteuid() != 0:
        pytest.skip("this user's own run of the suite is the one")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    # Not below the superuser's own scratch folder, which is closed to others.
    home = Path("/tmp") / f"hermitcrab-user-{os.getpid()}"
    home.mkdir()
    os.chown(home, USER, USER)
    try:
        python = interpreter(home)
        if python is None:
            pytest.skip("no Python of this version that another user may run")
        done = subprocess.run(
            [*AS_USER, python, "-m", "pytest", "-q", "-p", "no:hypothesispytest", f"--basetemp={home / 'scratch'}",
             "-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", "-k", "bubblewrap",
             str(ROOT / "tests/conformance/test_engines.py")],
            env=environment(home), cwd=home, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-8000:]
        assert " passed" in done.stdout
    finally:
        shutil.rmtree(home)
