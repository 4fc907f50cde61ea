"""Family D, line 47: a process that the kernel itself cannot end, as it waits for a disk that has stopped.

Made with a file system that is frozen while a container writes to it, which takes the superuser and a loop device.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from anyio import to_thread

from hermitcrab.app import Host
from hermitcrab.containers.engines import bubblewrap, docker
from hermitcrab.logic import retry
from hermitcrab.logic.retry import Backoff
from hermitcrab.model.container_config import AdditionalMount, ContainerConfig
from hermitcrab.store import container_configs
from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab.testing.intruder import take_over
from hermitcrab.testing.scratch import add_chat, host_on, say, session_of

every_engine = pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])
TOOLS = ("mkfs.ext4", "fsfreeze", "mount", "umount")
MEBIBYTES = 16

HANGS = """
if os.fork() == 0:
    number = 0
    while True:
        number += 1
        write(f"/workspace/extra/disk/{number % 10}")
import runpy
runpy.run_module("hermitcrab_runner", run_name="__main__")
"""


def run(*words: str | Path) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, thawed and gone afterwards; or a skip."""
    if os.geteuid() != 0 or any(shutil.which(each) is None for each in TOOLS):
        pytest.skip("only the superuser mounts file systems, with mkfs.ext4 and fsfreeze")
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(MEBIBYTES * 1024 * 1024)
    if not run("mkfs.ext4", "-q", image) or not run("mount", "-o", "loop", image, place):
        pytest.skip("no loop device to mount a file system with")
    try:
        yield place
    finally:
        run("fsfreeze", "-u", place)
        assert run("umount", place)


def writer_hangs(main: int) -> bool:
    """Whether the first child of that main process waits in the kernel. The others wait there for moments, too."""
    writer = Path(f"/proc/{main}/task/{main}/children").read_text().split()[0]
    return Path(f"/proc/{writer}/stat").read_text().rpartition(")")[2].split()[0] == "D"


async def until(holds: Any) -> None:
    with anyio.fail_after(DEADLINE_S):
        while not await to_thread.run_sync(holds):  # noqa: ASYNC110  # nobody tells of it
            await anyio.sleep(0.05)


@every_engine
async def test_what_the_kernel_cannot_end_is_stuck_holds_up_nobody_and_is_gone_once_it_can(
    engine: str, options: dict[str, Any], disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "KILL_DEADLINE_S", 1.0)
    monkeypatch.setattr(bubblewrap, "KILL_S", 0.3)
    tries: list[int] = []

    class Noted(Backoff):
        def delay_s(self, failures: int, jitter: float) -> float:
            tries.append(failures)
            return super().delay_s(failures, jitter)

    monkeypatch.setattr(retry, "STUCK", Noted(first_s=0.1, most_s=0.2))
    async with host_on(tmp_path / "home", engine, stop_grace_s=0.1, **options) as (host, channel):
        host.home.mounts_file.write_text(f"[[roots]]\npath = {json.dumps(str(disk))}\nwrite = true\n")
        host.home.mounts_file.chmod(0o600)
        await to_thread.run_sync(os.chown, disk, host.starter.uid, host.starter.gid)
        _, other = await add_chat(host, "other")
        group, address = await add_chat(host, "hangs")
        config = ContainerConfig(additional_mounts=(AdditionalMount(host_path=str(disk), read_only=False),))
        await host.store.write(lambda connection: container_configs.put(connection, group.id, config))
        with monkeypatch.context() as attacked:
            take_over(attacked, host, HANGS, of=lambda session: session.agent_group_id == group.id)
            receipt = await say(host, address, "one", "hello")
            await channel.answer_to(receipt.row_ids[0])
        session = await session_of(host, receipt.session_ids[0])
        await until(lambda: (disk / "9").exists())
        main = next(each.pid for each in await host.engine.containers() if each.session == session.id)
        assert main is not None
        assert await to_thread.run_sync(run, "fsfreeze", "-f", disk)
        await until(lambda: writer_hangs(main))
        with structlog.testing.capture_logs() as logged:
            await host.runner.kill(session.id)
            await until(lambda: phase(host, session.id) == "stuck")
            # Nobody else notices, and what comes in is kept.
            kept = await say(host, address, "two", "are you there?")
            receipt = await say(host, other, "other", "hello")
            await channel.answer_to(receipt.row_ids[0])
            # Podman calls ended what was killed for some seconds, and the rest of this is not to be seen there.
            await until(lambda: len(tries) >= (1 if engine == "podman" else 3))
        assert [each["event"] for each in logged if each["log_level"] == "error"] == ["container.stuck"]
        assert kept.row_ids[0] not in channel.delivered
        assert len([each for each in await host.engine.containers() if each.session == session.id]) == 1
        # The disk is back: it ends, and the next one answers.
        assert await to_thread.run_sync(run, "fsfreeze", "-u", disk)
        await channel.answer_to(kept.row_ids[0])
        views = [each for each in await host.engine.containers() if each.session == session.id]
        assert [each.generation for each in views] == [2]
        assert [each["cause"] for each in await host.runner.certificates(session)] == ["stopped"]


def phase(host: Host, session_id: str) -> str:
    return next((view.phase for view in host.runner.views() if view.session_id == session_id), "absent")
