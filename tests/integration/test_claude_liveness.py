"""What is slow, what hangs and what is dead, with the real Claude Code in a real container: only the dead is ended."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from hermitcrab.app import Host
from hermitcrab.model.messages import Address
from hermitcrab.testing.scratch import REPLY_WITHIN_S, RecordingChannel, add_chat, host_on, say, session_of
from hermitcrab.testing.scripted_model import Request, Script, ScriptedModel, Turn, fail, scripted_model, use_tool
from hermitcrab.testing.scripted_model import say as words

SILENT_S = 5.0
"""Six beats fit in. Shorter, a runner that a busy machine holds up would be taken for a silent one."""

pytestmark = [pytest.mark.claude, pytest.mark.usefixtures("claude_packages")]


@asynccontextmanager
async def claude_on(
    home: Path,
    need_engine: Callable[[str], Mapping[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    script: Script,
    **agents: float,
) -> AsyncIterator[tuple[Host, RecordingChannel, ScriptedModel, Address]]:
    """A host that ends a runner which is silent for five seconds; its agent is Claude Code."""
    need_engine("bubblewrap")
    monkeypatch.setenv("HERMITCRAB_TEST_MODEL_KEY", "fake-key-for-tests")  # not a secret: no service knows it
    async with scripted_model(script) as model:
        overrides = {
            "agents.provider": "claude",
            "gateway.anthropic_upstream": model.url,
            "gateway.anthropic_key": "env:HERMITCRAB_TEST_MODEL_KEY",
            "containers.silent_before_kill_s": SILENT_S,
            **{f"agents.{name}": value for name, value in agents.items()},
        }
        async with host_on(home, "bubblewrap", overrides) as (host, channel):
            _, address = await add_chat(host, "chat")
            yield host, channel, model, address


async def answer(host: Host, channel: RecordingChannel, address: Address, key: str) -> str:
    receipt = await say(host, address, key, "Go on.")
    _, delivery = await channel.answer_to(receipt.row_ids[0])
    return str(delivery.content["text"])


async def until(condition: Callable[[], bool]) -> None:
    """For what happens in a container and tells nobody here."""
    with anyio.fail_after(REPLY_WITHIN_S):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.02)


def running(command: str) -> list[int]:
    """Processes of this machine with exactly that command line."""
    wanted = command.replace(" ", "\0").encode() + b"\0"
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if each.read_bytes() == wanted:
                found.append(int(each.parent.name))
        except OSError:
            continue
    return found


def stop_harness_of(pid: int) -> None:
    """Freeze the Claude Code that this process descends from."""
    while "claude" not in Path(f"/proc/{pid}/comm").read_text():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(pid, signal.SIGSTOP)


async def assert_nothing_ended(host: Host) -> None:
    (view,) = host.runner.views()
    assert view.generation == 1
    assert await host.runner.certificates(await session_of(host, view.session_id)) == []


# The harness refuses a plain `sleep` by itself, and not one behind `env`.


async def test_a_tool_that_hangs_is_stopped_and_named_and_the_container_goes_on(
    need_engine: Callable[[str], Mapping[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = f"sleep 1{os.getpid()}"
    script = [use_tool("Bash", {"command": f"env {hanging}", "timeout": 600_000}), words("Here I am again.")]
    async with claude_on(tmp_path / "home", need_engine, monkeypatch, script, tool_timeout_s=6) as on:
        host, channel, _, address = on
        text = await answer(host, channel, address, "one")
        told = re.fullmatch(r"I could not answer: the tool Bash was stopped, as it had not ended after (\d+) s\.", text)
        assert told, text
        assert int(told[1]) >= 6
        assert host.runner.views()[0].text == f"the tool Bash was stopped after {told[1]} s"
        assert await answer(host, channel, address, "two") == "Here I am again."
        await until(lambda: running(hanging) == [])
        await assert_nothing_ended(host)


async def test_neither_a_limit_of_the_service_nor_a_model_that_thinks_for_long_ends_anything(
    need_engine: Callable[[str], Mapping[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited, thought = anyio.Event(), anyio.Event()

    def script(request: Request) -> Turn:
        if not request.is_for_the_model:
            return words("ok")
        return words("After a while: ", "42.", between=thought) if limited.is_set() else fail(429, retry_after="2")

    async with claude_on(tmp_path / "home", need_engine, monkeypatch, script, tool_timeout_s=1, tool_grace_s=0) as on:
        host, channel, _, address = on
        receipt = await say(host, address, "one", "What is the answer?")
        await until(lambda: [view.activity for view in host.runner.views()] == ["rate-limited"])
        limited.set()
        await until(lambda: [view.activity for view in host.runner.views()] == ["thinking"])
        began = anyio.current_time()
        await until(lambda: anyio.current_time() - began > 1.5 * SILENT_S)
        thought.set()
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert delivery.content["text"] == "After a while: 42."
        await assert_nothing_ended(host)


async def test_a_harness_that_does_not_even_stop_when_told_costs_its_turn_and_no_container(
    need_engine: Callable[[str], Mapping[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = f"sleep 2{os.getpid()}"
    script = [use_tool("Bash", {"command": f"env {hanging}", "timeout": 600_000}), words("A new one.")]
    async with claude_on(tmp_path / "home", need_engine, monkeypatch, script, tool_timeout_s=10) as on:
        host, channel, _, address = on
        receipt = await say(host, address, "one", "Go on.")
        tools: list[int] = []

        def hangs() -> bool:
            tools.extend(running(hanging))
            return tools != []

        await until(hangs)
        await to_thread.run_sync(stop_harness_of, tools[0])
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert delivery.content["text"].startswith("I could not answer: the tool Bash was stopped")
        assert await answer(host, channel, address, "two") == "A new one."
        await assert_nothing_ended(host)
