"""What a change of a config gives to agents: told in full, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from hermitcrab.logic.config_change import agreement, differences, widening
from hermitcrab.logic.config_text import from_text, to_text
from hermitcrab.logic.container_config import parse, whole_document
from hermitcrab.model.container_config import ContainerConfig

from .test_container_config import DOCUMENT, WHOLE

MOUNT = {"host_path": "/srv/a"}
SERVER = {"command": "python3", "args": ["-m", "files"]}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({}, {"additional_mounts": [MOUNT]}, "read /srv/a"),
        ({}, {"additional_mounts": [{**MOUNT, "read_only": False}]}, "write in /srv/a"),
        (
            {"additional_mounts": [MOUNT]},
            {"additional_mounts": [{**MOUNT, "read_only": False}]},
            "write in /srv/a",
        ),
        ({"additional_mounts": [MOUNT]}, {"additional_mounts": [{**MOUNT, "name": "b"}]}, "another place"),
        (
            {"packages": {"apt": ["jq"]}},
            {"packages": {"apt": ["jq"], "npm": ["left-pad@1.3.0"]}},
            "npm package left-pad",
        ),
        ({}, {"image": "agents:1"}, "agents:1"),
        ({"image": "agents:1"}, {"image": "agents:2"}, "agents:2"),
        ({}, {"mcp_servers": {"x": SERVER}}, "python3 -m files"),
        ({"mcp_servers": {"x": SERVER}}, {"mcp_servers": {"x": {**SERVER, "args": ["-m", "more"]}}}, "-m more"),
        ({"mcp_servers": {"x": SERVER}}, {"mcp_servers": {"x": {**SERVER, "env": {"A": "b"}}}}, "server x"),
        ({}, {"mcp_servers": {"x": {"url": "https://tools.example.com/mcp"}}}, "https://tools.example.com/mcp"),
        ({}, {"cli_scope": "global"}, "all groups"),
        ({"cli_scope": "disabled"}, {"cli_scope": "group"}, "own group"),
        ({"hardening": "strict"}, {}, "hardened less"),
        ({}, {"foreign_command": ["bun"]}, "run bun"),
    ],
)
def test_what_agents_get_is_told_and_giving_it_up_is_not(
    before: dict[str, Any], after: dict[str, Any], told: str
) -> None:
    (sentence,) = widening(parse(before), parse(after))
    assert told in sentence
    back = widening(parse(after), parse(before))
    assert back == () or {*before} == {*after}, "only where one thing stands in the place of another"


@pytest.mark.parametrize(
    "after",
    [
        {"model": "opus", "effort": "high", "provider": "echo", "assistant_name": "Crusty"},
        {"limits": {"memory_mb": 65_536}, "skills": [], "max_messages_per_prompt": 1},
        {"cli_scope": "disabled", "hardening": "strict"},
    ],
)
def test_what_gives_agents_no_new_place_to_go_needs_no_yes(after: dict[str, Any]) -> None:
    assert widening(ContainerConfig(), parse(after)) == ()


@given(DOCUMENT, DOCUMENT)
def test_an_agreement_is_to_one_change_and_nothing_differs_in_none(one: dict[str, Any], other: dict[str, Any]) -> None:
    before, after = parse(one), parse(other)
    assert (agreement(before, after) == agreement(after, before)) == (before == after)
    assert (differences(before, after) == ()) == (before == after)
    assert widening(before, before) == ()


@given(DOCUMENT)
def test_a_config_in_the_editor_reads_as_the_same(document: dict[str, Any]) -> None:
    config = parse(document)
    text = to_text("main", whole_document(config), {"model": "sonnet", "limits.pids": 256})
    assert parse(from_text(text)) == config


def test_every_key_comes_through_the_editor() -> None:
    config = parse(WHOLE)
    assert parse(from_text(to_text("main", whole_document(config), {}))) == config
