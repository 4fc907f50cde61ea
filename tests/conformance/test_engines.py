"""Every engine keeps the same promises: the fake, and each real one that this machine has."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hermitcrab.containers.engine import Engine, EngineOptions
from hermitcrab.containers.engines.bubblewrap import BubblewrapEngine
from hermitcrab.containers.engines.docker import docker_engine, podman_engine
from hermitcrab.model.ids import InstallationId
from hermitcrab.testing.engine_conformance import EngineLife, play
from hermitcrab.testing.engine_conformance_calls import EngineCalls
from hermitcrab.testing.engine_conformance_inside import EngineInside
from hermitcrab.testing.engine_conformance_strict import EngineStrict
from hermitcrab.testing.engine_harness import EngineHarness
from hermitcrab.testing.engines import available_engines
from hermitcrab.testing.fake_daemon import IMAGE, fake_daemon
from hermitcrab.testing.fake_engine import FakeEngine, FakeMachine

AVAILABLE = available_engines()
OPENERS: dict[str, Callable[[EngineOptions], Engine]] = {
    "bubblewrap": BubblewrapEngine,
    "docker": docker_engine,
    "podman": podman_engine,
}


def real(name: str) -> object:
    why_not = AVAILABLE[name].why_not
    return pytest.param(name, marks=[pytest.mark.engine(name), pytest.mark.skipif(bool(why_not), reason=why_not)])


REAL = [real(name) for name in OPENERS]


def make_harness(name: str, folder: Path) -> EngineHarness:
    folder = folder.resolve()
    installation = InstallationId(f"c{uuid.uuid4().hex[:8]}")
    if name == "fake":
        machine = FakeMachine()
        return EngineHarness(
            lambda options: FakeEngine(options, machine=machine, behaviour=play), folder, real=False
        )  # fmt: skip
    superuser = os.geteuid() == 0
    found = AVAILABLE[name]
    return EngineHarness(
        OPENERS[name],
        folder,
        image=found.image or None,
        socket=found.socket,
        uid=1000 if superuser else os.geteuid(),
        gid=1000 if superuser else os.getegid(),
        installation=installation,
    )


@asynccontextmanager
async def on_a_fake_daemon(folder: Path) -> AsyncIterator[EngineHarness]:
    """The Docker adapter, and behind its socket a daemon that only tests have: it must be as good as the real one."""
    socket = folder / "docker.sock"
    async with fake_daemon(socket, FakeMachine(), play):
        socket.chmod(0o660)
        made = EngineHarness(docker_engine, folder, image=IMAGE, socket=str(socket), real=False)
        try:
            yield made
        finally:
            await made.aclose()


@pytest.fixture
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EngineHarness]:
    if request.param == "fake-daemon":
        async with on_a_fake_daemon(tmp_path) as made:
            yield made
        return
    made = make_harness(request.param, tmp_path)
    try:
        yield made
    finally:
        await made.aclose()


@pytest.mark.parametrize("harness", ["fake", "fake-daemon", *REAL], indirect=True)
class TestLife(EngineLife):
    pass


@pytest.mark.parametrize("harness", REAL, indirect=True)
class TestInside(EngineInside):
    pass


@pytest.mark.parametrize("harness", REAL, indirect=True)
class TestCalls(EngineCalls):
    pass


@pytest.mark.parametrize("harness", REAL, indirect=True)
class TestStrict(EngineStrict):
    pass
