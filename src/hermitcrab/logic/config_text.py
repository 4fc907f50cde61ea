"""A container config as a text that people edit: TOML, with the keys that have their default as comments."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from hermitcrab.errors import BadInputError
from hermitcrab.logic.container_config import DOCUMENT_BYTES_AT_MOST

_HEADING = """\
# How the containers of agent group {group} are to be. Save and leave the editor to have it checked and taken.
# What stands behind a # has its default, or the value of the installation.
"""

_EXAMPLES = {
    "mcp_servers": '# [mcp_servers.NAME]\n# command = "python3"\n# args = ["/app/skills/NAME/server.py"]\n',
    "additional_mounts": '# [[additional_mounts]]\n# host_path = "/srv/projects"\n# read_only = true\n',
}


def to_text(group: str, document: Mapping[str, Any], installation: Mapping[str, Any]) -> str:
    """The whole document, as `from_text` reads it. `installation`: what counts where a group says nothing."""
    plain = {key: value for key, value in document.items() if not _is_table(key)}
    lines = [_HEADING.format(group=group), *_values(plain, "", installation)]
    for key in ("packages", "limits"):
        lines += [f"\n[{key}]\n", *_values(document[key], f"{key}.", installation)]
    lines += ["\n", *_servers(document["mcp_servers"]), "\n", *_mounts(document["additional_mounts"])]
    return "".join(lines)


def from_text(text: str) -> dict[str, Any]:
    """The document that the text stands for; unchecked, but for being one. Raises BadInputError with the line."""
    if len(text.encode("utf-8", "surrogatepass")) > DOCUMENT_BYTES_AT_MOST:
        raise BadInputError(f"The config is longer than {DOCUMENT_BYTES_AT_MOST} bytes.")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInputError(f"The config is no TOML: {error}") from error


def _is_table(key: str) -> bool:
    return key in {"packages", "limits", *_EXAMPLES}


def _values(values: Mapping[str, Any], prefix: str, installation: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if value is None:
            usual = installation.get(prefix + key)
            yield f"# {key} = {_toml(usual)}\n" if usual is not None else f"# {key} =\n"
        elif value == [] and key != "skills":  # No skill at all is a choice; the default is all of them.
            yield f"# {key} = []\n"
        else:
            yield f"{key} = {_toml(value)}\n"


def _servers(servers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not servers:
        yield _EXAMPLES["mcp_servers"]
    for name, server in servers.items():
        yield f"[mcp_servers.{name}]\n"
        for key, value in server.items():
            if value not in (None, "", [], {}) and (key, value) != ("transport", "http") and key != "env":
                yield f"{key} = {_toml(value)}\n"
        if server["env"]:
            yield f"[mcp_servers.{name}.env]\n"
            yield from (f"{key} = {_toml(value)}\n" for key, value in server["env"].items())


def _mounts(mounts: list[Mapping[str, Any]]) -> Iterator[str]:
    if not mounts:
        yield _EXAMPLES["additional_mounts"]
    for mount in mounts:
        yield "[[additional_mounts]]\n"
        yield from (f"{key} = {_toml(value)}\n" for key, value in mount.items() if value is not None)


def _toml(value: Any) -> str:
    # Of text, numbers, truths and lists of them, JSON writes what TOML reads; only DEL must be escaped there.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
