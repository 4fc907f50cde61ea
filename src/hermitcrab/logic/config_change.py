"""What a change of an agent group's config comes to: every value that differs, and what its agents get by it.

A change that gives agents something to read, write, reach or run that they had not is one that a person must see before
it counts. What they may use up (limits) and what they are told (skills, instructions) gives them no new place to go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hermitcrab.logic.container_config import to_document, whole_document
from hermitcrab.model.container_config import AdditionalMount, CliScope, ContainerConfig, McpServer

_REACH: Mapping[CliScope, int] = {"disabled": 0, "group": 1, "global": 2}


@dataclass(frozen=True, slots=True)
class Difference:
    key: str
    before: Any
    after: Any


def differences(before: ContainerConfig, after: ContainerConfig) -> tuple[Difference, ...]:
    """Every value that changes, by its dotted key."""
    old, new = dict(flat(whole_document(before))), dict(flat(whole_document(after)))
    return tuple(
        Difference(key, old.get(key), new.get(key))
        for key in dict.fromkeys((*old, *new))
        if old.get(key) != new.get(key)
    )


def flat(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each key with its value: parts of limits, packages and servers by themselves, a list as a whole."""
    for key, value in document.items():
        if key in {"limits", "packages", "mcp_servers"}:
            yield from ((f"{key}.{inner}", each) for inner, each in value.items())
        else:
            yield key, value


def widening(before: ContainerConfig, after: ContainerConfig) -> tuple[str, ...]:
    """What the group's agents can read, write, reach or run by the change and could not before, a sentence each."""
    return (
        *_mounts(before, after),
        *_programs(before, after),
        *_servers(before.mcp_servers, after.mcp_servers),
        *_rights(before, after),
    )


def agreement(before: ContainerConfig, after: ContainerConfig) -> str:
    """What stands for a person's yes to this very change, and to no other: the same for no two pairs of configs."""
    text = json.dumps([to_document(before), to_document(after)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _mounts(before: ContainerConfig, after: ContainerConfig) -> Iterator[str]:
    readable = {each.host_path for each in before.additional_mounts}
    writable = {each.host_path for each in before.additional_mounts if not each.read_only}
    for each in after.additional_mounts:
        if not each.read_only and each.host_path not in writable:
            yield f"They may write in {each.host_path}, where the allow-list lets them."
        elif each.host_path not in readable:
            yield f"They may read {each.host_path}, where the allow-list lets them."
        elif each.read_only and _renamed(each, before):
            yield f"They find {each.host_path} in another place."


def _renamed(mount: AdditionalMount, before: ContainerConfig) -> bool:
    return all(each.name != mount.name for each in before.additional_mounts if each.host_path == mount.host_path)


def _programs(before: ContainerConfig, after: ContainerConfig) -> Iterator[str]:
    if after.image and after.image != before.image:
        yield f"Their containers are made from {after.image}."
    for kind in ("apt", "npm", "pip"):
        had = getattr(before.packages, kind)
        for name in getattr(after.packages, kind):
            if name not in had:
                yield f"Their image gets the {kind} package {name}, with all that it brings."
    if after.foreign_command and after.foreign_command != before.foreign_command:
        yield f"Their containers run {' '.join(after.foreign_command)} in place of our runner."


def _servers(before: Mapping[str, McpServer], after: Mapping[str, McpServer]) -> Iterator[str]:
    for name, server in after.items():
        had = before.get(name)
        if had is not None and _runs(had) == _runs(server):
            continue
        if server.url is not None:
            yield f"The tool server {name} is reached at {server.url}."
        else:
            yield f"The tool server {name} runs {' '.join((server.command or '', *server.args))}."


def _runs(server: McpServer) -> tuple[object, ...]:
    return server.command, server.args, dict(server.env), server.url, server.transport


def _rights(before: ContainerConfig, after: ContainerConfig) -> Iterator[str]:
    if _REACH[after.cli_scope] > _REACH[before.cli_scope]:
        whose = "all groups" if after.cli_scope == "global" else "their own group"
        yield f"They may use the host's commands on {whose}."
    if (before.hardening, after.hardening) == ("strict", "standard"):
        yield "Their containers are hardened less."
