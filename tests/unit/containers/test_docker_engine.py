"""The adapter against a daemon that misbehaves on purpose. What real ones do is in tests/conformance."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from hermitcrab.containers.engine import EngineOptions
from hermitcrab.containers.engines.docker import DockerEngine
from hermitcrab.containers.engines.docker_api import find_socket, usual_sockets
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.seccomp_profile import profile
from hermitcrab.model.container import ContainerSpec, ContainerStatus, EngineEvent, Mount, MountClass
from hermitcrab.model.ids import Generation, InstallationId, SessionId
from hermitcrab.testing.fake_docker import FakeDocker, fake_docker

SPEC = ContainerSpec(
    name="crab-a-b",
    installation=InstallationId("inst"),
    session=SessionId("b"),
    generation=Generation(1),
    image="agent:1",
    argv=("true",),
    env={},
    mounts=(),
    uid=1000,
    gid=1000,
)
ID = "f" * 64


def shown(status: str = "running", installation: str = "inst", name: str = "crab-a-b", **state: Any) -> dict[str, Any]:
    return {
        "Id": ID,
        "Name": f"/{name}",
        "Config": {"Labels": {"hermitcrab.installation": installation}},
        "State": {"Status": status, "Running": status == "running", "Paused": status == "paused", **state},
    }


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDocker]:
    async with fake_docker(tmp_path / "docker.sock") as daemon:
        daemon.answers["GET /images/agent:1/json"] = (200, {"Id": "sha256:1", "Config": {"Volumes": {"/data": {}}}})
        yield daemon


@pytest.fixture
async def engine(tmp_path: Path, daemon: FakeDocker) -> AsyncIterator[DockerEngine]:
    engine = DockerEngine("docker", options(tmp_path))
    yield engine
    await engine.aclose()


def options(folder: Path) -> EngineOptions:
    return EngineOptions(installation=InstallationId("inst"), folder=folder, socket=str(folder / "docker.sock"))


def failure_of(raised: pytest.ExceptionInfo[EngineError]) -> Failure:
    return raised.value.failure


# An engine that cannot be asked.


async def test_no_socket_means_that_the_engine_does_not_run(tmp_path: Path) -> None:
    engine = DockerEngine("docker", options(tmp_path))
    for ask in (engine.inspect("crab-a-b"), engine.containers(), engine.remove("crab-a-b"), engine.capabilities()):
        with pytest.raises(EngineError, match="does not run") as raised:
            await ask
        assert failure_of(raised) is Failure.RUNTIME_UNAVAILABLE
        assert "systemctl start docker" in raised.value.hint
    await engine.aclose()


async def test_preflight_says_so_and_how_to_mend_it_without_raising(tmp_path: Path) -> None:
    engine = DockerEngine("podman", options(tmp_path))
    (finding,) = await engine.preflight()
    assert (finding.subject, finding.level) == ("podman", "error")
    assert finding.fix
    await engine.aclose()


@pytest.mark.parametrize(
    "answer",
    [(500, {"message": "oh"}), (500, b"<html>"), (404, {"message": "page not found"}), (200, b"{cut"), (403, b"")],
)
async def test_a_wrong_answer_is_never_taken_for_no_container(
    daemon: FakeDocker, engine: DockerEngine, answer: tuple[int, Any]
) -> None:
    daemon.answers["GET /containers/crab-a-b/json"] = answer
    with pytest.raises(EngineError):
        await engine.inspect("crab-a-b")


async def test_a_failing_list_is_not_an_empty_one(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["GET /containers/json"] = (500, {"message": "database is locked"})
    with pytest.raises(EngineError, match="database is locked"):
        await engine.containers()


async def test_a_daemon_that_never_answers_is_given_up(
    daemon: FakeDocker, engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.capabilities()
    monkeypatch.setattr("hermitcrab.containers.engines.docker_api.ANSWER_DEADLINE_S", 0.05)
    daemon.silent.add("GET /info")
    with pytest.raises(EngineError, match="did not answer") as raised:
        await engine.capabilities()
    assert failure_of(raised) is Failure.RUNTIME_UNAVAILABLE


# Ownership.


async def test_a_foreign_container_of_our_name_is_not_touched(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["GET /containers/crab-a-b/json"] = (200, shown(installation="other"))
    for touch in (
        engine.inspect("crab-a-b"),
        engine.start("crab-a-b"),
        engine.stop("crab-a-b", grace_s=1),
        engine.remove("crab-a-b"),
        engine.freeze("crab-a-b"),
        engine.logs("crab-a-b", lines=1),
    ):
        with pytest.raises(EngineError) as raised:
            await touch
        assert failure_of(raised) is Failure.NAME_IN_USE
    assert {each.method for each in daemon.requests} == {"GET"}


async def test_an_id_that_begins_like_our_name_is_not_our_container(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["GET /containers/ffff/json"] = (200, shown(name="somebody", installation="other"))
    assert await engine.inspect("ffff") is None


@pytest.mark.parametrize("name", ["../../info", "a/b", "", "a?b", "a b", "-x"])
async def test_a_name_cannot_become_another_address(daemon: FakeDocker, engine: DockerEngine, name: str) -> None:
    with pytest.raises(EngineError) as raised:
        await engine.remove(name)
    assert failure_of(raised) is Failure.SPEC_INVALID
    assert daemon.requests == []


async def test_only_this_installations_containers_are_listed(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["GET /containers/json"] = (200, [{"Id": "1"}, {"Id": "2"}, {"Id": "3"}])
    daemon.answers["GET /containers/1/json"] = (200, shown())
    daemon.answers["GET /containers/2/json"] = (200, shown(installation="other", name="x"))
    seen = await engine.containers()  # 3 went between the two questions
    assert [each.name for each in seen] == ["crab-a-b"]
    (listed,) = daemon.asked("GET /containers/json")
    assert json.loads(listed.query["filters"]) == {"label": ["hermitcrab.installation=inst"]}
    assert listed.query["all"] == "true"


# Creating.


async def test_create_asks_for_exactly_the_spec_and_masks_volumes(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["POST /containers/create"] = (201, {"Id": ID})
    await engine.create(SPEC)
    (asked,) = daemon.asked("POST /containers/create")
    assert asked.query == {"name": "crab-a-b"}
    sent = json.loads(asked.body)
    assert sent["Labels"] == SPEC.labels
    assert sent["HostConfig"]["Tmpfs"]["/data"].startswith("ro,")


async def test_every_container_has_our_filter_of_system_calls(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["POST /containers/create"] = (201, {"Id": ID})
    await engine.create(replace(SPEC, hardening="strict"))
    (asked,) = daemon.asked("POST /containers/create")
    privileges, filtered = json.loads(asked.body)["HostConfig"]["SecurityOpt"]
    assert privileges == "no-new-privileges"
    assert json.loads(filtered.removeprefix("seccomp=")) == profile("x86_64", "strict")


async def test_an_engine_that_has_described_itself_is_not_asked_again_for_each_container(
    daemon: FakeDocker, engine: DockerEngine
) -> None:
    daemon.answers["POST /containers/create"] = (201, {"Id": ID})
    await engine.capabilities()
    await engine.create(SPEC)
    await engine.create(SPEC)
    assert len(daemon.asked("GET /info")) == 1


@pytest.mark.parametrize("nothing", [{}, [], None])
async def test_no_container_is_made_by_an_engine_that_does_not_say_what_it_can_do(
    daemon: FakeDocker, engine: DockerEngine, nothing: object
) -> None:
    daemon.answers["GET /info"] = (200, nothing)
    with pytest.raises(EngineError, match="does not say what it is"):
        await engine.create(SPEC)
    assert daemon.asked("POST /containers/create") == []


async def test_a_name_that_is_taken_is_said_so(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["POST /containers/create"] = (409, {"message": 'Conflict. The name "/x" is already in use by 1'})
    with pytest.raises(EngineError) as raised:
        await engine.create(SPEC)
    assert failure_of(raised) is Failure.NAME_IN_USE


async def test_a_missing_image_is_said_with_the_command_that_makes_it(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["GET /images/agent:1/json"] = (404, {"message": "No such image: agent:1"})
    with pytest.raises(EngineError) as raised:
        await engine.ensure_image("agent:1")
    assert failure_of(raised) is Failure.IMAGE_UNAVAILABLE
    assert "crab image build --engine docker" in raised.value.hint


@pytest.mark.parametrize("image", ["", "../info", "a b", "-a", "a/../b"])
async def test_the_name_of_an_image_cannot_become_another_address(
    daemon: FakeDocker, engine: DockerEngine, image: str
) -> None:
    with pytest.raises(EngineError) as raised:
        await engine.ensure_image(image)
    assert failure_of(raised) is Failure.SPEC_INVALID
    assert daemon.requests == []


def mounted(*mounts: Mount) -> ContainerSpec:
    values = {each: getattr(SPEC, each) for each in SPEC.__dataclass_fields__}
    return ContainerSpec(**{**values, "mounts": mounts})


async def test_no_engine_is_asked_to_mount_what_is_not_there(
    daemon: FakeDocker, engine: DockerEngine, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    real = str(tmp_path / "real")
    for mounts in (
        (Mount(source=str(tmp_path / "missing"), target="/x"),),
        (Mount(source=str(tmp_path / "link"), target="/x"),),
        (Mount(source=str(tmp_path / "link" / "below"), target="/x"),),
        (
            Mount(source=real, target="/x", writable=True, mount_class=MountClass.WORK),
            Mount(source=real, target="/x/absent"),
        ),
    ):
        with pytest.raises(EngineError) as raised:
            await engine.create(mounted(*mounts))
        assert failure_of(raised) is Failure.SPEC_INVALID
    assert daemon.asked("POST /containers/create") == []
    assert not (tmp_path / "real" / "absent").exists()


async def test_a_mountpoint_that_an_agent_made_a_link_is_refused(
    daemon: FakeDocker, engine: DockerEngine, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "work" / "inside").symlink_to("/etc")
    with pytest.raises(EngineError, match="symbolic link"):
        await engine.create(
            mounted(
                Mount(source=str(tmp_path / "work"), target="/x", writable=True, mount_class=MountClass.WORK),
                Mount(source=str(tmp_path / "notes"), target="/x/inside"),
            )
        )
    assert daemon.asked("POST /containers/create") == []


# Starting, freezing, ending.


async def test_what_has_ended_is_not_run_again(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["GET /containers/crab-a-b/json"] = (200, shown("exited"))
    with pytest.raises(EngineError) as raised:
        await engine.start("crab-a-b")
    assert failure_of(raised) is Failure.STARTED_THEN_DIED
    assert {each.method for each in daemon.requests} == {"GET"}


async def test_what_is_done_already_is_not_done_again(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["GET /containers/crab-a-b/json"] = (200, shown("running"))
    await engine.start("crab-a-b")
    await engine.thaw("crab-a-b")
    daemon.answers["GET /containers/crab-a-b/json"] = (200, shown("paused"))
    await engine.freeze("crab-a-b")
    daemon.answers["GET /containers/crab-a-b/json"] = (200, shown("exited"))
    await engine.stop("crab-a-b", grace_s=1)
    assert {each.method for each in daemon.requests} == {"GET"}


async def test_what_is_gone_needs_no_stop_and_no_removal(daemon: FakeDocker, engine: DockerEngine) -> None:
    await engine.stop("crab-a-b", grace_s=1)
    await engine.remove("crab-a-b")
    assert await engine.logs("crab-a-b", lines=5) == []
    assert {each.method for each in daemon.requests} == {"GET"}


async def test_an_agent_that_ignores_sigterm_is_killed_after_its_grace(
    daemon: FakeDocker, engine: DockerEngine
) -> None:
    daemon.answers["GET /containers/crab-a-b/json"] = (200, shown("running"))
    daemon.answers[f"POST /containers/{ID}/kill"] = (204, b"")
    daemon.silent.add(f"POST /containers/{ID}/wait")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(engine.stop, "crab-a-b", grace_s=0.05))
        while len(daemon.asked(f"POST /containers/{ID}/kill")) < 2:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    signals = [each.query["signal"] for each in daemon.asked(f"POST /containers/{ID}/kill")]
    assert signals == ["SIGTERM", "SIGKILL"]


async def test_one_that_cannot_be_killed_is_reported(
    daemon: FakeDocker, engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hermitcrab.containers.engines.docker.KILL_DEADLINE_S", 0.05)
    daemon.answers["GET /containers/crab-a-b/json"] = (200, shown("running", Pid=77))
    daemon.answers[f"POST /containers/{ID}/kill"] = (204, b"")
    daemon.silent.add(f"POST /containers/{ID}/wait")
    with pytest.raises(EngineError, match="cannot be killed") as raised:
        await engine.stop("crab-a-b", grace_s=0)
    assert "77" in raised.value.hint


async def test_removal_waits_for_one_that_is_under_way(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["GET /containers/crab-a-b/json"] = (200, shown("exited"))
    daemon.answers[f"DELETE /containers/{ID}"] = (409, {"message": "removal of container f is already in progress"})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.remove, "crab-a-b")
        while not daemon.asked(f"DELETE /containers/{ID}"):
            await anyio.lowlevel.checkpoint()
        del daemon.answers["GET /containers/crab-a-b/json"]
    assert all(each.query == {"force": "true", "v": "true"} for each in daemon.asked(f"DELETE /containers/{ID}"))


async def test_a_new_container_of_the_same_name_is_not_removed(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["GET /containers/crab-a-b/json"] = (200, shown("exited"))
    daemon.answers[f"DELETE /containers/{ID}"] = (409, {"message": "removal of container f is already in progress"})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.remove, "crab-a-b")
        while not daemon.asked(f"DELETE /containers/{ID}"):
            await anyio.lowlevel.checkpoint()
        daemon.answers["GET /containers/crab-a-b/json"] = (200, {**shown("running"), "Id": "0" * 64})
    assert daemon.asked(f"DELETE /containers/{'0' * 64}") == []


# Events.


def died(name: str, action: str = "die") -> dict[str, Any]:
    return {"Type": "container", "Action": action, "time": 1700, "Actor": {"Attributes": {"name": name}}}


async def test_events_begin_with_resync_and_tell_who_ended(daemon: FakeDocker, engine: DockerEngine) -> None:
    async with engine.events() as events:
        assert daemon.subscribed.is_set()  # entered means subscribed
        assert await anext(events) == EngineEvent(kind="resync")
        daemon.tell(died("other", action="start"))
        daemon.tell(died("crab-a-b"))
        daemon.tell({"Action": "die"})
        daemon.tell(died("crab-a-c", action="died"))
        assert await anext(events) == EngineEvent(kind="ended", name="crab-a-b")
        assert await anext(events) == EngineEvent(kind="ended", name="crab-a-c")
    (asked,) = daemon.asked("GET /events")
    assert json.loads(asked.query["filters"])["label"] == ["hermitcrab.installation=inst"]


async def test_a_broken_stream_is_taken_up_again_and_everything_listed_anew(
    daemon: FakeDocker, engine: DockerEngine
) -> None:
    async with engine.events() as events:
        assert (await anext(events)).kind == "resync"
        daemon.tell(died("crab-a-b"))
        assert (await anext(events)).kind == "ended"
        daemon.cut()
        assert (await anext(events)).kind == "resync"
        daemon.tell(died("crab-a-c"))
        assert await anext(events) == EngineEvent(kind="ended", name="crab-a-c")
    first, second = daemon.asked("GET /events")
    assert "since" not in first.query
    assert second.query["since"] == "1700"


async def test_events_outlive_a_daemon_that_is_down_for_a_while(daemon: FakeDocker, engine: DockerEngine) -> None:
    async with engine.events() as events:
        assert (await anext(events)).kind == "resync"
        daemon.answers["GET /events"] = (500, {"message": "starting"})
        daemon.cut()
        async with anyio.create_task_group() as tasks:

            async def mend() -> None:
                while len(daemon.asked("GET /events")) < 3:
                    await anyio.lowlevel.checkpoint()
                del daemon.answers["GET /events"]

            tasks.start_soon(mend)
            assert (await anext(events)).kind == "resync"


async def test_no_events_from_an_engine_that_does_not_run(tmp_path: Path) -> None:
    engine = DockerEngine("docker", options(tmp_path))
    with pytest.raises(EngineError):
        async with engine.events():
            pytest.fail("entered without being subscribed")
    await engine.aclose()


# Preflight and sockets.


async def test_preflight_warns_of_an_old_runc_and_refuses_an_open_socket(
    daemon: FakeDocker, engine: DockerEngine, tmp_path: Path
) -> None:
    (tmp_path / "docker.sock").chmod(0o666)
    version = {"Version": "20", "ApiVersion": "1.40", "Components": [{"Name": "runc", "Version": "1.1.5"}]}
    daemon.answers["GET /version"] = (200, version)
    findings = {each.subject: each for each in await engine.preflight()}
    assert findings["docker socket"].level == "error"
    assert findings["runc"].level == "warning"
    assert findings["docker"].level == "error"  # the API is too old
    assert all(each.fix for each in findings.values() if each.level != "ok")


async def test_preflight_of_a_good_engine_finds_nothing_wrong(engine: DockerEngine, tmp_path: Path) -> None:
    (tmp_path / "docker.sock").chmod(0o660)
    assert {each.level for each in await engine.preflight()} == {"ok"}


def test_sockets_are_looked_for_where_they_usually_are() -> None:
    environ = {"XDG_RUNTIME_DIR": "/run/user/5", "DOCKER_HOST": "unix:///own.sock", "CONTAINER_HOST": "tcp://x"}
    assert usual_sockets("docker", environ)[0] == "/own.sock"
    assert usual_sockets("podman", environ) == ["/run/user/5/podman/podman.sock", "/run/podman/podman.sock"]
    assert find_socket("docker", "unix:///told.sock") == "/told.sock"


async def test_a_frozen_container_is_thawed_before_it_is_asked_to_end(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["GET /containers/crab-a-b/json"] = (200, shown("paused"))
    daemon.answers[f"POST /containers/{ID}/unpause"] = (204, b"")
    daemon.answers[f"POST /containers/{ID}/kill"] = (204, b"")
    daemon.answers[f"POST /containers/{ID}/wait"] = (200, {"StatusCode": 0})
    await engine.stop("crab-a-b", grace_s=5)
    posts = [each.path.rpartition("/")[2] for each in daemon.requests if each.method == "POST"]
    assert posts == ["unpause", "kill", "wait"]


async def test_a_race_for_the_same_state_is_no_error(daemon: FakeDocker, engine: DockerEngine) -> None:
    daemon.answers["GET /containers/crab-a-b/json"] = (200, shown("running"))
    daemon.answers[f"POST /containers/{ID}/pause"] = (409, {"message": "is already paused"})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.freeze, "crab-a-b")
        while not daemon.asked("GET /containers/crab-a-b/json"):
            await anyio.lowlevel.checkpoint()
        daemon.answers["GET /containers/crab-a-b/json"] = (200, shown("paused"))
    seen = await engine.inspect("crab-a-b")
    assert seen is not None
    assert seen.status is ContainerStatus.FROZEN


def plays_a_probe(daemon: FakeDocker, words: bytes) -> None:
    """A container of the image `agent:1` says this when it is asked."""
    daemon.answers |= {
        "GET /images/agent:1/json": (200, {"Id": f"sha256:{'a' * 64}"}),
        "GET /info": (200, {"SecurityOptions": []}),
        "POST /containers/create": (201, {"Id": "asked"}),
        "POST /containers/asked/start": (204, b""),
        "POST /containers/asked/wait": (200, {"StatusCode": 0}),
        "GET /containers/asked/logs": (200, bytes([1, 0, 0, 0]) + len(words).to_bytes(4, "big") + words),
        "DELETE /containers/asked": (204, b""),
    }


async def test_an_image_is_asked_once_which_python_it_has(
    tmp_path: Path, daemon: FakeDocker, engine: DockerEngine
) -> None:
    plays_a_probe(daemon, b"python 3 12\n")
    assert await engine.python("agent:1") == (3, 12)
    assert await engine.python("agent:1") == (3, 12)
    next_host = DockerEngine("docker", options(tmp_path))
    assert await next_host.python("agent:1") == (3, 12)
    await next_host.aclose()
    assert len(daemon.asked("POST /containers/create")) == 1
    assert len(daemon.asked("DELETE /containers/hermitcrab-python-inst")) == 1, "what a killed host may have left"
    assert len(daemon.asked("DELETE /containers/asked")) == 1


async def test_an_image_without_python_is_said_so_and_asked_again(daemon: FakeDocker, engine: DockerEngine) -> None:
    plays_a_probe(daemon, b"/bin/sh: 1: python3: not found\n")
    with pytest.raises(EngineError, match="no python3") as raised:
        await engine.python("agent:1")
    assert failure_of(raised) is Failure.IMAGE_UNAVAILABLE
    plays_a_probe(daemon, b"python 3 11\n")
    assert await engine.python("agent:1") == (3, 11)
