"""What an agent group's config comes to in a container: what is read there, what the harness makes of it, what stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hermitcrab.app import Host
from hermitcrab.errors import Failure
from hermitcrab.groups.configuration import Configurator, replacing
from hermitcrab.groups.skills import SkillShelf
from hermitcrab.model.groups import AgentGroup
from hermitcrab.testing import mcp_server
from hermitcrab.testing.intruder import intrude
from hermitcrab.testing.scratch import add_chat, host_on, say, session_of
from hermitcrab.testing.scripted_model import say as words
from hermitcrab.testing.scripted_model import scripted_model, use_tool

NeedEngine = Callable[[str], Mapping[str, str]]
every_engine = pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])
KEY = "fake-key-for-tests-0123456789abcdef"
"""Not a secret: no service knows it."""


@pytest.fixture
def options(engine: str, need_engine: NeedEngine) -> dict[str, Any]:
    """Settings of the engine under test, or a skip."""
    prefix = "HERMITCRAB__CONTAINERS__"
    found = need_engine(engine)
    return {key.removeprefix(prefix).lower(): value for key, value in found.items() if key != f"{prefix}ENGINE"}


async def configure(host: Host, group: AgentGroup, **document: Any) -> None:
    configurator, wish = Configurator(host.store, SkillShelf(host.home)), replacing(document)
    await configurator.change(group, wish, agreed=(await configurator.propose(group, wish)).agreement)


def add_skill(place: Path, name: str, instructions: str | None = None) -> Path:
    folder = place / name
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text(f"---\nname: {name}\ndescription: {name.upper()}-DESCRIPTION\n---\n\n# {name}\n")
    (folder / "run.sh").write_text("#!/bin/sh\necho it ran\n")
    (folder / "run.sh").chmod(0o755)
    if instructions is not None:
        (folder / "instructions.md").write_text(instructions)
    return folder


LOOK = """
agent = "/workspace/agent/"
answer({
    "config": json.load(open(agent + "container.json")),
    "entry": open(agent + "CLAUDE.md").read(),
    "fragments": {each: open(agent + ".claude-fragments/" + each).read() for each in sorted(os.listdir(agent + ".claude-fragments"))},
    "skills": sorted(os.listdir("/app/skills")),
    "of the harness": sorted(os.listdir(os.environ["HOME"] + "/.claude/skills")),
    "ran": {each: subprocess.run([each], capture_output=True, text=True).stdout for each in ["/app/skills/mine/run.sh"] if os.path.exists(each)},
    "memory": open(agent + "CLAUDE.local.md").read(),
    "all": " ".join(os.environ) + " ".join(os.environ.values()) + open(agent + "container.json").read(),
})
"""


@every_engine
async def test_a_container_finds_what_its_groups_config_says_and_the_next_one_what_it_says_then(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (host, _):
        intruder = await intrude(host, "chat")
        add_skill(host.home.group_skills("chat"), "mine", "Say MINE-FRAGMENT.")
        add_skill(host.home.group_skills("other"), "theirs", "Say THEIRS-FRAGMENT.")
        await configure(
            host,
            intruder.group,
            assistant_name="Crusty",
            model="opus",
            mcp_servers={"adder": {"command": "python3", "instructions": "Use ADDER-FRAGMENT."}},
            additional_mounts=[{"host_path": "/srv/host-only-place"}],
            limits={"memory_mb": 300},
            image=None,
        )
        first = await intruder.ask(LOOK)
        assert {"memory", "mine", "status", "tables"} <= set(first["skills"])
        assert "theirs" not in first["skills"]
        assert first["of the harness"] == first["skills"]
        assert first["ran"] == {"/app/skills/mine/run.sh": "it ran\n"}
        assert first["fragments"]["skill-mine.md"] == "Say MINE-FRAGMENT.\n"
        assert first["fragments"]["mcp-adder.md"] == "Use ADDER-FRAGMENT.\n"
        imports = [line for line in first["entry"].splitlines() if line.startswith("@")]
        others = sorted(name for name in first["fragments"] if name != "shared.md")
        assert imports == [
            *(f"@./.claude-fragments/{name}" for name in ("shared.md", *others)),
            "@./CLAUDE.local.md",
        ]
        assert first["config"]["assistantName"] == "Crusty"
        assert first["config"]["skills"] == first["skills"]
        assert first["config"]["mcpServers"]["adder"]["command"] == "python3"
        assert "host-only-place" not in first["all"], "what only concerns the host stays there"

        before = (await intruder.spec("")).spec_hash
        await configure(host, intruder.group, skills=["mine"])
        second = await intruder.ask(LOOK)
        assert second["skills"] == second["of the harness"] == ["mine"]
        assert set(second["fragments"]) == {"shared.md", "skill-mine.md", "tool-messages.md", "tool-shell.md"}
        assert (await intruder.spec("")).spec_hash != before, "a container of the earlier config is not the same"


async def test_limits_and_hardening_of_the_config_are_in_the_spec(tmp_path: Path, need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap", memory_mb=512, pids=100) as (host, _):
        intruder = await intrude(host, "chat")
        spec = await intruder.spec("")
        assert (spec.limits.memory_bytes, spec.limits.pids, spec.hardening) == (512 << 20, 100, "standard")
        await configure(host, intruder.group, limits={"memory_mb": 300}, hardening="strict")
        spec = await intruder.spec("")
        assert (spec.limits.memory_bytes, spec.limits.pids, spec.hardening) == (300 << 20, 100, "strict")


async def test_a_skill_that_vanished_is_passed_over_at_the_start(tmp_path: Path, need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        group, address = await add_chat(host, "chat")
        folder = add_skill(host.home.skills, "mine")
        await configure(host, group, skills=["mine", "status"])
        shutil.rmtree(folder)
        receipt = await say(host, address, "one", "hello")
        assert (await channel.answer_to(receipt.row_ids[0]))[1].content["text"] == "Echo: hello"


async def test_the_groups_provider_goes_before_the_installations(tmp_path: Path, need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap", {"agents.provider": "claude"}) as (host, channel):
        group, address = await add_chat(host, "chat")
        await configure(host, group, provider="echo")
        receipt = await say(host, address, "one", "hello")
        assert (await channel.answer_to(receipt.row_ids[0]))[1].content["text"] == "Echo: hello"


async def test_a_stored_config_that_cannot_be_used_stops_its_group_and_no_other(
    tmp_path: Path, need_engine: NeedEngine
) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        group, broken = await add_chat(host, "broken")
        _, well = await add_chat(host, "well")
        await host.store.write(
            lambda connection: connection.execute(
                "UPDATE container_configs SET document = '{\"old\": 1}' WHERE agent_group_id = ?", (group.id,)
            )
        )
        receipt = await say(host, broken, "one", "hello")
        session = await session_of(host, receipt.session_ids[0])
        for _ in range(12):  # More often than any breaker bears.
            outcome = await host.runner.wake(session)
            assert (outcome.kind, outcome.failure, outcome.retry_in_s) == ("failed", Failure.SPEC_INVALID, None)
            assert "stored config" in outcome.text
        other = await say(host, well, "two", "hello")
        assert (await channel.answer_to(other.row_ids[0]))[1].content["text"] == "Echo: hello"
        while not any(delivery.address == broken for _, delivery in channel.delivered.values()):
            await channel.next_delivery()
        await configure(host, group)
        host.runner.reconsider(group.id)  # As the command that changes a config does: nobody has to wake anybody.
        assert (await channel.answer_to(receipt.row_ids[0]))[1].content["text"] == "Echo: hello"


@pytest.mark.claude
async def test_claude_reads_the_instructions_sees_the_skills_and_calls_a_tool_server_in_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claude_packages: Path, need_engine: NeedEngine
) -> None:
    need_engine("bubblewrap")
    monkeypatch.setenv("HERMITCRAB_TEST_MODEL_KEY", KEY)
    script = [
        use_tool("mcp__adder__add", {"a": 2, "b": 40}),
        use_tool("Skill", {"skill": "mine"}),
        words("It is 42."),
    ]
    async with scripted_model(script) as model:
        overrides = {
            "agents.provider": "claude",
            "gateway.anthropic_upstream": model.url,
            "gateway.anthropic_key": "env:HERMITCRAB_TEST_MODEL_KEY",
        }
        async with host_on(tmp_path / "home", "bubblewrap", overrides) as (host, channel):
            group, address = await add_chat(host, "chat")
            host.desk.initialise(group, "What FIRST-MEMORY says.")
            folder = add_skill(host.home.group_skills("chat"), "mine", "Say MINE-FRAGMENT.")
            shutil.copy(mcp_server.__file__, folder / "server.py")
            await configure(
                host,
                group,
                model="claude-made-up-model",
                mcp_servers={
                    "adder": {
                        "command": "python3",
                        "args": ["/app/skills/mine/server.py"],
                        "env": {"GREETING": "hello from the config"},
                        "instructions": "Add with ADDER-FRAGMENT.",
                    },
                    # What does not come up is no reason for the agent to say nothing.
                    "broken": {"command": "there-is-no-such-program"},
                    "away": {"url": "http://tools.invalid/mcp"},
                },
            )
            receipt = await say(host, address, "one", "What is 2 + 40?")
            _, delivery = await channel.answer_to(receipt.row_ids[0])
            assert delivery.content["text"] == "It is 42."
            first = json.dumps(model.asked[0].body)
            for told in (
                "MINE-FRAGMENT",
                "ADDER-FRAGMENT",
                "How you work here",
                "Running programs",
                "MINE-DESCRIPTION",
            ):
                assert told in first, told
            assert model.asked[0].body["model"] == "claude-made-up-model"
            assert "mcp__adder__add" in first
            results = json.dumps([each.body for each in model.asked[1:]])
            assert f"42 (uid {host.starter.uid}, hello from the config)" in results
            assert "# mine" in results, "the skill was opened"
