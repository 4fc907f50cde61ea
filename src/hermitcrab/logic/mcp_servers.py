"""The tool servers of a config, in the words of agent harnesses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hermitcrab.model.container_config import McpServer


def for_harness(servers: Mapping[str, McpServer]) -> dict[str, dict[str, Any]]:
    """As in a harness's own configuration, by name: a command with args and env, or a type and a url."""
    return {name: _one(server) for name, server in sorted(servers.items())}


def _one(server: McpServer) -> dict[str, Any]:
    if server.url is not None:
        return {"type": server.transport, "url": server.url}
    return {"command": server.command, "args": list(server.args), "env": dict(server.env)}
