"""The real Claude Code in a real container behind the real gateway; only the model is scripted, and the key is a fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from hermitcrab.app import Host
from hermitcrab.channels.base import Delivery
from hermitcrab.model.container import Hardening
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.store import container_configs
from hermitcrab.testing.scratch import REPLY_WITHIN_S, RecordingChannel, add_chat, host_on, say, session_of
from hermitcrab.testing.scripted_model import Script, ScriptedModel, fail, scripted_model, use_tool
from hermitcrab.testing.scripted_model import say as words

NeedEngine = Callable[[str], Mapping[str, str]]

KEY = "fake-key-for-tests-0123456789abcdef"
"""Not a secret: no service knows it."""

pytestmark = [
    pytest.mark.claude,
    pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"]),
    pytest.mark.usefixtures("claude_packages"),
]


@pytest.fixture
def options(engine: str, need_engine: NeedEngine) -> dict[str, Any]:
    """Settings of the engine under test, or a skip."""
    prefix = "HERMITCRAB__CONTAINERS__"
    found = need_engine(engine)
    return {key.removeprefix(prefix).lower(): value for key, value in found.items() if key != f"{prefix}ENGINE"}


@asynccontextmanager
async def claude_on(
    home: Path, engine: str, options: dict[str, Any], script: Script, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Host, RecordingChannel, ScriptedModel]]:
    """A host whose agents are Claude Code, talking to a scripted model through the gateway."""
    monkeypatch.setenv("HERMITCRAB_TEST_MODEL_KEY", KEY)
    async with scripted_model(script) as model:
        overrides = {
            "agents.provider": "claude",
            "gateway.anthropic_upstream": model.url,
            "gateway.anthropic_key": "env:HERMITCRAB_TEST_MODEL_KEY",
        }
        async with host_on(home, engine, overrides, **options) as (host, channel):
            yield host, channel, model


async def test_claude_answers_and_the_key_is_added_on_the_way(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [words("Hello ", "from the model.")]
    async with claude_on(tmp_path / "home", engine, options, script, monkeypatch) as (host, channel, model):
        _, address = await add_chat(host, "chat")
        receipt = await say(host, address, "one", "Who are you?")
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert delivery.content["text"] == "Hello from the model."
        assert model.asked[0].headers["x-api-key"] == KEY
        assert any("Who are you?" in text for text in model.asked[0].texts)


@pytest.mark.parametrize("hardening", ["standard", "strict"])
async def test_a_tool_runs_inside_the_sandbox_and_cannot_see_the_key(
    engine: str, hardening: Hardening, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (
        "id -u; echo files: $(ulimit -Hn); grep -E 'CapEff|NoNewPrivs|^Seccomp:' /proc/self/status; pwd; touch made-by-the-agent;"
        " env; cat /proc/*/environ | tr '\\0' '\\n'; cat /proc/*/cmdline | tr '\\0' ' ';"
        " (echo > /dev/tcp/192.0.2.1/443) 2>&1; ls /root 2>&1"
    )
    script = [use_tool("Bash", {"command": command, "description": "look around"}), words("I looked around.")]
    async with claude_on(tmp_path / "home", engine, options, script, monkeypatch) as (host, channel, model):
        group, address = await add_chat(host, "chat")
        config = ContainerConfig(hardening=hardening)
        await host.store.write(lambda connection: container_configs.put(connection, group.id, config))
        receipt = await say(host, address, "one", "Look around.")
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert delivery.content["text"] == "I looked around."
        (asked, with_result) = model.asked
        seen = "\n".join(with_result.texts)
        assert str(host.starter.uid) in seen.splitlines()
        assert f"files: {1024 if hardening == 'strict' else 4096}" in seen
        assert "CapEff:\t0000000000000000" in seen
        assert "NoNewPrivs:\t1" in seen
        assert "Seccomp:\t2" in seen
        assert "/workspace/agent" in seen
        assert "Network is unreachable" in seen
        assert KEY not in seen
        assert KEY not in str(asked.body)
        made = host.home.groups / group.folder / "made-by-the-agent"
        assert made.stat().st_uid == host.starter.uid


async def test_a_message_that_arrives_during_an_answer_is_answered_too(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = anyio.Event()
    script = [words("First answer.", after=release), words("Second answer.")]
    async with claude_on(tmp_path / "home", engine, options, script, monkeypatch) as (host, channel, model):
        _, address = await add_chat(host, "chat")
        await say(host, address, "one", "The first question.")
        with anyio.fail_after(REPLY_WITHIN_S):
            await model.asked_times(1)
        await say(host, address, "two", "The second question.")
        release.set()
        with anyio.fail_after(REPLY_WITHIN_S):
            while len(channel.delivered) < 2:
                await channel.next_delivery()
        texts = [delivery.content["text"] for _, delivery in channel.delivered.values()]
        assert texts == ["First answer.", "Second answer."]
        assert any("The second question." in text for text in model.asked[-1].texts)
        assert len(await host.engine.containers()) == 1


async def test_a_conversation_goes_on_in_the_next_container(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [words("I will remember."), words("It was 42.")]
    async with claude_on(tmp_path / "home", engine, options, script, monkeypatch) as (host, channel, model):
        _, address = await add_chat(host, "chat")
        receipt = await say(host, address, "one", "Remember the number 42.")
        await channel.answer_to(receipt.row_ids[0])
        session = await session_of(host, receipt.session_ids[0])
        await host.runner.kill(session.id)
        receipt = await say(host, address, "two", "Which number was it?")
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert delivery.content["text"] == "It was 42."
        remembered = model.asked[-1].texts
        assert any("Remember the number 42." in text for text in remembered)
        assert any("I will remember." in text for text in remembered)


async def test_a_model_that_refuses_is_told_to_the_chat(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [fail(400, "scripted refusal")]
    async with claude_on(tmp_path / "home", engine, options, script, monkeypatch) as (host, channel, _):
        _, address = await add_chat(host, "chat")
        receipt = await say(host, address, "one", "Hello?")
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert delivery.content["text"]
        assert KEY not in delivery.content["text"]


async def test_a_missing_key_is_told_to_the_chat_and_the_message_is_not_lost(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with claude_on(tmp_path / "home", engine, options, [words("never said")], monkeypatch) as (host, channel, _):
        monkeypatch.delenv("HERMITCRAB_TEST_MODEL_KEY")
        _, address = await add_chat(host, "chat")
        await say(host, address, "one", "Hello?")
        with anyio.fail_after(REPLY_WITHIN_S):
            while len(channel.delivered) < 2:
                await channel.next_delivery()
        texts = [delivery.content["text"] for _, delivery in channel.delivered.values()]
        assert any("HERMITCRAB_TEST_MODEL_KEY is not set" in text for text in texts)


async def test_claude_uses_the_hosts_tools_and_gets_a_persons_answer(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = {"title": "Lunch", "question": "Where?", "options": ["here", "there"], "timeout": 60}
    script = [
        use_tool("mcp__hermitcrab__send_message", {"text": "I am at it."}),
        use_tool("mcp__hermitcrab__edit_message", {"messageId": 3, "text": "I am nearly done."}),
        use_tool("mcp__hermitcrab__ask_user_question", ask),
        words("Then there."),
    ]
    async with claude_on(tmp_path / "home", engine, options, script, monkeypatch) as (host, channel, model):
        seen: list[str] = []
        deliver = channel.deliver

        async def record(delivery: Delivery) -> str | None:
            seen.append(str(delivery.content.get("text")))
            return await deliver(delivery)

        channel.deliver = record  # type: ignore[method-assign]
        _, address = await add_chat(host, "chat")
        await say(host, address, "one", "Decide where to eat.")
        with anyio.fail_after(REPLY_WITHIN_S):
            while len(seen) < 3:
                await channel.next_delivery()
        receipt = await say(host, address, "two", "2")
        assert receipt.row_ids[0].startswith("qr-")
        await channel.answer_to(receipt.row_ids[0])
        assert seen[:2] == ["I am at it.", "[corrected] I am nearly done."]
        assert seen[2].startswith("Lunch\nWhere?")
        assert seen[3:] == ["Then there."]
        replies = "\n".join(model.asked[-1].texts)
        assert "Message sent to (current conversation) (id: 3)" in replies
        assert "Message edit queued for #3" in replies
        assert "there" in model.asked[-1].texts[-1]
