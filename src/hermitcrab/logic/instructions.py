"""The text files that an agent finds in its folder, composed afresh for every container. Pure: same in, same out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hermitcrab.logic.mcp_servers import for_harness
from hermitcrab.logic.skills import Skill
from hermitcrab.model.container_config import ContainerConfig, McpServer
from hermitcrab.model.documents import Document, text_document
from hermitcrab.model.groups import AgentGroup

MEMORY_FILE = "CLAUDE.local.md"
SHARED_PATH = "/app/CLAUDE.md"
ENTRY_FILE = "CLAUDE.md"
CONFIG_FILE = "container.json"
FRAGMENTS_FOLDER = ".claude-fragments"
SHARED_FRAGMENT = "shared"
SETTINGS_FILE = "claude-settings.json"

FRAGMENT_CHARACTERS_AT_MOST = 16 * 1024
ALL_CHARACTERS_AT_MOST = 64 * 1024
"""Of all fragments together: each of them costs a part of every conversation."""

CLI_TOOL = "cli"
"""The tool fragment on the host's commands, which an agent that may not use them is not told of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    documents: Mapping[str, Document]
    """By their path below the group's generated folder."""
    left_out: tuple[str, ...] = ()
    """Fragments that there was no room for."""


def compose(
    *,
    shared: str,
    skills: Sequence[Skill],
    tools: Mapping[str, str],
    servers: Mapping[str, McpServer],
    cli: bool = True,
) -> Composition:
    """The entry file that the harness reads first, and the fragments that it imports.

    The `shared` base comes first and the group's own memory last, so that the nearer has the last word; between them
    come the fragments by name. Every part has one place: the entry file holds imports only.
    """
    wanted = {
        **{f"mcp-{name}": server.instructions for name, server in servers.items() if server.instructions.strip()},
        **{f"skill-{each.name}": text for each in skills if (text := (each.instructions or "").strip())},
        **{f"tool-{name}": text for name, text in tools.items() if text.strip() and (cli or name != CLI_TOOL)},
    }
    fragments: dict[str, str] = {}
    left_out = []
    room = ALL_CHARACTERS_AT_MOST
    for name, text in sorted(wanted.items()):
        if len(text) > min(room, FRAGMENT_CHARACTERS_AT_MOST):
            left_out.append(name)
        else:
            fragments[name] = text.strip() + "\n"
            room -= len(text)
    return Composition(
        documents={
            ENTRY_FILE: text_document(_entry(fragments, left_out)),
            # A copy: a harness imports nothing from outside of its working folder without asking somebody.
            f"{FRAGMENTS_FOLDER}/{SHARED_FRAGMENT}.md": text_document(shared),
            **{f"{FRAGMENTS_FOLDER}/{name}.md": text_document(text) for name, text in fragments.items()},
        },
        left_out=tuple(left_out),
    )


def _entry(fragments: Iterable[str], left_out: Sequence[str]) -> str:
    lines = [
        "<!-- Written by the host for every container; changes here are lost. -->",
        *(f"@./{FRAGMENTS_FOLDER}/{name}.md" for name in (SHARED_FRAGMENT, *fragments)),
        f"@./{MEMORY_FILE}",
    ]
    if left_out:
        lines.append(f"<!-- Too long, and left out: {', '.join(left_out)} -->")
    return "\n".join(lines) + "\n"


def container_json(
    group: AgentGroup, config: ContainerConfig, told: Mapping[str, Any], skills: Sequence[Skill]
) -> Document:
    """What the container may know of its own configuration; keys as in the earlier system, so that tools find them.

    `told`: what the runner is told at hello, where the installation's settings have been filled in. What only concerns
    the host (paths of the machine, images, hardening, limits, rights) is not in it.
    """
    harness = for_harness(config.mcp_servers)
    values = {
        "mcpServers": {
            name: server | ({"instructions": text} if (text := config.mcp_servers[name].instructions) else {})
            for name, server in harness.items()
        },
        "packages": {"apt": config.packages.apt, "npm": config.packages.npm, "pip": config.packages.pip},
        "skills": [each.name for each in skills],
        "provider": told.get("provider"),
        "groupName": group.name,
        "assistantName": told.get("assistant_name"),
        "agentGroupId": group.id,
        "maxMessagesPerPrompt": told.get("max_messages_per_prompt"),
        "model": told.get("model"),
        "effort": told.get("effort"),
    }
    kept = {key: value for key, value in values.items() if value is not None}
    return text_document(json.dumps(kept, separators=(",", ":")) + "\n")


def passwd(uid: int, gid: int) -> Document:
    """Who the container's user is, for programs that look themselves up."""
    return text_document(
        "root:x:0:0:root:/root:/usr/sbin/nologin\n"
        f"agent:x:{uid}:{gid}:agent:/home/agent:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )


def claude_settings(*, foreign: bool = False) -> Document:
    """The harness's settings: read-only, so that no turn can plant a hook for the next one.

    A foreign runner's harness gets those of the earlier system, with the one hook that is part of that runner.
    """
    variables = {"CLAUDE_CODE_ADDITIONAL_DIRECTORIES_CLAUDE_MD": "1"}
    hooks: dict[str, Any] = {}
    if foreign:
        # Whether the harness keeps a memory of its own, the newer of these runners say themselves; said here, it would
        # overrule them.
        variables["CLAUDE_CODE_EXPERIMENTAL_AGENT_TEAMS"] = "1"
        compaction = {"type": "command", "command": "bun /app/src/compact-instructions.ts"}
        hooks = {"PreCompact": [{"hooks": [compaction]}]}
    return text_document(json.dumps({"env": variables, "hooks": hooks}, indent=2) + "\n")
