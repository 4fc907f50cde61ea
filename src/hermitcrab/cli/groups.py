"""`crab groups`: agent groups."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hermitcrab.cli.output import GivenHome, Json, print_fields, print_json, print_table
from hermitcrab.control.client import ControlClient
from hermitcrab.errors import BadInputError

_MEMORY_BYTES = 64 * 1024


async def list_groups(*, json: Json = False, home: GivenHome) -> None:
    """Every agent group."""
    async with ControlClient.connect(home) as client:
        found = (await client.call("groups.list"))["groups"]
    if json:
        print_json(found)
        return
    print_table(
        ("GROUP", "NAME", "PROVIDER", "CREATED"),
        [(each["folder"], each["name"], each["provider"] or "(default)", each["created_at"]) for each in found],
        empty="There is no group yet; make one with: crab groups create NAME",
    )


async def create(
    group: Annotated[str, Parameter(help="Name of its folder: lower-case letters, digits, - and _.")],
    /,
    *,
    name: Annotated[str | None, Parameter(help="The agent's name for people (default: GROUP).")] = None,
    provider: Annotated[str | None, Parameter(help="claude or echo (default: the setting agents.provider).")] = None,
    memory: Annotated[
        str | None, Parameter(help="A file with the text that its memory begins with; - is standard input.")
    ] = None,
    json: Json = False,
    home: GivenHome,
) -> None:
    """Make an agent group with a terminal chat of its own."""
    text = _memory(memory) if memory is not None else None
    async with ControlClient.connect(home) as client:
        made = (await client.call("groups.create", folder=group, name=name, provider=provider, memory=text))["group"]
    if json:
        print_json(made)
        return
    print(f"Made group {made['folder']}. Talk to it with: crab chat --group {made['folder']}")


def _memory(file: str) -> str | None:
    try:
        data = sys.stdin.buffer.read(_MEMORY_BYTES + 1) if file == "-" else _beginning(Path(file))
        text = data.decode()
    except (OSError, ValueError) as error:
        raise BadInputError(f"{file} cannot be read as text: {error}", hint="Give a file with UTF-8 text.") from error
    if len(data) > _MEMORY_BYTES:
        raise BadInputError(f"{file} is longer than {_MEMORY_BYTES} bytes", hint="Longer things go into files.")
    return text or None


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MEMORY_BYTES + 1)


async def show(group: str, /, *, json: Json = False, home: GivenHome) -> None:
    """One agent group: who it hears, where it may send, its newest sessions."""
    async with ControlClient.connect(home) as client:
        found = await client.call("groups.show", folder=group)
    if json:
        print_json(found)
        return
    about = found["group"]
    print_fields(
        [
            ("group", about["folder"]),
            ("name", about["name"]),
            ("id", about["id"]),
            ("provider", about["provider"] or "(default)"),
            ("workspace", about["path"]),
            ("created", about["created_at"]),
        ]
    )
    print()
    print_table(
        ("HEARS", "ANSWERS", "SESSIONS", "SENDERS"),
        [(each["chat"], _answers(each), each["session_mode"], each["sender_scope"]) for each in found["wirings"]],
        empty="It hears no chat.",
    )
    print()
    print_table(
        ("MAY SEND TO", "TYPE", "WHERE"),
        [
            (each["name"], each["type"], _where(each["channel_type"], each["platform_id"], each["agent_group_id"]))
            for each in found["destinations"]
        ],
        empty="It may send nowhere but where it was spoken to.",
    )
    print()
    print_table(
        ("SESSION", "CHAT", "PHASE", "LAST ACTIVE"),
        [(each["id"], each["chat"], each["phase"], each["last_active_at"]) for each in found["sessions"]],
        empty="It has no session yet.",
    )


def _answers(wiring: dict[str, str | None]) -> str:
    if wiring["engage_mode"] == "pattern":
        return "everything" if wiring["engage_pattern"] in (None, ".") else f"text like {wiring['engage_pattern']}"
    return str(wiring["engage_mode"])


def _where(channel_type: str | None, platform_id: str | None, agent_group_id: str | None) -> str | None:
    return f"{channel_type}:{platform_id}" if channel_type else agent_group_id
