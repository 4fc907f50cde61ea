"""How this agent is set up and how it is doing: one JSON object a line. Standard library only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

CONFIG = Path("/workspace/agent/container.json")
SHOWN = ("assistantName", "groupName", "provider", "model", "effort", "skills", "packages")
GROUP = Path("/sys/fs/cgroup")
LIMITS = {
    "memory_bytes": "memory.max",
    "memory_used": "memory.current",
    "pids": "pids.max",
    "pids_used": "pids.current",
}
PROGRAMS = ("git", "curl", "jq", "node", "ffmpeg", "pandoc", "pdftotext", "sqlite3", "rg")


def agent() -> dict[str, object]:
    try:
        config = json.loads(CONFIG.read_text())
    except (OSError, ValueError):
        return {}
    return {key: config[key] for key in SHOWN if key in config} | {"tool_servers": sorted(config.get("mcpServers", {}))}


def limits() -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for key, name in LIMITS.items():
        try:
            text = (GROUP / name).read_text().strip()
        except OSError:
            text = ""
        found[key] = int(text) if text.isdigit() else None
    return found


def space() -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for place in ("/workspace", "/workspace/agent", "/tmp"):  # noqa: S108  # named, not used
        try:
            found[place] = shutil.disk_usage(place).free
        except OSError:
            found[place] = None
    return found


def main() -> None:
    there = {name: shutil.which(name) is not None for name in PROGRAMS}
    facts: dict[str, object] = {
        "agent": agent(),
        "limits": limits() | {"cpus": os.cpu_count()},
        "space": space(),
        "programs": {
            "there": [name for name, found in there.items() if found],
            "missing": [name for name, found in there.items() if not found],
        },
        "network": "the model's service only",
    }
    for name, fact in facts.items():
        print(json.dumps({name: fact}, ensure_ascii=False))


if __name__ == "__main__":
    main()
