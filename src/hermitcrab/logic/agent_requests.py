"""What an agent asks of the host in a row of kind `system`: what it may know, and why it may not have the rest. Pure.

The one action that is carried out is `cli_request`, for commands that only look. Everything that changes something
needs somebody who agrees to it, and this host cannot ask anybody yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hermitcrab.model.container_config import CliScope
from hermitcrab.model.ids import AgentGroupId

REQUEST_ID_CHARACTERS = 150

COMMANDS = {
    "help": "These commands.",
    "groups-list": "Agent groups.",
    "groups-get": "One agent group (--id).",
    "destinations-list": "Where an agent may send to.",
    "sessions-list": "Conversations.",
    "sessions-get": "One conversation (--id).",
    "messaging-groups-list": "Chats. For agents that may look at all groups.",
    "wirings-list": "Which agent hears which chat. For agents that may look at all groups.",
}
FOR_ALL_GROUPS = frozenset({"messaging-groups-list", "wirings-list"})

_VERBS = frozenset(
    ("create", "update", "delete", "restart", "grant", "revoke", "add", "remove", "mcp-server", "package", "config")
)
"""Words of the earlier system's commands that change something, or that show what only people may see."""

_ADMINISTRATOR = "an administrator can do it with crab, and this host cannot ask one for you yet"

_NO_SCHEDULER = "this host has no scheduler yet"

NOT_CARRIED_OUT = {
    "schedule_task": _NO_SCHEDULER,
    "cancel_task": _NO_SCHEDULER,
    "pause_task": _NO_SCHEDULER,
    "resume_task": _NO_SCHEDULER,
    "update_task": _NO_SCHEDULER,
    "create_agent": f"a new agent needs somebody's consent; {_ADMINISTRATOR} (crab groups create)",
    "install_packages": f"packages need somebody's consent; {_ADMINISTRATOR} (crab groups config set)",
    "add_mcp_server": f"a tool server needs somebody's consent; {_ADMINISTRATOR} (crab groups config set)",
}


@dataclass(frozen=True, slots=True)
class Command:
    """Something to look up."""

    name: str
    group: AgentGroupId | None
    """Only of that group; None: of all."""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the agent gets an error in the place of an answer."""

    code: str
    message: str


def why_not(content: Mapping[str, Any]) -> str | None:
    """Why a row of kind `system` is not carried out at all. None: it is a command."""
    action = content.get("action")
    if action == "cli_request":
        key, command = content.get("requestId"), content.get("command")
        if not isinstance(key, str) or not 0 < len(key) <= REQUEST_ID_CHARACTERS or not isinstance(command, str):
            return "a cli_request has a requestId and a command"
        return None
    if isinstance(action, str) and action in NOT_CARRIED_OUT:
        return NOT_CARRIED_OUT[action]
    return f"there is no action {str(action)[:60]!r} here"


def command_of(content: Mapping[str, Any], scope: CliScope, own: AgentGroupId) -> Command | Problem:
    """The command that a `cli_request` gives, as far as its agent may look."""
    given = content.get("args")
    arguments = {str(key).replace("-", "_"): value for key, value in given.items()} if isinstance(given, dict) else {}
    name = str(content.get("command"))[:120]
    if scope == "disabled":
        return Problem("forbidden", "this agent may not use the host's commands")
    if name not in COMMANDS:
        if name.partition("-")[0] == "tasks":
            return Problem("not-available", _NO_SCHEDULER)
        if set(name.split("-")) & _VERBS:
            return Problem("forbidden", f"{name} changes something; {_ADMINISTRATOR}")
        return Problem("unknown-command", f"no command {name!r}; there are {', '.join(COMMANDS)}")
    key = arguments.get("id")
    if key is not None and not isinstance(key, str):
        return Problem("invalid-args", "--id needs a value")
    if name.endswith("-get") and key is None and name != "groups-get":
        return Problem("invalid-args", f"{name} needs --id")
    if scope == "global":
        asked = arguments.get("agent_group_id", arguments.get("group"))
        return Command(name, AgentGroupId(asked) if isinstance(asked, str) else None, key)
    foreign = any(arguments.get(each, own) != own for each in ("agent_group_id", "group"))
    if name in FOR_ALL_GROUPS or foreign or (name.startswith(("groups-", "destinations-")) and (key or own) != own):
        return Problem("forbidden", "this agent may look at its own group only")
    return Command(name, own, key)
