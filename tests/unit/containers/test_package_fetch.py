"""Fetching packages from registries on loopback, with the real package tools in their sandbox."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from hermitcrab.containers.images.package_fetch import FetchLimits, ImageFacts, check_npm_tree, fetch
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.image_packages import PackageList, parse_packages
from hermitcrab.testing.engines import available_engines
from hermitcrab.testing.package_archive import PackageArchive, package_archive

BUBBLEWRAP = available_engines()["bubblewrap"]
pytestmark = pytest.mark.skipif(not BUBBLEWRAP.usable, reason=f"no sandbox to fetch in: {BUBBLEWRAP.why_not}")

FACTS = ImageFacts(python=(3, 11), distribution="debian", codename="bookworm", architecture="amd64", installed=b"")
CANARY = "sk-ant-api03-CANARY-of-the-host-0123456789"  # made up; opens nothing


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageArchive]:
    (tmp_path / "archive").mkdir()
    with package_archive(tmp_path / "archive") as opened:
        for name, value in opened.environment.items():
            monkeypatch.setenv(name, value)
        yield opened


def needs(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"this machine has no {tool}")


async def fetched(
    folder: Path, packages: PackageList, archive: PackageArchive | None = None, **limits: Any
) -> tuple[set[str], list[str]]:
    """What lies in the folder afterwards, two levels deep, and the log."""
    make_folder(folder)
    told: list[str] = []
    bounds = FetchLimits(**{"seconds": 60.0, "disk_bytes": 64 * 1024**2, **limits})
    sources = archive.apt_sources if archive is not None else None
    await fetch(packages, FACTS, folder, limits=bounds, progress=told.append, apt_sources=sources)
    return names_in(folder), told


def make_folder(folder: Path) -> None:
    folder.mkdir()


def names_in(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in (*folder.glob("*"), *folder.glob("*/*"))}


def holders_of(text: str, folder: Path) -> list[str]:
    return [
        str(Path(place, name))
        for place, _, names in os.walk(folder)
        for name in names
        if not Path(place, name).is_symlink() and text in Path(place, name).read_text(errors="replace")
    ]


def processes_with(text: str) -> list[str]:
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in each.read_bytes():
                found.append(each.parent.name)
    return found


async def test_python_packages_come_as_wheels(archive: PackageArchive, tmp_path: Path) -> None:
    archive.add_wheel("crab-shell")
    archive.add_wheel("crab-shell", "2.0")
    found, told = await fetched(tmp_path / "out", parse_packages(pip=["crab-shell==1.0"]))
    assert found == {"pip", "pip/crab_shell-1.0-py3-none-any.whl"}
    assert any("crab" in line for line in told)


async def test_npm_packages_come_as_a_tree_and_run_nothing(archive: PackageArchive, tmp_path: Path) -> None:
    needs("npm")
    archive.add_npm("claw", program="snap")
    archive.add_npm("pincer", dependencies={"claw": "1.0.0"}, install_script=f"touch {tmp_path}/ran")
    found, _ = await fetched(tmp_path / "out", parse_packages(npm=["pincer"]))
    assert {"npm", "npm/package.json", "npm/node_modules"} <= found
    assert (tmp_path / "out/npm/node_modules/claw/main.js").exists()
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out/.npm").exists()


async def test_debian_packages_come_with_what_they_need(archive: PackageArchive, tmp_path: Path) -> None:
    needs("apt-get")
    archive.add_deb("greeting", files={"usr/bin/greet": ("echo hello\n", 0o755)})
    found, _ = await fetched(tmp_path / "out", parse_packages(apt=["greeting=1.0"]), archive)
    assert found == {"apt", "apt/greeting_1.0_all.deb"}


@pytest.mark.parametrize(("ecosystem", "tool"), [("pip", "true"), ("npm", "npm"), ("apt", "apt-get")])
async def test_a_package_that_is_not_there_is_said_with_the_tools_last_words(
    archive: PackageArchive, tmp_path: Path, ecosystem: str, tool: str
) -> None:
    needs(tool)
    archive.add_deb("other", files={})
    with pytest.raises(EngineError, match="absent-package") as raised:
        await fetched(tmp_path / "out", parse_packages(**{ecosystem: ["absent-package"]}), archive)
    assert raised.value.failure is Failure.IMAGE_UNAVAILABLE


async def test_what_lies_on_the_host_cannot_be_fetched(
    archive: PackageArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of the registry names a folder and an archive of the host as its dependencies."""
    needs("npm")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "package.json").write_text(json.dumps({"name": "inside", "version": "1.0.0", "token": CANARY}))
    archive.add_npm("thief", dependencies={"inside": f"file:{secret}"})
    monkeypatch.setenv("SOME_KEY", CANARY)
    with pytest.raises(EngineError):
        await fetched(tmp_path / "out", parse_packages(npm=["thief"]))
    assert holders_of(CANARY, tmp_path / "out") == []


@pytest.mark.parametrize(
    "entry",
    [
        {"resolved": "../../etc", "link": True},
        {"resolved": "file:/root/x.tgz"},
        {"resolved": "git+ssh://git@h/x.git#0"},
        {},
    ],
)
def test_a_tree_with_anything_from_elsewhere_than_a_registry_is_refused(entry: dict[str, Any]) -> None:
    fine = {"resolved": "https://registry.invalid/a/-/a-1.0.0.tgz"}
    check_npm_tree({"packages": {"": {}, "node_modules/a": fine, "node_modules/b": {**fine, "inBundle": True}}})
    with pytest.raises(EngineError) as raised:
        check_npm_tree({"packages": {"": {}, "node_modules/a": fine, "node_modules/x": entry}})
    assert raised.value.failure is Failure.DENIED_BY_POLICY


async def test_the_tools_see_no_key_of_the_host_and_write_nowhere_else(
    archive: PackageArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = tmp_path / "tools"
    spy.mkdir()
    (spy / "npm").write_text(
        f"#!/bin/sh\nenv\nls {tmp_path}\ntouch {tmp_path}/out/npm/here\n"
        f"touch {tmp_path}/there || echo closed\ncat /etc/shadow || echo no shadow\nexit 1\n"
    )
    (spy / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{spy}:{os.environ['PATH']}")
    monkeypatch.setenv("SOME_KEY", CANARY)
    told: list[str] = []
    (tmp_path / "out").mkdir()
    with pytest.raises(EngineError):
        await fetch(
            parse_packages(npm=["claw"]),
            FACTS,
            tmp_path / "out",
            limits=FetchLimits(seconds=30, disk_bytes=1024**2),
            progress=told.append,
        )
    assert CANARY not in "\n".join(told)
    assert "no shadow" in told
    assert not (tmp_path / "there").exists()
    assert (tmp_path / "out/npm/here").exists()


@pytest.mark.parametrize("what", ["for ever", "without bound"])
async def test_fetching_ends_at_its_limits_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    spy = tmp_path / "tools"
    spy.mkdir()
    work = "sleep 600" if what == "for ever" else "while :; do head -c 1000000 /dev/zero >>big; done"
    (spy / "npm").write_text(f"#!/bin/sh\n{work} &\nwait\n")
    (spy / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{spy}:{os.environ['PATH']}")
    monkeypatch.setattr("hermitcrab.containers.images.package_fetch.SIZE_LOOK_S", 0.05)
    seconds = 0.5 if what == "for ever" else 60
    with pytest.raises(EngineError) as raised:
        await fetched(tmp_path / "out", parse_packages(npm=["claw"]), seconds=seconds, disk_bytes=8 * 1024**2)
    assert raised.value.failure is Failure.RESOURCES_EXHAUSTED
    while processes_with(str(tmp_path / "out")):  # noqa: ASYNC110  # the kernel tells nobody
        await anyio.sleep(0.01)


async def test_a_tool_that_this_machine_has_not_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="needs npm on this machine"):
        await fetched(tmp_path / "out", parse_packages(npm=["claw"]))
