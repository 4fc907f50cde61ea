"""The self-test that is shipped: short and with real engines, and shown to notice what it is there to notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hermitcrab.containers.certificates import Certificate
from hermitcrab.containers.materials import session_folders
from hermitcrab.model.ids import Generation
from hermitcrab.selftest.leftovers import leftovers
from hermitcrab.selftest.run import Plan, run
from hermitcrab.testing.scratch import add_chat, host_on, say, session_of

NeedEngine = Callable[[str], Mapping[str, str]]

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("engine", ["bubblewrap", "podman"])
async def test_faults_lose_double_and_leave_nothing(engine: str, need_engine: NeedEngine, monkeypatch: Any) -> None:
    for key, value in need_engine(engine).items():
        monkeypatch.setenv(key, value)
    plan = Plan(engine=engine, seed=7, seconds=12.0, sessions=6, fault_every_s=1.0, pause_s=0.5)
    told: list[str] = []
    outcome = await run(plan, progress=told.append)
    assert outcome.to_json()["details"] == []
    assert outcome.is_good
    assert outcome.messages >= 6 * 3
    assert sum(outcome.faults.values()) >= 6
    assert ("kill-engine" in outcome.impossible) == (engine == "bubblewrap")
    assert any("answers" in text for text in told)


def test_the_command_prints_one_object_and_says_by_its_exit_code_that_all_is_well(need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    command = [sys.executable, "-m", "hermitcrab.cli.main", "selftest", "--sessions", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["ok"], found["messages"], found["lost"], found["orphans"]) == (True, 6, 0, 0)


def test_impossible_wishes_are_refused() -> None:
    command = [sys.executable, "-m", "hermitcrab.cli.main", "selftest", "--sessions", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--sessions" in done.stderr


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
