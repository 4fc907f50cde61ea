"""The whole suite once more as an ordinary user, when root runs it: another way of making sandboxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermitcrab.testing.ordinary_user import ordinary_user

ROOT = Path(__file__).parents[3]


@pytest.mark.engine("bubblewrap")
def test_an_ordinary_users_sandboxes_keep_the_same_promises() -> None:
    with ordinary_user() as user:
        done = user.run(
            user.python, "-m", "pytest", "-q", "-p", "no:hypothesispytest", f"--basetemp={user.folder / 'scratch'}",
            "-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", "-k", "bubblewrap",
            str(ROOT / "tests/conformance/test_engines.py"),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-8000:]
        assert " passed" in done.stdout
