"""Family B, line 23: agents that fill the disk, with much, with many, with deep, while everything else goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from hermitcrab.app import Host
from hermitcrab.containers.disk import trees, workspaces
from hermitcrab.containers.disk.measuring import measure
from hermitcrab.containers.lifecycle import watch
from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.logic import retry
from hermitcrab.logic.retry import Backoff
from hermitcrab.logic.workspace import Allowance, Usage
from hermitcrab.model.sessions import Session
from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab.testing.intruder import intrude, take_over
from hermitcrab.testing.scratch import RecordingChannel, add_chat, host_on, say, session_of

every_engine = pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])
SMALL = {"workspace_mb": 8, "workspace_files": 1000, "workspace_look_s": 0}


@pytest.fixture(autouse=True)
def looked_over_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "INTERVAL_S", 0.3)


BESIDE = """
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    fill()
    print("filled", flush=True)
    time.sleep(600)
import runpy
runpy.run_module("hermitcrab_runner", run_name="__main__")
"""
"""The real runner, and beside it what fills."""

FILLS = {
    "much in the scratch folder": (
        """
def fill():
    for number in range(400):
        write(f"/workspace/{number}", os.urandom(1 << 20))
        time.sleep(0.01)
""",
        "MiB were found in",
    ),
    "much in the group's folder, under one name after the other": (
        """
def fill():
    for number in range(400):
        write("/workspace/agent/x", os.urandom(1 << 20))
        os.rename("/workspace/agent/x", f"/workspace/agent/{number}")
        time.sleep(0.01)
""",
        "MiB were found in",
    ),
    "many in the harness's state": (
        """
def fill():
    for number in range(20_000):
        write(os.environ["HOME"] + f"/.claude/{number}", b"")
""",
        "1000 files and folders",
    ),
    "deep": (
        """
def fill():
    os.chdir("/workspace")
    for _ in range(3 * 200):
        os.mkdir("deeper")
        os.chdir("deeper")
""",
        "deeper than the host looks",
    ),
    "in a file that has no name any more": (
        """
def fill():
    import mmap
    os.fork()
    kept = open("/workspace/gone", "w+b")
    os.unlink("/workspace/gone")
    kept.write(os.urandom(5 << 20))
    kept.flush()
    globals()["mapped"] = mmap.mmap(kept.fileno(), 0)
    kept.close()
""",
        "removed and are still open",
    ),
    "behind a folder that nobody may enter": (
        """
def fill():
    os.makedirs("/workspace/a/b")
    for number in range(40):
        write(f"/workspace/a/b/{number}", os.urandom(1 << 20))
    os.chmod("/workspace/a/b", 0)
    os.chmod("/workspace/a", 0)
""",
        "MiB were found in",
    ),
}


async def certified_full(host: Host, session: Session) -> dict[str, Any]:
    with anyio.fail_after(DEADLINE_S):
        while True:  # Nobody tells a test of a certificate.
            for each in await host.runner.certificates(session):
                if each["cause"] == "workspace-full":
                    return dict(each)
            await anyio.sleep(0.05)


async def told(channel: RecordingChannel, words: str) -> None:
    while not any(words in str(each.content["text"]) for _, each in channel.delivered.values()):
        await channel.next_delivery()


@pytest.mark.parametrize("fill", FILLS)
async def test_wherever_and_however_it_is_filled_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need_engine: Any, fill: str
) -> None:
    need_engine("bubblewrap")
    program, words = FILLS[fill]
    async with host_on(tmp_path / "home", "bubblewrap", **SMALL) as (host, _):
        _, address = await add_chat(host, "filler")
        take_over(monkeypatch, host, program + BESIDE)
        receipt = await say(host, address, "fill", "hello")
        session = await session_of(host, receipt.session_ids[0])
        assert words in (await certified_full(host, session))["text"]


@every_engine
async def test_who_keeps_too_much_is_ended_and_comes_back_when_there_is_room(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, words = FILLS["much in the scratch folder"]
    monkeypatch.setattr(retry, "START", Backoff(first_s=0.05, most_s=0.2))
    async with host_on(tmp_path / "home", engine, **SMALL, **options) as (host, channel):
        _, other = await add_chat(host, "other")
        first = await say(host, other, "one", "hello")
        await channel.answer_to(first.row_ids[0])
        group, address = await add_chat(host, "filler")
        with monkeypatch.context() as attacked:
            take_over(attacked, host, program + BESIDE, of=lambda session: session.agent_group_id == group.id)
            receipt = await say(host, address, "fill", "hello")
            session = await session_of(host, receipt.session_ids[0])
            certificate = await certified_full(host, session)
        assert words in certificate["text"]
        waits = await say(host, address, "more", "anybody there?")
        await told(channel, "I could not start: It keeps")
        # Nobody else notices.
        second = await say(host, other, "two", "still there?")
        await channel.answer_to(second.row_ids[0])
        (left,) = await host.engine.containers()
        assert (left.session, left.generation) == (first.session_ids[0], 1)
        # The message was kept, and is answered by itself once somebody has made room.
        assert waits.row_ids[0] not in channel.delivered
        folders = session_folders(host.home, session)
        for each in (folders.work, folders.state, host.home.groups / group.folder):
            await to_thread.run_sync(trees.remove, each)
        _, delivery = await channel.answer_to(waits.row_ids[0])
        assert delivery.content["text"] == "Echo: anybody there?"


async def test_one_that_holds_little_when_it_stands_still_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need_engine: Any
) -> None:
    """What was counted twice, or is gone by then, ends nobody."""
    need_engine("bubblewrap")
    first = True

    def measured(roots: Sequence[Path], allowance: Allowance) -> Usage:
        nonlocal first
        usage = measure(roots, allowance)
        first, was_first = False, first
        return replace(usage, files=10_000) if was_first else usage

    monkeypatch.setattr(workspaces, "measure", measured)
    async with host_on(tmp_path / "home", "bubblewrap", **SMALL) as (host, channel):
        _, address = await add_chat(host, "chat")
        for number in range(100):
            receipt = await say(host, address, f"m-{number}", str(number))
            await channel.answer_to(receipt.row_ids[0])
            if not first:
                break
            await anyio.sleep(0.1)
        assert not first
        receipt = await say(host, address, "last", "last")
        await channel.answer_to(receipt.row_ids[0])
        (view,) = await host.engine.containers()
        assert view.generation == 1


async def test_no_single_file_grows_beyond_the_limit_even_for_a_moment(tmp_path: Path, need_engine: Any) -> None:
    """On each engine that is one of its promises, which its conformance is."""
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap", workspace_mb=4) as (host, _):
        intruder = await intrude(host, "filler")
        found = await intruder.ask(
            "answer([attempt(write, '/workspace/' + name, bytes(size << 20)) for name, size in (('a', 3), ('b', 5))])"
        )
        assert found == ["done", "EFBIG"]
        assert (intruder.folders.work / "b").stat().st_size == 4 << 20


async def test_without_a_limit_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need_engine: Any
) -> None:
    need_engine("bubblewrap")

    def never(*_: object) -> Usage:
        raise AssertionError

    monkeypatch.setattr(workspaces, "measure", never)
    unlimited = {**SMALL, "workspace_mb": 0, "workspace_files": 0}
    async with host_on(tmp_path / "home", "bubblewrap", **unlimited) as (host, channel):
        _, address = await add_chat(host, "chat")
        for number in range(3):
            receipt = await say(host, address, f"m-{number}", str(number))
            await channel.answer_to(receipt.row_ids[0])
            await anyio.sleep(0.6)  # Longer than the watch takes from one look to the next.
