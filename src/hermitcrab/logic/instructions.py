"""The text files that an agent finds in its folder, composed afresh for every container."""

from __future__ import annotations

import json
from typing import Any

from hermitcrab.model.groups import AgentGroup

MEMORY_FILE = "CLAUDE.local.md"
SHARED_PATH = "/app/CLAUDE.md"


def claude_md() -> str:
    """The entry file that the harness reads first: imports only, so that each part has one place."""
    return (
        f"<!-- Written by the host for every container; changes here are lost. -->\n@{SHARED_PATH}\n@./{MEMORY_FILE}\n"
    )


def container_json(group: AgentGroup, config: dict[str, Any]) -> str:
    """What the container may know of its own configuration; keys as in the earlier system, so that tools find them."""
    values = {
        "provider": config.get("provider"),
        "groupName": group.name,
        "assistantName": config.get("assistant_name"),
        "agentGroupId": group.id,
        "maxMessagesPerPrompt": config.get("max_messages_per_prompt"),
        "model": config.get("model"),
        "effort": config.get("effort"),
    }
    return json.dumps({key: value for key, value in values.items() if value is not None}, indent=2) + "\n"


def passwd(uid: int, gid: int) -> str:
    """Who the container's user is, for programs that look themselves up."""
    return (
        "root:x:0:0:root:/root:/usr/sbin/nologin\n"
        f"agent:x:{uid}:{gid}:agent:/home/agent:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )


def claude_settings() -> str:
    """The harness's settings: read-only, so that no turn can plant a hook for the next one."""
    values = {
        "env": {"CLAUDE_CODE_ADDITIONAL_DIRECTORIES_CLAUDE_MD": "1"},
        "hooks": {},
    }
    return json.dumps(values, indent=2) + "\n"
