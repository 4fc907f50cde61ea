"""What the containers of one agent group read: its config, its instructions, its skills. Read and composed afresh."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import structlog

from hermitcrab.groups.skills import SkillShelf
from hermitcrab.logic import instructions
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.documents import Document
from hermitcrab.model.groups import AgentGroup

SKILLS_FOLDER = "skills"

log = structlog.get_logger(__name__)


def group_documents(
    shelf: SkillShelf, group: AgentGroup, config: ContainerConfig, told: Mapping[str, Any]
) -> dict[str, Document]:
    """Every document by its path below the group's generated folder. Blocks."""
    skills = shelf.read(group.folder, config)
    composed = instructions.compose(
        shared=shared_instructions(),
        skills=skills,
        tools=tool_fragments(),
        servers=config.mcp_servers,
        cli=config.cli_scope != "disabled",
    )
    if composed.left_out:
        log.warning("instructions.left-out", group=group.folder, fragments=composed.left_out)
    return {
        **composed.documents,
        instructions.CONFIG_FILE: instructions.container_json(group, config, told, skills),
        instructions.SETTINGS_FILE: instructions.claude_settings(foreign=config.runner == "foreign"),
        **{
            f"{SKILLS_FOLDER}/{skill.name}/{path}": document
            for skill in skills
            for path, document in skill.files.items()
        },
    }


@cache
def shared_instructions() -> str:
    """What every agent is told."""
    return (resources.files("hermitcrab.groups") / "shared" / "CLAUDE.md").read_text(encoding="utf-8")


@cache
def tool_fragments() -> dict[str, str]:
    """What agents are told of each of our own tools, by the tool's name."""
    folder = resources.files("hermitcrab.groups") / "shared" / "tools"
    return {
        each.name.removesuffix(".md"): each.read_text(encoding="utf-8")
        for each in folder.iterdir()
        if each.name.endswith(".md")
    }
