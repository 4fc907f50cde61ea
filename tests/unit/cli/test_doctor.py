"""What doctor says of homes, hosts, keys and engines; the engines themselves have their own tests."""

# ruff: noqa: ASYNC240  # a test may block its own loop
from __future__ import annotations

import os
from pathlib import Path

import pytest

from hermitcrab.cli import doctor
from hermitcrab.cli.doctor import Check, examine
from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import Finding
from hermitcrab.settings.home import Home, HomeLock
from hermitcrab.settings.model import Settings


@pytest.fixture(autouse=True)
def _no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(_chosen: str, _settings: Settings) -> list[Check]:
        return []

    monkeypatch.setattr(doctor, "_engines", none)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-made-up-key-for-tests")


async def finding(home: Home, subject: str) -> Finding:
    found = [each.finding for each in await examine(home) if each.finding.subject == subject]
    assert len(found) == 1
    return found[0]


async def test_a_sound_machine_and_a_home_to_be_made_are_well_and_nothing_is_made(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert [each.finding for each in await examine(home) if each.finding.level == "error"] == []
    assert "is not there yet" in (await finding(home, "home")).text
    assert list(tmp_path.iterdir()) == []


async def test_looking_at_a_home_changes_nothing_in_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "of-somebody-else").write_text("x")
    await examine(Home(tmp_path))
    assert [each.name for each in tmp_path.iterdir()] == ["of-somebody-else"]
    assert tmp_path.stat().st_mode & 0o777 == 0o755


async def test_a_home_that_cannot_be_written_is_an_error_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = await finding(Home(tmp_path / "file"), "home")
    assert (found.level, bool(found.fix)) == ("error", True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
async def test_a_home_of_another_user_is_an_error_that_names_both(tmp_path: Path) -> None:
    os.chown(tmp_path, 4242, 4242)
    found = await finding(Home(tmp_path), "home")
    assert found.level == "error"
    assert "4242" in found.text


async def test_settings_that_cannot_be_used_are_an_error_and_the_rest_is_still_examined(tmp_path: Path) -> None:
    (tmp_path / "hermitcrab.toml").write_text("[nonsense]\nx = 1\n")
    checks = await examine(Home(tmp_path))
    failing = [each.finding.subject for each in checks if each.fails]
    assert failing == ["settings"]
    assert len(checks) > 5


async def test_a_home_that_is_held_by_a_process_that_does_not_answer_is_told_with_its_number(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    with HomeLock(home):
        found = await finding(home, "host")
    assert found.level == "warning"
    assert str(os.getpid()) in found.text
    assert (await finding(home, "host")).level == "ok"


async def test_a_missing_key_is_a_warning_that_does_not_show_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = await finding(Home(tmp_path), "Claude key")
    assert present.level == "ok"
    assert "a-made-up-key" not in present.text
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    absent = await finding(Home(tmp_path), "Claude key")
    assert (absent.level, bool(absent.fix)) == ("warning", True)


@pytest.mark.parametrize(
    ("level", "needed", "fails"),
    [("error", True, True), ("error", False, False), ("warning", True, False), ("ok", True, False)],
)
def test_only_an_error_that_this_installation_feels_fails(level: str, needed: bool, fails: bool) -> None:
    found = Finding(subject="x", level=level, text="y")  # type: ignore[arg-type]  # each level in turn
    assert Check(area="z", finding=found, needed=needed).fails is fails


async def test_an_engine_whose_adapter_is_not_installed_is_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(*_: object) -> object:
        raise ModuleNotFoundError("No module named 'aiodocker'")

    monkeypatch.setattr("hermitcrab.app.open_engine", absent)
    found = await doctor._preflight("docker", Settings())
    assert found[0].level == "error"
    assert "hermitcrab[docker]" in found[0].fix


async def test_an_engine_that_refuses_to_open_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> object:
        raise EngineError(Failure.RUNTIME_UNAVAILABLE, "it is away", hint="start it")

    monkeypatch.setattr("hermitcrab.app.open_engine", refuses)
    found = await doctor._preflight("docker", Settings())
    assert (found[0].level, found[0].text, found[0].fix) == ("error", "it is away", "start it")
