"""`crab groups config`: how an agent group's containers are to be. The host checks every change before it takes it."""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from hermitcrab.channels.terminal.render import one_line
from hermitcrab.cli.group_config_change import change
from hermitcrab.cli.group_config_edit import NOT_AGREED, Yes
from hermitcrab.cli.output import GivenHome, Json, print_json, print_line, print_table
from hermitcrab.control.client import ControlClient
from hermitcrab.control.protocol import Json as Answer
from hermitcrab.errors import BadInputError
from hermitcrab.logic.container_config import DOCUMENT_BYTES_AT_MOST
from hermitcrab.logic.container_config_edit import value_of_words

Key = Annotated[str, Parameter(help="Like model, limits.pids, packages.apt or mcp_servers.NAME.")]


async def show(group: str, /, *, json: Json = False, home: GivenHome) -> None:
    """Everything that is decided on a group's containers; --json prints what `import` takes."""
    async with ControlClient.connect(home) as client:
        found = await client.call("groups.config.show", folder=group)
    if json:
        print_json(found["config"])
        return
    print_table(("KEY", "VALUE", "FROM"), _rows(found), empty="")
    for mount in found["refused_mounts"]:
        print_line(f"{one_line(mount['host'])} will not be mounted: {one_line(mount['reason'])}", "warning")
    if found["not_installed"]:
        print_line(f"{one_line(found['not_installed'])}: crab image build --group {group}", "warning")


async def set_value(
    group: str,
    key: Key,
    /,
    *value: Annotated[str, Parameter(help="Text, a number, or JSON; of a list, its words.", allow_leading_hyphen=True)],
    yes: Yes = False,
    json: Json = False,
    home: GivenHome,
) -> int:
    """Set one value. It takes effect when a container next starts."""
    values = {key: value_of_words(key, value)}
    async with ControlClient.connect(home) as client:
        return _exit_code(await change(client, group, yes=yes, json=json, set=values))


async def unset(group: str, key: Key, /, *, yes: Yes = False, json: Json = False, home: GivenHome) -> int:
    """Put one value back to its default."""
    async with ControlClient.connect(home) as client:
        return _exit_code(await change(client, group, yes=yes, json=json, unset=[key]))


async def import_document(
    group: str,
    file: Annotated[str, Parameter(help="A JSON file as `show --json` prints it; - is standard input.")],
    /,
    *,
    yes: Yes = False,
    json: Json = False,
    home: GivenHome,
) -> int:
    """Replace a group's whole config. What the document does not say has its default."""
    document = _read(file)
    async with ControlClient.connect(home) as client:
        return _exit_code(await change(client, group, yes=yes, json=json, config=document))


def _exit_code(done: bool) -> int:
    return 0 if done else NOT_AGREED


def _read(file: str) -> dict[str, Any]:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(DOCUMENT_BYTES_AT_MOST + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(DOCUMENT_BYTES_AT_MOST + 1)
        if len(data) > DOCUMENT_BYTES_AT_MOST:
            raise BadInputError(f"{file} is longer than {DOCUMENT_BYTES_AT_MOST} bytes")
        found = json_text.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(
            f"{file} cannot be read as JSON: {error}", hint="crab groups config show GROUP --json"
        ) from error
    if not isinstance(found, dict):
        raise BadInputError(f"{file} holds no JSON object", hint="crab groups config show GROUP --json")
    return found


def _rows(found: Answer) -> Iterator[tuple[str, object, str]]:
    installation: Mapping[str, Any] = found["installation"]
    for key, value in _flat(found["config"]):
        if value is None:
            yield key, installation.get(key), "installation"
        else:
            yield key, value, "default" if value in ([], {}) or (key, value) in _DEFAULTS else "group"


_DEFAULTS = (("skills", "all"), ("cli_scope", "group"), ("hardening", "standard"))


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each key on a line of its own; a server or a mount as the JSON that sets it."""
    for key, value in config.items():
        if key in {"limits", "packages"}:
            yield from ((f"{key}.{inner}", each) for inner, each in value.items())
        elif key == "mcp_servers" and value:
            for name, server in value.items():
                yield f"{key}.{name}", json_text.dumps({k: v for k, v in server.items() if v}, ensure_ascii=False)
        elif key == "additional_mounts" and value:
            yield key, json_text.dumps(value, ensure_ascii=False)
        else:
            yield key, value
