"""The settings of a foreign runner's harness: the host's, and a copy that the runner may write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hermitcrab.testing.fake_host import fake_host, row
from hermitcrab_runner.shim.harness import HarnessSettings
from hermitcrab_wire import frames

from .conftest import Foreign, until

HOSTS = '{"hooks":{}}'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / ".claude").mkdir(parents=True)
    (tmp_path / "hosts.json").write_text(HOSTS)
    (tmp_path / "victim").write_text("somebody's")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("somebody's")
    return tmp_path


def nothing(_place: Path, _home: Path) -> None:
    pass


def words(place: Path, _home: Path) -> None:
    place.write_text('{"hooks":{"Stop":[]}}')


def link(place: Path, home: Path) -> None:
    place.symlink_to(home / "victim")


def link_to_folder(place: Path, home: Path) -> None:
    place.symlink_to(home / "folder")


def folder(place: Path, home: Path) -> None:
    place.mkdir()
    (place / "inside").symlink_to(home / "folder")


def half_a_copy(place: Path, home: Path) -> None:
    Path(f"{place}.fresh").symlink_to(home / "victim")


@pytest.mark.parametrize("plant", [nothing, words, link, link_to_folder, folder, half_a_copy])
def test_whatever_lies_there_is_replaced_by_the_hosts_settings(home: Path, plant: Callable[[Path, Path], None]) -> None:
    place = home / "home" / ".claude" / "settings.json"
    plant(place, home)
    HarnessSettings(str(home / "hosts.json"), str(place)).renew()
    assert place.read_text() == HOSTS
    assert not place.is_symlink()
    assert list(place.parent.iterdir()) == [place]
    assert (home / "victim").read_text() == "somebody's"
    assert (home / "folder" / "file").read_text() == "somebody's"


def test_where_the_host_has_none_nothing_is_touched(home: Path) -> None:
    place = home / "home" / ".claude" / "settings.json"
    place.write_text("its own")
    HarnessSettings("", str(place)).renew()
    assert place.read_text() == "its own"


async def test_each_start_of_the_runner_begins_with_them(tmp_path: Path, foreign: Foreign, home: Path) -> None:
    place = home / "home" / ".claude" / "settings.json"
    env = {"HOME": str(home / "home"), "HERMITCRAB_HARNESS_SETTINGS": str(home / "hosts.json")}
    destination = {"name": "home", "type": "channel", "channel_type": "terminal", "platform_id": "main"}
    command = [*foreign.command(), "--settings", str(place)]
    async with fake_host(tmp_path, destinations=[destination]) as host, foreign.shim(host, env=env, command=command):
        await until(place.exists)
        plant = f"""sh echo '{{"hooks":{{"Stop":[]}}}}' >{place} | hold gate"""
        await host.push(row("m2", plant, seq=2))
        await until(lambda: "Stop" in place.read_text())
        await host.until(lambda host: len(host.of_kind(frames.Claim)) == 1)
        await host.say(frames.Cancel(reason="by command"))
        await host.answered("m2")
        await host.push(row("m4", "still there?", seq=4))
        await host.answered("m4")
        assert set(json.loads(place.read_text())["hooks"]) == {"SessionStart"}
