"""The self-test that is shipped: short and with real engines, and shown to notice what it is there to notice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from hermitcrab.containers.certificates import Certificate
from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.errors import EngineError
from hermitcrab.model.ids import Generation
from hermitcrab.selftest.daemons import docker_folders, dockerd
from hermitcrab.selftest.disk import fill_disk, small_disk
from hermitcrab.selftest.leftovers import cgroups_left, leftovers
from hermitcrab.selftest.outcome import Plan, Progress
from hermitcrab.selftest.run import run
from hermitcrab.testing.scratch import add_chat, host_on, say, session_of

NeedEngine = Callable[[str], Mapping[str, str]]


def quiet(_progress: Progress) -> None:
    """Nobody looks."""


@pytest.mark.parametrize("engine", ["bubblewrap", "podman"])
async def test_faults_lose_double_and_leave_nothing(engine: str, need_engine: NeedEngine, monkeypatch: Any) -> None:
    for key, value in need_engine(engine).items():
        monkeypatch.setenv(key, value)
    # Time for each fault once. A busy machine passes over some, as nothing runs at that moment.
    plan = Plan(engine=engine, seed=7, seconds=5.0, sessions=2, fault_every_s=0.4, pause_s=0.3, messages_at_least=2)
    told: list[Progress] = []
    outcome = await run(plan, tell=told.append)
    assert outcome.to_json()["details"] == []
    assert outcome.is_good
    assert outcome.messages >= 2 * 4
    assert sum(outcome.faults.values()) >= 5
    assert outcome.faults["kill-host"] == 1
    assert ("kill-engine" in outcome.impossible) == ("kill-engine" not in outcome.faults) == (engine == "bubblewrap")
    phases = list(dict.fromkeys(each.phase for each in told))
    assert phases[:4] == ["preparing", "talking", "faults", "last answers"]
    assert any(each.faults and each.last_fault for each in told)


def test_the_command_prints_one_object_and_says_by_its_exit_code_that_all_is_well(need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    command = [sys.executable, "-m", "hermitcrab.cli.main", "selftest", "--sessions", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["ok"], found["messages"], found["lost"], found["orphans"]) == (True, 12, 0, 0)
    assert (found["minutes"], found["sessions"], found["faults"], found["files_growth"]) == (0, 2, {}, 0)
    assert found["memory_growth_mib"] <= found["tolerances"]["memory_mib"]


async def test_an_engine_that_cannot_be_used_is_said_before_anything_is_tried(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HERMITCRAB__CONTAINERS__DOCKER_SOCKET", str(tmp_path / "none.sock"))
    plan = Plan(engine="docker", seed=1, seconds=0, sessions=1, fault_every_s=1, pause_s=0.1)
    phases: list[str] = []
    with pytest.raises(EngineError, match="there is no socket"):
        await run(plan, tell=lambda progress: phases.append(progress.phase))
    assert phases == []


async def test_a_host_with_defects_does_not_pass(tmp_path: Path, need_engine: NeedEngine, monkeypatch: Any) -> None:
    need_engine("bubblewrap")
    shutil.copy(Path(__file__).with_name("sabotage.py"), tmp_path / "sitecustomize.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SABOTAGE", str(tmp_path))
    plan = Plan(
        engine="bubblewrap",
        seed=1,
        seconds=0,
        sessions=4,
        fault_every_s=1,
        pause_s=0.1,
        at_rest_within_s=1,
    )
    try:
        outcome = await run(plan, tell=quiet)
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    found = outcome.to_json()
    assert not found["ok"]
    assert outcome.lost == ["chat-0: message 2 was not answered"]
    assert outcome.doubled == ["chat-1: message 2 was answered again"]
    assert outcome.out_of_order == ["chat-2: message 2 came too late"]
    assert any(each.startswith("container ") for each in outcome.orphans)
    assert any(each.startswith("process ") for each in outcome.orphans)
    assert len(outcome.cut_off) == 1
    assert "ENOENT" in outcome.cut_off[0]
    for sign in ("memory_mib grew", "fds grew", "tasks grew", "files grew", "groups/something is new"):
        assert any(sign in each for each in outcome.grown), sign
    assert found["memory_growth_mib"] > 32
    assert found["fds_growth"] >= 32
    assert found["tasks_growth"] >= 16


def test_one_that_is_asked_to_end_leaves_nothing(tmp_path: Path, need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    command = [sys.executable, "-m", "hermitcrab.cli.main", "selftest", "--sessions", "2"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as test:
        assert test.stderr is not None
        # As soon as a container has answered.
        while not re.search(rb"[1-9]\d* answers", test.stderr.readline()):
            assert test.poll() is None
        (scratch,) = tmp_path.glob("crab-selftest-*")
        test.terminate()
        assert test.wait() == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    # A container of another test that is being made has a copy of every mount of the machine, for a moment.
    while with_a_trace_of(scratch):
        time.sleep(0.1)


def with_a_trace_of(folder: Path) -> list[int]:
    """Processes that were started for that folder, or have something mounted in it."""
    needle, found = os.fsencode(folder), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (process / "cmdline").read_bytes() + (process / "mountinfo").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue  # It ended meanwhile.
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk")
async def test_a_disk_that_is_being_filled_when_the_test_is_ended_is_free_again(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        assert disk is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fill_disk, disk, 60)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert list(disk.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("dockerd") is None, reason="needs root and dockerd")
async def test_a_docker_of_the_tests_own_comes_back_after_it_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / f"crab-{uuid.uuid4().hex[:12]}"  # Its name is used outside of it: no other test may have it.
    folder.mkdir()
    with docker_folders(folder):
        service = dockerd(folder)
        try:
            await service.start()
            await service.start()
            await service.restart()
        finally:
            await service.end(signal.SIGTERM)
    assert not service.socket.parent.exists()
    log = (folder / "docker.log").read_text()
    assert log.count("API listen on") == 2


@pytest.mark.parametrize(
    ("wish", "told"),
    [(("--sessions", "0"), "--sessions"), (("--minutes", "2"), "--chaos"), (("--seed", "7"), "--chaos")],
)
def test_impossible_wishes_are_refused(wish: tuple[str, ...], told: str) -> None:
    command = [sys.executable, "-m", "hermitcrab.cli.main", "selftest", *wish]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert told in done.stderr


def test_control_groups_of_others_that_go_while_ours_are_looked_for_change_nothing(tmp_path: Path) -> None:
    for controller in ("cpu", "memory"):
        (tmp_path / controller / "hermitcrab/one/container").mkdir(parents=True)
        (tmp_path / controller / "another's").mkdir()
    found = cgroups_left("one", tmp_path)
    seen = next(found)
    assert seen.endswith("/hermitcrab/one/container is there")
    shutil.rmtree(tmp_path / ("memory" if "/cpu/" in seen else "cpu"))
    assert list(found) == []


async def test_what_is_left_over_is_noticed(tmp_path: Path, need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    log = tmp_path / "host.log"
    has_groups = os.geteuid() == 0 and Path("/sys/fs/cgroup/freezer").exists()  # noqa: ASYNC240
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        _, address = await add_chat(host, "chat")
        receipt = await say(host, address, "m1", "hello")
        await channel.answer_to(receipt.row_ids[0])
        session = await session_of(host, receipt.session_ids[0])
        home, settings = host.home, host.settings
    ready = {"event": "container.ready", "session": session.id, "generation": 1}
    log.write_text(json.dumps(ready) + '\n{"event": "container.ready", "sess\n')
    assert await leftovers(home, settings, log=log) == []

    # A container and its process, a row that waits, a socket folder, something in the trash, a certificate too many.
    async with host_on(tmp_path / "home", "bubblewrap", keep=True) as (host, channel):
        receipt = await say(host, address, "m2", "hello")
        await channel.answer_to(receipt.row_ids[0])
        await say(host, address, "m3", "/sleep 60")
        (view,) = await host.engine.containers()
    (home.trash / "something").mkdir()
    certificate = Certificate(session=session.id, generation=Generation(1), cause="quiet", text="", ended_at="")
    with session_folders(home, session).certificates.open("a") as file:
        file.write(json.dumps(asdict(certificate)) + "\n")
    with log.open("a") as file:
        file.write(json.dumps({**ready, "generation": 7}) + "\n")
    found = "\n".join(await leftovers(home, settings, log=log))
    try:
        for sign in (
            f"container {view.name}",
            "is in the trash",
            "the socket folder",
            "unfinished rows",
            "still to be looked at by the next host",
            "process ",
            "generation 1 of session",
            "generation 7 of session",
        ):
            assert sign in found
        if has_groups:
            assert "the control group" in found
    finally:
        (home.trash / "something").rmdir()
        async with host_on(tmp_path / "home", "bubblewrap"):
            pass
