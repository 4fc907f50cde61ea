from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import anyio
import pytest

from hermitcrab.containers import file_lock
from hermitcrab.containers.materials import packages
from hermitcrab.errors import EngineError, Failure, SettingsError

REQUIREMENTS = ["plain>=1", "claude-agent-sdk==0.2.187 ; extra == 'claude'", 'loose>=2; extra == "other"']


def test_the_pin_is_the_one_of_the_providers_extra() -> None:
    assert packages.pin_of("claude", REQUIREMENTS) == ("claude-agent-sdk", "0.2.187")
    assert packages.pin_of("echo", REQUIREMENTS) is None


def test_packages_without_an_exact_version_are_refused() -> None:
    with pytest.raises(SettingsError, match="not pinned"):
        packages.pin_of("other", REQUIREMENTS)


@pytest.mark.parametrize("uv", [None, "/bin/uv"])
def test_installers_get_wheels_only_for_the_containers_python(uv: str | None) -> None:
    argv = packages.installer_argv("x==1", Path("/t"), uv=uv, interpreter="/bin/python", python=(3, 12))
    assert argv[0] == (uv or "/bin/python")
    assert argv[argv.index("--only-binary") + 1] == ":all:"  # building would run foreign code on the host
    assert argv[argv.index("--python-version") + 1] == "3.12"
    assert argv[-3:] == ["--target", "/t", "x==1"]


class Installer:
    """Stands for the installing program: a script that gets the requirement and the target folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
        self.runs = folder / "runs"
        self.runs.write_text("")
        program = f"import os, pathlib, sys\nwith open({str(self.runs)!r}, 'a') as runs: runs.write('x')\n" + script

        def argv(requirement: str, target: Path, **_: object) -> list[str]:
            return [sys.executable, "-c", program, str(target), requirement]

        monkeypatch.setattr(packages, "installer_argv", argv)
        monkeypatch.setattr("importlib.metadata.requires", lambda _name: REQUIREMENTS)


WORKS = """
print("fetched from https://user:hunter2@registry.example/simple")
target = pathlib.Path(sys.argv[1])
target.mkdir()
(target / "module.py").write_text(sys.argv[2])
(target / "module.py").chmod(0o600)
(target / "tool").write_text("")
(target / "tool").chmod(0o700)
"""


async def ensure(cache: Path, told: list[str]) -> Path | None:
    return await packages.ensure_provider_packages("claude", cache, progress=told.append, python=(3, 11))


async def test_packages_are_installed_once_and_readable_by_the_containers_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installer = Installer(monkeypatch, tmp_path, WORKS)
    told: list[str] = []
    folder = await ensure(tmp_path / "cache", told)
    assert folder == tmp_path / "cache" / "claude-0.2.187-cp311"
    assert (folder / "module.py").read_text() == "claude-agent-sdk==0.2.187"
    assert (folder / "module.py").stat().st_mode & 0o777 == 0o644
    assert (folder / "tool").stat().st_mode & 0o777 == 0o755
    assert await ensure(tmp_path / "cache", told) == folder
    assert installer.runs.read_text() == "x"
    assert "hunter2" not in str(told)
    assert "registry.example" in str(told)


async def test_several_hosts_install_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installer = Installer(monkeypatch, tmp_path, WORKS)
    monkeypatch.setattr(file_lock, "LOCK_PAUSE_S", 0.01)
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(ensure, tmp_path / "cache", [])
    assert installer.runs.read_text() == "x"
    assert [each.name for each in (tmp_path / "cache").iterdir() if not each.name.startswith(".")] == [
        "claude-0.2.187-cp311"
    ]


async def test_a_failed_install_says_why_and_leaves_nothing_half_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = "pathlib.Path(sys.argv[1]).mkdir()\nsys.exit('no route to https://user:hunter2@registry.example')"
    Installer(monkeypatch, tmp_path, script)
    with pytest.raises(EngineError, match="no route to") as raised:
        await ensure(tmp_path / "cache", [])
    assert raised.value.failure is Failure.IMAGE_UNAVAILABLE
    assert "hunter2" not in raised.value.message
    assert "registry" in raised.value.hint
    assert all(each.name.endswith(".lock") for each in (tmp_path / "cache").iterdir())


async def test_an_install_that_a_killed_host_left_is_begun_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Installer(monkeypatch, tmp_path, WORKS)
    half = tmp_path / "cache" / ".claude-0.2.187-cp311.making"
    half.mkdir(parents=True)
    (half / "half.py").touch()
    folder = await ensure(tmp_path / "cache", [])
    assert folder is not None
    assert not (folder / "half.py").exists()
    assert not half.exists()


async def test_an_install_that_is_called_off_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Installer(
        monkeypatch,
        tmp_path,
        "pathlib.Path(sys.argv[1]).mkdir()\nprint('begun', flush=True)\nimport time; time.sleep(600)",
    )
    begun = anyio.Event()

    def progress(line: str) -> None:
        if line == "begun":
            begun.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(packages.ensure_provider_packages, "claude", tmp_path / "cache", progress=progress))
        await begun.wait()
        tasks.cancel_scope.cancel()
    assert all(each.name.endswith(".lock") for each in (tmp_path / "cache").iterdir())


async def test_a_provider_without_packages_needs_no_folder(tmp_path: Path) -> None:
    told: list[str] = []
    assert await packages.ensure_provider_packages("echo", tmp_path / "cache", progress=told.append) is None
    assert not (tmp_path / "cache").exists()
