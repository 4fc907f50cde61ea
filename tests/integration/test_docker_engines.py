"""What real Docker and Podman do with our containers, beyond what every engine must do (tests/conformance)."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from hermitcrab.containers.engine import EngineOptions
from hermitcrab.containers.engines.docker import DockerEngine
from hermitcrab.containers.engines.docker_api import EngineApi, EngineName
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic import system_calls
from hermitcrab.logic.call_numbers import CALLS
from hermitcrab.logic.docker_body import Dialect, create_body
from hermitcrab.logic.hardening import PROFILES
from hermitcrab.model.container import ContainerSpec, ContainerStatus, ContainerView, Limits, Mount, MountClass
from hermitcrab.model.ids import Generation, InstallationId, SessionId
from hermitcrab.selftest.daemons import Service
from hermitcrab.testing.engines import available_engines
from hermitcrab.testing.foreign_images import foreign_image
from hermitcrab.testing.loaded_filters import filters_of

AVAILABLE = available_engines()
BASE = os.environ.get("HERMITCRAB_TEST_BASE", "hermitcrab-base:bookworm")

HOSTILE_IMAGE = """\
ARG BASE
FROM ${BASE}
VOLUME /data
USER root
WORKDIR /proc/self
HEALTHCHECK CMD touch /tmp/healthy
ENTRYPOINT ["sleep", "600"]
STOPSIGNAL SIGKILL
"""

PROBE = r"""
import json, os, resource, socket, sys

def attempt(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return os.strerror(error.errno)
    return "done"

def connect(family, address):
    with socket.socket(family) as connection:
        connection.settimeout(2)
        connection.connect(address)

with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    loopback = attempt(connect, socket.AF_INET, listener.getsockname())
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
open("/workspace/written", "w").close()
json.dump({
    "pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid(), "cwd": os.getcwd(),
    "capabilities": {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
    "no_new_privileges": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip(),
    "root": attempt(open, "/x", "w"), "run": attempt(open, "/run/x", "w"), "var_tmp": attempt(open, "/var/tmp/x", "w"),
    "tmp": attempt(open, "/tmp/x", "w"), "home": attempt(open, "/home/agent/x", "w"),
    "notes": attempt(open, "/workspace/agent/x", "w"), "socket_folder": attempt(open, "/run/hermitcrab/x", "w"),
    "link": attempt(connect, socket.AF_UNIX, "/run/hermitcrab/link.sock"),
    "loopback": loopback, "outside": attempt(connect, socket.AF_INET, ("192.0.2.1", 443)),
    "interfaces": sorted(line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line),
    "open_files": resource.getrlimit(resource.RLIMIT_NOFILE), "core": resource.getrlimit(resource.RLIMIT_CORE),
    "memory": os.sysconf("SC_PAGE_SIZE"), "processes": [each for each in os.listdir("/proc") if each.isdigit()],
    "mine": {name: value for name, value in os.environ.items() if name.startswith("MY_")},
}, sys.stdout)
"""


@dataclass(slots=True)
class Bench:
    """One real engine, an installation of its own on it, and the containers made there."""

    name: EngineName
    engine: DockerEngine
    api: EngineApi
    folder: Path
    image: str
    installation: InstallationId
    made: list[str] = field(default_factory=list)

    def spec(self, *argv: str, **changes: Any) -> ContainerSpec:
        name = f"hermitcrab-test-{uuid.uuid4().hex[:12]}"
        self.made.append(name)
        plain = ContainerSpec(
            name=name,
            installation=self.installation,
            session=SessionId("session"),
            generation=Generation(1),
            image=self.image,
            argv=argv,
            env={},
            mounts=(),
            uid=1000,
            gid=1000,
            workdir="/tmp",
        )
        return replace(plain, **changes)

    async def started(self, spec: ContainerSpec) -> None:
        """Make and start it, and wait for its first word. Before that it may be the engine's own program still."""
        await self.engine.create(spec)
        await self.engine.start(spec.name)
        await self.said(spec, "ready")

    async def said(self, spec: ContainerSpec, line: str) -> list[str]:
        """Its log, once that line is in it."""
        while line not in (log := await self.engine.logs(spec.name, lines=9)):  # noqa: ASYNC110  # no engine tells
            await anyio.sleep(0.05)
        return log

    async def run(self, spec: ContainerSpec) -> ContainerView:
        """Make and start it, and wait for its end."""
        async with self.engine.events() as events:
            await self.engine.create(spec)
            await self.engine.start(spec.name)
            async for event in events:
                seen = await self.engine.inspect(spec.name)
                assert seen is not None
                if seen.status is ContainerStatus.EXITED:
                    return seen
                assert event.kind == "resync"
        pytest.fail("the events ended")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.engine(name)) for name in ("docker", "podman")])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    name: EngineName = request.param
    found = AVAILABLE[name]
    if not found.usable:
        pytest.skip(found.why_not)
    installation = InstallationId(f"test-{uuid.uuid4().hex[:8]}")
    options = EngineOptions(installation=installation, folder=tmp_path, socket=found.socket)
    bench = Bench(name, DockerEngine(name, options), EngineApi(name, found.socket), tmp_path, found.image, installation)
    try:
        yield bench
    finally:
        for each in bench.made:
            with suppress(EngineError):
                await bench.engine.remove(each)
        await bench.engine.aclose()
        await bench.api.aclose()


@contextmanager
def listener(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0o666)
        yield


async def test_a_container_is_closed_but_for_its_socket(bench: Bench) -> None:
    work, notes, run = (bench.folder / each for each in ("work", "notes", "run"))
    for each in (work, notes, run, work / "agent"):
        each.mkdir()
    os.chown(work, 1000, 1000)
    spec = bench.spec(
        "python3",
        "-c",
        PROBE,
        workdir="/workspace",
        env={"MY_ODD": "a=b 'c'\nd \u00e9 $HOME", "MY_EMPTY": ""},
        mounts=(
            Mount(source=str(work), target="/workspace", writable=True, mount_class=MountClass.WORK),
            Mount(source=str(notes), target="/workspace/agent"),
            Mount(source=str(run), target="/run/hermitcrab"),
        ),
        limits=Limits(open_files=1234, pids=33, memory_bytes=128 * 1024 * 1024),
    )
    with listener(run / "link.sock"):
        seen = await bench.run(spec)
    log = await bench.engine.logs(spec.name, lines=1000)
    assert seen.exit is not None
    assert seen.exit.exit_code == 0, log
    facts = json.loads("".join(log))
    read_only = "Read-only file system"
    assert (facts["pid"], facts["uid"], facts["gid"], facts["cwd"]) == (1, 1000, 1000, "/workspace")
    assert set(facts["capabilities"].values()) == {0}
    assert (facts["no_new_privileges"], facts["seccomp"]) == ("1", "2")
    assert facts["root"] == facts["run"] == facts["var_tmp"] == facts["notes"] == facts["socket_folder"] == read_only
    assert facts["tmp"] == facts["home"] == facts["link"] == facts["loopback"] == "done"
    assert facts["outside"] == "Network is unreachable"
    assert facts["interfaces"] == ["lo"]
    assert facts["open_files"] == [1234, 1234]
    assert facts["core"] == [0, 0]
    assert facts["processes"] == ["1"]
    assert facts["mine"] == {"MY_ODD": "a=b 'c'\nd \u00e9 $HOME", "MY_EMPTY": ""}
    written = (work / "written").stat()
    assert (written.st_uid, written.st_gid) == (1000, 1000)


LATER = frozenset({"fchmodat2", "pkey_alloc", "pkey_free", "pkey_mprotect", "process_vm_readv", "process_vm_writev"})
"""What Docker's and Podman's own filters came to let through in later versions than the oldest that serve here."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the filter of a process from the kernel")
async def test_what_the_engines_own_filter_refuses_is_refused_by_ours_that_stands_in_its_place(bench: Bench) -> None:
    spec = bench.spec("sh", "-c", "echo ready; exec sleep 600")
    processes = 4096 if bench.name == "podman" else 32768
    body = create_body(spec, image=bench.image, dialect=Dialect(engine=bench.name, processes=processes))
    assert body["HostConfig"]["SecurityOpt"] == ["no-new-privileges"]
    await bench.api.request("POST", "/containers/create", doing="create", params={"name": spec.name}, body=body)
    await bench.engine.start(spec.name)
    await bench.said(spec, "ready")
    seen = await bench.engine.inspect(spec.name)
    assert seen is not None
    assert seen.pid is not None
    (own,) = await anyio.to_thread.run_sync(filters_of, seen.pid)
    machine = platform.machine()
    calls = CALLS[machine]
    for hardening in PROFILES:
        ours = system_calls.allowed(hardening) & calls.keys()
        assert {name for name in ours if not own.lets(machine, calls[name])} <= LATER
    for family in system_calls.SOCKET_FAMILIES:
        assert own.lets(machine, calls["socket"], family, 1, 0)
    for personality in system_calls.PERSONALITIES:
        assert own.lets(machine, calls["personality"], personality)
    for bit in range(32):
        if not own.lets(machine, calls["clone"], 1 << bit | 17):
            assert system_calls.NEW_NAMESPACE_FLAGS >> bit & 1


async def test_a_hostile_image_decides_nothing(bench: Bench) -> None:
    tag = f"hermitcrab-test-image:{uuid.uuid4().hex[:8]}"
    socket = str(AVAILABLE[bench.name].socket)
    async with foreign_image(bench.name, socket, tag=tag, base=BASE, containerfile=HOSTILE_IMAGE):
        spec = bench.spec(
            "sh", "-c", "trap 'exit 5' TERM; id -u; pwd; touch /data/x || echo closed; sleep 600 & wait", image=tag
        )
        await bench.engine.create(spec)
        await bench.engine.start(spec.name)
        log = await bench.said(spec, "closed")
        assert [each for each in log if "touch" not in each] == ["1000", "/tmp", "closed"]
        await bench.engine.stop(spec.name, grace_s=30)  # More than it needs on any machine.
        seen = await bench.engine.inspect(spec.name)
        assert seen is not None
        assert seen.exit is not None
        assert seen.exit.exit_code == 5  # SIGTERM came, not the image's signal
        await bench.engine.remove(spec.name)


async def test_too_much_memory_kills_and_too_many_processes_do_not_start(bench: Bench) -> None:
    unrealized = (await bench.engine.capabilities()).unrealized
    greedy = bench.spec("python3", "-c", "x = bytearray(10**9)", limits=Limits(memory_bytes=64 * 1024 * 1024))
    seen = await bench.run(greedy)
    assert seen.exit is not None
    assert seen.exit.exit_code == 137
    assert seen.exit.oom_killed is ("oom-report" not in unrealized)
    script = "import os\ntry:\n  while os.fork(): pass\n  os.pause()\nexcept OSError as error: print(error.strerror)"
    forking = bench.spec(
        "python3", "-c", script.replace("os.pause()", "import signal; signal.pause()"), limits=Limits(pids=30)
    )
    seen = await bench.run(forking)
    assert seen.exit is not None
    assert await bench.engine.logs(forking.name, lines=5) == ["Resource temporarily unavailable"]


async def test_a_container_that_somebody_else_made_is_not_touched(bench: Bench) -> None:
    spec = bench.spec("sleep", "600")
    created = await bench.api.request(
        "POST",
        "/containers/create",
        doing="make a foreign container",
        params={"name": spec.name},
        body={"Image": bench.image, "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none"}},
    )
    try:
        with pytest.raises(EngineError) as raised:
            await bench.engine.create(spec)
        assert raised.value.failure is Failure.NAME_IN_USE
        with pytest.raises(EngineError) as raised:
            await bench.engine.remove(spec.name)
        assert raised.value.failure is Failure.NAME_IN_USE
        assert await bench.engine.containers() == []
        assert await bench.api.request("GET", f"/containers/{created['Id']}/json", doing="look") is not None
    finally:
        await bench.api.request("DELETE", f"/containers/{created['Id']}", doing="tidy up", params={"force": "true"})


async def test_of_many_who_make_the_same_container_one_succeeds(bench: Bench) -> None:
    spec = bench.spec("sleep", "600")
    failures: list[Failure] = []

    async def create() -> None:
        try:
            await bench.engine.create(spec)
        except EngineError as error:
            failures.append(error.failure)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(create)
    assert failures == [Failure.NAME_IN_USE] * 7
    assert [each.name for each in await bench.engine.containers()] == [spec.name]


@pytest.mark.parametrize("files", [2, 4])
async def test_a_flood_of_output_stays_within_its_limit_on_disk(bench: Bench, files: int) -> None:
    limit = 256 * 1024
    limits = Limits(log_bytes=limit, log_files=files)
    spec = bench.spec("sh", "-c", "yes 0123456789 | head -c 4400000; echo last", limits=limits)
    await bench.run(spec)
    shown = await bench.api.request("GET", f"/containers/{spec.name}/json", doing="look")
    path = Path(shown.get("LogPath") or shown["HostConfig"]["LogConfig"]["Path"])
    on_disk = sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))
    assert 0 < on_disk < limit * 2
    assert (await bench.engine.logs(spec.name, lines=1)) == ["last"]


async def test_an_agent_that_ignores_sigterm_is_killed(bench: Bench) -> None:
    spec = bench.spec("sh", "-c", "trap '' TERM; echo ready; sleep 600")
    await bench.started(spec)
    await bench.engine.stop(spec.name, grace_s=0.2)
    seen = await bench.engine.inspect(spec.name)
    assert seen is not None
    assert seen.exit is not None
    assert seen.exit.exit_code == 137


async def test_removing_a_frozen_container_leaves_nothing(bench: Bench) -> None:
    spec = bench.spec("sleep", "600")
    await bench.engine.create(spec)
    await bench.engine.start(spec.name)
    await bench.engine.freeze(spec.name)
    await bench.engine.freeze(spec.name)
    seen = await bench.engine.inspect(spec.name)
    assert seen is not None
    assert seen.status is ContainerStatus.FROZEN
    assert seen.pid is not None
    await bench.engine.remove(spec.name)
    await bench.engine.remove(spec.name)
    assert await bench.engine.inspect(spec.name) is None
    assert not await anyio.Path(f"/proc/{seen.pid}").exists()


async def test_what_strict_hardening_lacks_here_is_said_openly(bench: Bench) -> None:
    lacking = (await bench.engine.capabilities()).strict_unrealized
    assert ("gvisor" in lacking) == (shutil.which("runsc") is None)
    spec = bench.spec("cat", "/proc/version", hardening="strict")
    await bench.run(spec)
    (version,) = await bench.engine.logs(spec.name, lines=1)
    assert ("gvisor" in lacking) == (os.uname().release in version)


@pytest.mark.engine("podman")
async def test_containers_and_events_survive_a_restart_of_the_service(tmp_path: Path) -> None:
    if not AVAILABLE["podman"].usable or shutil.which("podman") is None or os.getuid() != 0:
        pytest.skip(AVAILABLE["podman"].why_not or "needs the podman program and root, to start a service of its own")
    path = tmp_path / "own.sock"
    installation = InstallationId(f"test-{uuid.uuid4().hex[:8]}")
    engine = DockerEngine("podman", EngineOptions(installation=installation, folder=tmp_path, socket=str(path)))
    bench = Bench("podman", engine, EngineApi("podman", str(path)), tmp_path, AVAILABLE["podman"].image, installation)
    spec = bench.spec("sleep", "600")
    command = ["podman", "system", "service", "--time", "0", f"unix://{path}"]
    service = Service(command, socket=path, log=tmp_path / "podman.log")
    try:
        await service.start()
        await engine.create(spec)
        await engine.start(spec.name)
        before = await engine.inspect(spec.name)
        async with engine.events() as events:
            assert (await anext(events)).kind == "resync"
            await service.end(signal.SIGTERM)
            with pytest.raises(EngineError) as raised:
                await engine.containers()
            assert raised.value.failure is Failure.RUNTIME_UNAVAILABLE
            await service.start()
            assert (await anext(events)).kind == "resync"
            assert await engine.inspect(spec.name) == before
            await engine.stop(spec.name, grace_s=0)
            while (event := await anext(events)).kind != "ended":
                pass
            assert event.name == spec.name
        await engine.remove(spec.name)
    finally:
        with suppress(EngineError):
            await engine.remove(spec.name)
        await engine.aclose()
        await service.end(signal.SIGTERM)
