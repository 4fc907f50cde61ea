"""How the Claude Code harness is started: its options and its environment. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hermitcrab_runner.providers.base import ProviderSettings
from hermitcrab_runner.tools.catalogue import SERVER

NATIVE_COMMANDS = frozenset({"/compact", "/context", "/cost"})

ALLOWED_TOOLS = (
    "Bash",
    "Read",
    "Write",
    "Edit",
    "Glob",
    "Grep",
    "WebSearch",
    "WebFetch",
    "Task",
    "TaskOutput",
    "TaskStop",
    "TeamCreate",
    "TeamDelete",
    "SendMessage",
    "TodoWrite",
    "ToolSearch",
    "Skill",
    "NotebookEdit",
)
DISALLOWED_TOOLS = (
    # The host schedules; what a harness schedules for itself ends with its process.
    "CronCreate",
    "CronDelete",
    "CronList",
    "ScheduleWakeup",
    # These wait for somebody at a terminal.
    "AskUserQuestion",
    "EnterPlanMode",
    "ExitPlanMode",
    "EnterWorktree",
    "ExitWorktree",
)

_SETTINGS = {"disableAllHooks": True}
"""Above what lies in the agent's own folder: nothing that one turn writes there may run by itself in the next."""

_OUR_VARIABLES = re.compile(r"HERMITCRAB_.*|PYTHON.*")
_OUR_FOLDERS = "/opt/hermitcrab/"


def options(settings: ProviderSettings, *, port: int, root: bool, tools: object = None) -> dict[str, Any]:
    """Keyword arguments of ClaudeAgentOptions. `tools`: the server with our own tools; no other may take its name."""
    servers: dict[str, Any] = {
        name: {key: value for key, value in server.items() if key != "instructions"}
        for name, server in settings.mcp_servers.items()
        if isinstance(server, Mapping)
    }
    if tools is not None:
        servers[SERVER] = tools
    return {
        "cwd": settings.workdir,
        "add_dirs": list(settings.additional_directories),
        "resume": settings.continuation,
        "system_prompt": {"type": "preset", "preset": "claude_code", "append": settings.instructions},
        "setting_sources": ["project", "user"],
        "settings": json.dumps(_SETTINGS),
        # The container is the boundary: inside of it the agent needs nobody's permission.
        "permission_mode": "bypassPermissions",
        "allowed_tools": [*ALLOWED_TOOLS, *(f"mcp__{_tool_name(name)}__*" for name in servers)],
        "disallowed_tools": list(DISALLOWED_TOOLS),
        "mcp_servers": servers,
        # Only servers that an administrator approved, and none from a file that the agent can write.
        "strict_mcp_config": True,
        "model": settings.model,
        "effort": settings.effort,
        "env": environment(port, root=root),
        "max_buffer_size": 64 * 1024 * 1024,
    }


def environment(port: int, *, root: bool) -> dict[str, str]:
    """What the harness finds in its environment on top of the container's own."""
    here = f"http://127.0.0.1:{port}"
    variables = {
        "ANTHROPIC_BASE_URL": f"{here}/anthropic",
        # The gateway puts the real one in. The harness only wants to see something.
        "ANTHROPIC_API_KEY": "placeholder",
        "HTTP_PROXY": here,
        "HTTPS_PROXY": here,
        "NO_PROXY": "127.0.0.1,localhost",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": "165000",
        # It then says when it owes no further answer.
        "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",
    }
    if root:
        # It refuses to work as root outside of a sandbox. This one is a sandbox.
        variables["IS_SANDBOX"] = "1"
    return variables


def foreign_variables(variables: Mapping[str, str]) -> list[str]:
    """Names of variables that are the runner's own and would only confuse the programs that an agent runs."""
    return [
        name for name, value in variables.items() if _OUR_VARIABLES.fullmatch(name) or value.startswith(_OUR_FOLDERS)
    ]


def _tool_name(server: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", server)
