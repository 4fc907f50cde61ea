"""What an agent is told, put together from its parts."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.container_config import parse
from hermitcrab.logic.instructions import (
    ALL_CHARACTERS_AT_MOST,
    ENTRY_FILE,
    FRAGMENT_CHARACTERS_AT_MOST,
    Composition,
    compose,
    container_json,
)
from hermitcrab.logic.skills import Skill
from hermitcrab.model.container_config import McpServer
from hermitcrab.model.documents import text_document
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import AgentGroupId

GROUP = AgentGroup(id=AgentGroupId("ag-1"), name="Chat", folder="chat")


def skill(name: str, instructions: str | None = None) -> Skill:
    files = {"SKILL.md": text_document("---\n---\n")}
    if instructions is not None:
        files["instructions.md"] = text_document(instructions)
    return Skill(name=name, files=files)


def imports(composed: Composition) -> list[str]:
    entry = composed.documents[ENTRY_FILE].content.decode()
    return [line.removeprefix("@./") for line in entry.splitlines() if line.startswith("@")]


def test_the_base_comes_first_the_memory_last_and_the_fragments_by_name_between() -> None:
    composed = compose(
        shared="base",
        skills=[skill("web", "w"), skill("quiet"), skill("memory", "m")],
        tools={"shell": "s", "cli": "c"},
        servers={"files": McpServer(command="x", instructions="f"), "silent": McpServer(command="x")},
    )
    fragments = ["mcp-files", "skill-memory", "skill-web", "tool-cli", "tool-shell"]
    assert imports(composed) == [
        ".claude-fragments/shared.md",
        *(f".claude-fragments/{name}.md" for name in fragments),
        "CLAUDE.local.md",
    ]
    assert composed.documents[".claude-fragments/skill-web.md"].content == b"w\n"
    assert composed.documents[".claude-fragments/shared.md"].content == b"base"
    assert composed.left_out == ()


def test_an_agent_that_may_not_use_the_hosts_commands_is_not_told_of_them() -> None:
    composed = compose(shared="", skills=[], tools={"shell": "s", "cli": "c"}, servers={}, cli=False)
    assert ".claude-fragments/tool-cli.md" not in composed.documents
    assert ".claude-fragments/tool-shell.md" in composed.documents


def test_what_is_too_long_is_left_out_by_name_and_the_rest_stays() -> None:
    long = "x" * (FRAGMENT_CHARACTERS_AT_MOST + 1)
    composed = compose(shared="", skills=[skill("long", long), skill("short", "s")], tools={}, servers={})
    assert composed.left_out == ("skill-long",)
    assert imports(composed)[1:-1] == [".claude-fragments/skill-short.md"]
    assert "left out: skill-long" in composed.documents[ENTRY_FILE].content.decode()


NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,8}", fullmatch=True)
TEXTS = st.text(max_size=20) | st.sampled_from(["x" * FRAGMENT_CHARACTERS_AT_MOST, "y" * 20_000, " \n "])


@given(
    st.dictionaries(NAMES, TEXTS | st.none(), max_size=8),
    st.dictionaries(NAMES, TEXTS, max_size=4),
    st.dictionaries(NAMES, TEXTS, max_size=4),
    st.randoms(use_true_random=False),
)
def test_any_parts_in_any_order_come_to_the_same_bounded_whole(
    skills: dict[str, str | None], tools: dict[str, str], servers: dict[str, str], chance: random.Random
) -> None:
    def shuffled(values: dict[str, str]) -> dict[str, str]:
        names = list(values)
        chance.shuffle(names)
        return {name: values[name] for name in names}

    def composed(order: list[str]) -> Composition:
        return compose(
            shared="base",
            skills=[skill(name, skills[name]) for name in order],
            tools=shuffled(tools),
            servers={name: McpServer(command="x", instructions=text) for name, text in shuffled(servers).items()},
        )

    order = sorted(skills)
    one = composed(order)
    chance.shuffle(order)
    assert composed(order) == one
    found = imports(one)
    assert len(set(found)) == len(found)
    assert found[1:-1] == sorted(found[1:-1], key=lambda each: each.removesuffix(".md"))
    assert set(found[:-1]) == {name for name in one.documents if name != ENTRY_FILE}, "what is imported is there"
    size = sum(len(document.content.decode()) for document in one.documents.values())
    assert size <= ALL_CHARACTERS_AT_MOST + 20_000
    wanted = sum(bool((text or "").strip()) for part in (skills, tools, servers) for text in part.values())
    assert len(found) - 2 + len(one.left_out) == wanted, "nothing is lost without a word"


def test_the_containers_copy_of_the_config_is_compact_and_keeps_the_hosts_affairs_out() -> None:
    config = parse(
        {
            "image": "registry.example/secret-image",
            "hardening": "strict",
            "cli_scope": "global",
            "limits": {"pids": 77},
            "additional_mounts": [{"host_path": "/srv/host-only"}],
            "foreign_command": ["bun", "host-only-command"],
            "mcp_servers": {
                "b": {"url": "http://b.example/mcp"},
                "a": {"command": "x", "args": ["y"], "env": {"K": "v"}, "instructions": "i"},
            },
            "packages": {"apt": ["jq"]},
        }
    )
    told = {"provider": "claude", "assistant_name": "Crusty", "model": None, "effort": None, "timezone": "UTC"}
    content = container_json(GROUP, config, told, [skill("memory")]).content.decode()
    assert ": " not in content
    for host_only in ("secret-image", "strict", "global", "77", "host-only"):
        assert host_only not in content
    found = json.loads(content)
    assert list(found["mcpServers"]) == ["a", "b"]
    assert found["mcpServers"]["a"] == {"command": "x", "args": ["y"], "env": {"K": "v"}, "instructions": "i"}
    assert found["mcpServers"]["b"] == {"type": "http", "url": "http://b.example/mcp"}
    assert found["packages"] == {"apt": ["jq"], "npm": [], "pip": []}
    assert (found["assistantName"], found["groupName"], found["skills"]) == ("Crusty", "Chat", ["memory"])
    assert "model" not in found


@pytest.mark.parametrize("name", ["x", 'x"},"y":"', "a\nb", "\u2028"])
def test_any_name_is_one_line_of_json(name: str) -> None:
    group = AgentGroup(id=AgentGroupId("ag-1"), name=name, folder="chat")
    content = container_json(group, parse({}), {}, []).content.decode()
    assert content.count("\n") == 1
    assert json.loads(content)["groupName"] == name
