"""Runners that are silent and hosts that stood still, with real processes that are stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from hermitcrab.containers.engines.bubblewrap_processes import members
from hermitcrab.testing.host_process import HostProcess, Person, attended
from hermitcrab.testing.scratch import add_chat, host_on, say, session_of

NeedEngine = Callable[[str], Mapping[str, str]]


def stop_all_in_the_namespace_of(pid: int) -> None:
    for each in members(Path(f"/proc/{pid}/ns/pid").stat().st_ino):
        os.kill(each.pid, signal.SIGSTOP)


class Clock:
    """What the host judges silence by: it can be put forward, so that one runner is silent for long and no other is."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return anyio.current_time() + self.ahead_s


async def test_a_runner_that_hangs_is_ended_and_its_message_is_answered_by_the_next(
    need_engine: NeedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_engine("bubblewrap")
    clock = Clock()
    monkeypatch.setattr("hermitcrab.app.AttentiveClock", lambda *_: clock)
    monkeypatch.setattr("hermitcrab.containers.lifecycle.watch.INTERVAL_S", 0.1)
    async with host_on(tmp_path / "home", "bubblewrap", silent_before_kill_s=60, stop_grace_s=0.1) as (host, channel):
        _, address = await add_chat(host, "chat")
        receipt = await say(host, address, "one", "hello")
        await channel.answer_to(receipt.row_ids[0])
        (container,) = await host.engine.containers()
        assert container.pid is not None
        await to_thread.run_sync(stop_all_in_the_namespace_of, container.pid)
        receipt = await say(host, address, "two", "anybody there?")
        clock.ahead_s = 61
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert delivery.content["text"] == "Echo: anybody there?"
        (certificate,) = await host.runner.certificates(await session_of(host, receipt.session_ids[0]))
        assert certificate["cause"] == "hung"
        assert certificate["generation"] == 1


async def test_a_host_that_stood_still_ends_no_container(need_engine: NeedEngine, tmp_path: Path) -> None:
    env = {**need_engine("bubblewrap"), "HERMITCRAB__CONTAINERS__SILENT_BEFORE_KILL_S": "5"}
    host = HostProcess(tmp_path / "home", engine="bubblewrap", env=env)
    try:
        await host.start()
        async with attended(Person(host.home)) as person:
            await person.say("one", "first")
            await person.wait_for("first")
            host.send(signal.SIGSTOP)
            await anyio.sleep(7)  # How long it stands still: longer than what makes a runner silent.
            host.send(signal.SIGCONT)
            for number in range(10):
                await person.say(f"more-{number}", f"<{number}>")
                await person.wait_for(f"<{number}>")
                await anyio.sleep(0.2)  # So that it looks its containers over meanwhile, twice at least.
        assert "container.ended" not in host.output()
        assert await host.stop() == 0, host.output()
    finally:
        host.send(signal.SIGCONT)
        await host.kill()
