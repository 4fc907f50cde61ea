"""The agent image, built and run by the real engines of this machine."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hermitcrab.containers.engine import EngineOptions
from hermitcrab.containers.engines.docker import DockerEngine
from hermitcrab.containers.engines.docker_api import EngineApi, EngineName
from hermitcrab.containers.images import build_agent_image
from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import ContainerSpec
from hermitcrab.model.ids import Generation, InstallationId, SessionId
from hermitcrab.testing.engines import EngineAvailability, available_engines

AVAILABLE = available_engines()
BASE = os.environ.get("HERMITCRAB_TEST_BASE", "hermitcrab-base:bookworm")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.engine(name)) for name in ("docker", "podman")])
def engine(request: pytest.FixtureRequest) -> tuple[EngineName, EngineAvailability]:
    found = AVAILABLE[request.param]
    if not found.usable:
        pytest.skip(found.why_not)
    return request.param, found


@pytest.fixture
async def tag(engine: tuple[EngineName, EngineAvailability]) -> AsyncIterator[str]:
    name, found = engine
    tag = f"hermitcrab-test-image:{uuid.uuid4().hex[:8]}"
    yield tag
    api = EngineApi(name, found.socket)
    try:
        await api.request("DELETE", f"/images/{tag}", doing="tidy up", params={"force": "true"})
    except EngineError as error:
        assert error.failure is Failure.IMAGE_UNAVAILABLE  # noqa: PT017  # it was never built
    finally:
        await api.aclose()


async def test_the_image_is_built_without_a_network_and_runs_the_runners_python(
    engine: tuple[EngineName, EngineAvailability], tag: str, tmp_path: Path
) -> None:
    name, found = engine
    assert found.socket is not None
    told: list[str] = []
    built = await build_agent_image(found.socket, base=BASE, tag=tag, progress=told.append, engine=name)
    assert built
    assert any("Containerfile" in line or "FROM" in line for line in told)
    adapter = DockerEngine(
        name, EngineOptions(installation=InstallationId("image-test"), folder=tmp_path, socket=found.socket)
    )
    script = "import os, pwd, sys; print(sys.version_info >= (3, 11), os.getuid(), pwd.getpwuid(os.getuid()).pw_dir)"
    spec = ContainerSpec(
        name=f"hermitcrab-image-test-{uuid.uuid4().hex[:8]}",
        installation=InstallationId("image-test"),
        session=SessionId("s"),
        generation=Generation(1),
        image=tag,
        argv=("python3", "-P", "-S", "-c", script),
        env={},
        mounts=(),
        uid=1000,
        gid=1000,
        workdir="/workspace/agent",
    )
    try:
        async with adapter.events() as events:
            assert (await anext(events)).kind == "resync"
            await adapter.create(spec)
            await adapter.start(spec.name)
            assert (await anext(events)).name == spec.name
        seen = await adapter.inspect(spec.name)
        assert seen is not None
        assert seen.exit is not None
        assert seen.exit.exit_code == 0
        assert await adapter.logs(spec.name, lines=5) == ["True 1000 /home/agent"]
    finally:
        await adapter.remove(spec.name)
        await adapter.aclose()


async def test_a_base_that_is_not_there_is_said_with_its_fix(
    engine: tuple[EngineName, EngineAvailability], tag: str
) -> None:
    name, found = engine
    assert found.socket is not None
    with pytest.raises(EngineError) as raised:
        # A registry of this machine that does not listen: nothing outside is asked.
        await build_agent_image(
            found.socket, base="127.0.0.1:1/absent:1", tag=tag, progress=lambda _line: None, engine=name
        )
    assert raised.value.failure is Failure.IMAGE_UNAVAILABLE
    assert "absent" in raised.value.message
