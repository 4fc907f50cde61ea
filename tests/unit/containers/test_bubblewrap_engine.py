"""Real sandboxes in the situations that only bubblewrap has: hosts that die anywhere, records that lie, no daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hermitcrab.containers.engines import bubblewrap_processes as process
from hermitcrab.containers.engines.bubblewrap import BubblewrapEngine
from hermitcrab.containers.engines.bubblewrap_processes import Process
from hermitcrab.containers.engines.bubblewrap_records import ContainerFolder, Processes
from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import ContainerStatus, Limits, Mount
from hermitcrab.model.ids import InstallationId
from hermitcrab.testing.engine_conformance_inside import ask, until
from hermitcrab.testing.engine_harness import RUNS, Ends, EngineHarness
from hermitcrab.testing.engines import available_engines

WHY_NOT = available_engines()["bubblewrap"].why_not
pytestmark = [pytest.mark.engine("bubblewrap"), pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[EngineHarness]:
    superuser = os.geteuid() == 0
    made = EngineHarness(
        BubblewrapEngine,
        tmp_path,
        uid=1000 if superuser else os.geteuid(),
        gid=1000 if superuser else os.getegid(),
        installation=InstallationId(f"b{os.urandom(4).hex()}"),
    )
    try:
        yield made
    finally:
        await made.aclose()


def folder_of(harness: EngineHarness, name: str) -> ContainerFolder:
    return ContainerFolder(harness.folder / "engine" / name)


def processes_of(harness: EngineHarness, name: str) -> tuple[Process, Process]:
    found = folder_of(harness, name).processes()
    assert found is not None
    assert found.supervisor is not None
    assert found.main is not None
    return found.supervisor, found.main


HOST = """
import sys, anyio, json, os, signal
from pathlib import Path
from hermitcrab.containers.engines.bubblewrap import BubblewrapEngine
from hermitcrab.model.ids import InstallationId
from hermitcrab.testing.engine_harness import RUNS, EngineHarness

async def main(folder, installation, uid, gid):
    harness = EngineHarness(
        BubblewrapEngine, Path(folder), uid=int(uid), gid=int(gid), installation=InstallationId(installation)
    )
    await harness.started(RUNS, name="orphan")
    os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main, *sys.argv[1:])
"""


async def test_a_container_survives_a_killed_host_and_is_adopted(harness: EngineHarness) -> None:
    argv = [sys.executable, "-c", HOST, str(harness.folder), harness.installation, str(harness.uid), str(harness.gid)]
    host = await anyio.run_process(argv, check=False, stderr=None)
    assert host.returncode == -signal.SIGKILL
    async with Ends(harness.engine) as ends:
        [view] = await harness.engine.containers()
        assert (view.name, view.status) == ("orphan", ContainerStatus.RUNNING)
        await harness.engine.stop("orphan", grace_s=0)
        await ends.of("orphan")
    ended = (await harness.view("orphan")).exit
    assert ended is not None
    assert ended.exit_code == 137


async def test_a_start_that_was_not_written_down_any_more_is_found(harness: EngineHarness) -> None:
    name = await harness.started()
    supervisor, main = processes_of(harness, name)
    folder_of(harness, name).write_processes(Processes(process.boot_id()))
    await harness.reopen()
    assert (await harness.view(name)).status is ContainerStatus.RUNNING
    assert processes_of(harness, name) == (supervisor, main)
    await harness.engine.remove(name)
    assert not process.lives(main)


async def test_a_start_that_never_came_to_life_has_ended(harness: EngineHarness) -> None:
    spec = harness.spec(RUNS)
    await harness.engine.create(spec)
    folder_of(harness, spec.name).write_processes(Processes(process.boot_id()))
    view = await harness.view(spec.name)
    assert view.status is ContainerStatus.EXITED
    assert view.exit is not None
    assert view.exit.exit_code is None


async def test_a_start_that_broke_off_fails_at_once_and_leaves_nobody_waiting(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real bubblewrap, whose child inside waits for ever in the middle of its set-up. The pipe is opened for both:
    # as a reader alone it would wait before there is a child.
    gate, program = harness.folder / "gate", harness.folder / "bwrap"
    os.mkfifo(gate)
    program.write_text(f'#!/bin/sh\nexec {process.bubblewrap()} --block-fd 9 "$@" 9<>{gate}\n')
    program.chmod(0o755)
    monkeypatch.setattr(process, "bubblewrap", lambda: str(program))
    spec = harness.spec(RUNS)
    await harness.engine.create(spec)
    folder = folder_of(harness, spec.name)
    record = folder.record()
    assert record is not None

    async def kill_the_supervisor() -> None:
        await until(lambda: folder.status().main_pid is not None)
        child = folder.status().main()
        assert child is not None
        supervisor = process.parent(child)
        assert supervisor is not None
        process.send(supervisor, signal.SIGKILL)

    # A set-up that is only slow would never be given up.
    monkeypatch.setattr(process, "SET_UP_S", 86_400.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill_the_supervisor)
        with pytest.raises(EngineError, match="could not be set up"):
            await harness.engine.start(spec.name)
    assert list(process.marked(record.id)) == []
    assert (await harness.view(spec.name)).status is ContainerStatus.EXITED
    await harness.engine.remove(spec.name)


async def test_what_a_start_that_broke_off_has_left_in_the_control_group_goes_with_its_container(
    harness: EngineHarness,
) -> None:
    name = await harness.started()
    group = harness.engine._sandboxes.cgroups.group(name)  # type: ignore[attr-defined]
    if group is None:
        pytest.skip("no control groups here")
    joins = ["/bin/sh", "-c", 'for each; do echo 0 >"$each"; done; echo; exec sleep 30', "sh", *group.entrances()]
    async with await anyio.open_process(joins, stdin=None) as left:
        assert left.stdout is not None
        await left.stdout.receive()
        await harness.engine.remove(name)
        assert await left.wait() == -signal.SIGKILL
    assert not group.exists()
    await harness.started(name=name)


async def test_processes_that_a_start_makes_while_it_is_ended_end_too(harness: EngineHarness) -> None:
    spec = harness.spec(RUNS)
    await harness.engine.create(spec)
    folder = folder_of(harness, spec.name)
    record = folder.record()
    assert record is not None
    makes = "while :; do sleep 30 & sleep 0.001; done >/dev/null 2>&1 &"
    await anyio.run_process(["/bin/sh", "-c", makes], env={process.MARKER: record.id})
    # As a host leaves it that dies in the middle of the start.
    folder.write_processes(Processes(process.boot_id()))
    await harness.engine.remove(spec.name)
    assert list(process.marked(record.id)) == []


async def test_the_end_is_told_even_when_the_supervisor_was_killed_before(harness: EngineHarness) -> None:
    name = await harness.started()
    supervisor, main = processes_of(harness, name)
    async with Ends(harness.engine) as ends:
        process.send(supervisor, signal.SIGKILL)
        # Its end is noticed on the loop, which then waits for the main process instead.
        await until(lambda: not process.lives(supervisor))
        assert (await harness.view(name)).status is ContainerStatus.RUNNING
        process.send(main, signal.SIGKILL)
        await ends.of(name)
    ended = (await harness.view(name)).exit
    assert ended is not None
    assert ended.exit_code is None


async def test_a_pid_that_went_to_another_process_is_not_touched(harness: EngineHarness) -> None:
    spec = harness.spec(RUNS)
    await harness.engine.create(spec)
    async with await anyio.open_process(["sleep", "600"], stdin=None, stdout=None, stderr=None) as bystander:
        found = process.identify(bystander.pid)
        assert found is not None
        stale = Process(found.pid, found.started - 1)
        folder_of(harness, spec.name).write_processes(Processes(process.boot_id(), stale, stale))
        assert (await harness.view(spec.name)).status is ContainerStatus.EXITED
        await harness.engine.stop(spec.name, grace_s=0)
        await harness.engine.remove(spec.name)
        assert process.lives(found)
        bystander.kill()


async def test_after_a_restart_of_the_machine_it_has_ended_with_an_unknown_code(harness: EngineHarness) -> None:
    name = await harness.started()
    supervisor, main = processes_of(harness, name)
    folder_of(harness, name).write_processes(Processes("another boot", supervisor, main))
    view = await harness.view(name)
    assert view.exit is not None
    assert (view.status, view.exit.exit_code) == (ContainerStatus.EXITED, None)
    folder_of(harness, name).write_processes(Processes(process.boot_id(), supervisor, main))


async def test_a_damaged_record_ends_its_container_and_frees_the_name(harness: EngineHarness) -> None:
    name = await harness.started()
    _, main = processes_of(harness, name)
    (folder_of(harness, name).path / "record.json").write_text("{")
    await harness.reopen()
    assert await harness.engine.containers() == []
    assert not process.lives(main)
    await harness.engine.create(harness.spec(RUNS, name=name))


async def test_two_hosts_on_one_home_start_one_container(harness: EngineHarness) -> None:
    spec = harness.spec(RUNS)
    await harness.engine.create(spec)
    other = BubblewrapEngine(harness._options(harness.installation))
    async with anyio.create_task_group() as tasks:
        for engine in (harness.engine, other, harness.engine, other):
            tasks.start_soon(engine.start, spec.name)
    record = folder_of(harness, spec.name).record()
    assert record is not None
    assert len(list(process.marked(record.id))) == 1
    await other.aclose()


async def test_an_engine_whose_folder_cannot_be_read_is_unavailable_not_empty(harness: EngineHarness) -> None:
    (harness.folder / "engine").write_text("in the way")
    with pytest.raises(EngineError) as caught:
        await harness.engine.containers()
    assert caught.value.failure is Failure.RUNTIME_UNAVAILABLE
    (harness.folder / "engine").unlink()


async def test_a_closed_engine_is_unavailable(harness: EngineHarness) -> None:
    engine = BubblewrapEngine(harness._options(harness.installation))
    await engine.aclose()
    await engine.aclose()
    with pytest.raises(EngineError) as caught:
        await engine.containers()
    assert caught.value.failure is Failure.RUNTIME_UNAVAILABLE


@pytest.mark.parametrize("name", ["", ".", "..", ".new-x", "a/b", "../x", "x\0", "x\n"])
async def test_a_name_that_leads_elsewhere_is_refused(harness: EngineHarness, name: str) -> None:
    with pytest.raises(EngineError) as caught:
        await harness.engine.create(replace(harness.spec(RUNS), name=name))
    assert caught.value.failure is Failure.SPEC_INVALID
    with pytest.raises(EngineError):
        await harness.engine.remove(name)


async def test_a_sandbox_that_cannot_be_set_up_says_why(harness: EngineHarness) -> None:
    spec = replace(harness.spec(RUNS), workdir="/no/such/folder")
    await harness.engine.create(spec)
    with pytest.raises(EngineError) as caught:
        await harness.engine.start(spec.name)
    assert "/no/such/folder" in caught.value.hint
    assert (await harness.view(spec.name)).status is ContainerStatus.EXITED
    await harness.engine.remove(spec.name)


async def test_every_process_and_file_of_a_removed_container_is_gone(harness: EngineHarness) -> None:
    name = await harness.started()
    record = folder_of(harness, name).record()
    assert record is not None
    await harness.engine.remove(name)
    assert list(process.marked(record.id)) == []
    assert list((harness.folder / "engine").iterdir()) == []


def command_line(shown: Process) -> bytes:
    return Path(f"/proc/{shown.pid}/cmdline").read_bytes()


async def test_nothing_of_the_environment_is_in_the_arguments_of_a_process(harness: EngineHarness) -> None:
    name = await harness.started(env={"MY_WORD": "not-for-ps"})
    supervisor, main = processes_of(harness, name)
    for each in (supervisor, main):
        assert b"not-for-ps" not in command_line(each)


async def test_mounts_know_no_devices_and_no_setuid(harness: EngineHarness) -> None:
    mounts = await ask(harness, "{l.split()[4]: l.split()[5].split(',') for l in open('/proc/self/mountinfo')}")
    for target in ("/", "/usr", "/workspace", "/tmp", "/home/agent", "/dev/shm"):
        assert {"nosuid", "nodev"} <= set(mounts[target]), target
    assert "ro" in mounts["/"]
    assert "ro" in mounts["/usr"]
    assert "ro" in mounts["/dev"]


PROGRAMS = {
    "python3": """python3 -c 'import ssl, subprocess, threading
thread = threading.Thread(target=print); thread.start(); thread.join()
print(subprocess.check_output(["echo", "fine"]))'""",
    "git": "git init -q r && cd r && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git log",
    "node": """node -e 'new (require("worker_threads").Worker)("", {eval: true});
console.log(require("child_process").execSync("echo fine").toString())'""",
}


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(name, marks=pytest.mark.skipif(not Path("/usr/bin", name).exists(), reason=f"no {name} in /usr"))
        for name in PROGRAMS
    ],
)
async def test_ordinary_programs_run(harness: EngineHarness, program: str) -> None:
    limits = Limits(memory_bytes=1024 * 1024 * 1024, pids=128)
    view, lines = await harness.run(harness.spec(PROGRAMS[program], limits=limits))
    assert view.exit is not None
    assert view.exit.exit_code == 0, lines


async def test_a_container_runs_in_an_unpacked_root(harness: EngineHarness) -> None:
    root = harness.folder / "image"
    for name in ("usr/bin", "etc", "opt/here"):
        (root / name).mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "etc/passwd").write_text("root:x:0:0::/:\n")
    (root / "opt/here/file").write_text("the image's\n")
    _copy_with_libraries(["/bin/sh", "/bin/cat", "/bin/ls"], root)
    given = harness.writable("given")
    (given / "file").write_text("the mount's\n")
    mount = Mount(source=str(given), target="/opt/given")
    script = "cat /opt/here/file /opt/given/file /etc/passwd; ls /; echo x >/opt/x"
    view, lines = await harness.run(harness.spec(script, mounts=(mount,), image=str(root)))
    assert lines[:2] == ["the image's", "the mount's"]
    assert any(line.startswith("agent:") for line in lines)
    assert "home" in lines
    assert view.exit is not None
    assert view.exit.exit_code != 0


def _copy_with_libraries(programs: list[str], root: Path) -> None:
    for program in programs:
        told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        libraries = [word for word in told.split() if word.startswith("/")]
        for path in (program, *libraries):
            place = root / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)


async def test_a_long_log_is_cut_while_its_writer_goes_on(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hermitcrab.containers.engines.bubblewrap.LOG_CHECK_S", 0.01)
    limits = Limits(memory_bytes=256 * 1024 * 1024, pids=64, log_bytes=200_000)
    script = (
        "i=0; while [ $i -lt 40000 ]; do echo line $i; i=$((i+1)); done; echo full; read x </workspace/gate; echo on"
    )
    gate = harness.writable("work") / "gate"
    os.mkfifo(gate)
    gate.chmod(0o666)
    async with Ends(harness.engine) as ends:
        name = await harness.started(script, limits=limits)
        await harness.said(name, "full")
        log = folder_of(harness, name).path / "log"
        await until(lambda: log.stat().st_blocks * 512 <= limits.log_bytes)
        await anyio.to_thread.run_sync(gate.write_text, "go\n")
        await ends.of(name)
    assert await harness.engine.logs(name, lines=3) == ["line 39999", "full", "on"]


async def test_many_start_at_once(harness: EngineHarness) -> None:
    async def start(number: int) -> None:
        await harness.started(name=f"many-{number}")

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(start, number)
    views = await harness.engine.containers()
    assert {view.status for view in views} == {ContainerStatus.RUNNING}
    assert len({view.pid for view in views}) == 20


async def test_preflight_tells_what_is_missing(harness: EngineHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "bubblewrap", _no_bubblewrap)
    findings = await harness.engine.preflight()
    errors = [finding for finding in findings if finding.level == "error"]
    assert [finding.subject for finding in errors] == ["bubblewrap"]
    assert errors[0].fix


def _no_bubblewrap() -> str:
    raise EngineError(Failure.RUNTIME_UNAVAILABLE, "There is no bubblewrap here", hint="Install it.")


async def test_preflights_trial_leaves_nothing(harness: EngineHarness) -> None:
    findings = await harness.engine.preflight()
    assert [finding.subject for finding in findings][-1] == "trial"
    assert list((harness.folder / "engine").iterdir()) == []


async def test_the_record_can_be_read_by_other_tools(harness: EngineHarness) -> None:
    name = await harness.started()
    found = json.loads((folder_of(harness, name).path / "record.json").read_text())
    assert found["spec"]["name"] == name
