"""A change of a group's config, as a person sees it before it counts: what differs, and what agents get by it."""

from __future__ import annotations

import json
import sys
from typing import Any

from anyio import to_thread

from hermitcrab.channels.terminal.render import one_line
from hermitcrab.cli.output import print_json, print_line
from hermitcrab.control.client import ControlClient
from hermitcrab.control.protocol import Json
from hermitcrab.errors import NotAgreedError

VALUE_CHARACTERS = 200


async def change(client: ControlClient, group: str, *, yes: bool, json: bool, **wish: Any) -> bool:
    """Have it made, asking on a terminal where it widens what agents may do. False: the person said no.

    `wish`: `set`, `unset` or `config`, as the host takes them. Without a terminal, what widens needs `yes`.
    """
    proposal = await client.call("groups.config.propose", folder=group, **wish)
    if not await agreed(proposal, group, yes=yes, json=json):
        return False
    await apply(client, group, proposal, json=json, **wish)
    return True


async def agreed(proposal: Json, group: str, *, yes: bool, json: bool) -> bool:
    """Show the change, and have a person's yes if it needs one. Raises NotAgreedError where there is nobody to ask."""
    if not json:
        show(proposal)
    if not proposal["widening"] or yes:
        return True
    if json or not sys.stdin.isatty():
        raise NotAgreedError(
            f"This gives the agents of group {group} what they had not: {' '.join(proposal['widening'])}",
            hint="Nothing was changed. Add --yes if you mean it.",
        )
    return await ask("Change it?", usual=False)


async def apply(client: ControlClient, group: str, proposal: Json, *, json: bool, **wish: Any) -> None:
    """Make the very change that was shown; one that somebody else was faster than is not made."""
    answer = await client.call("groups.config.change", folder=group, agreement=proposal["agreement"], **wish)
    if json:
        print_json(answer["config"])
        return
    if not proposal["differences"]:
        print(f"Group {group} is like that already.")
        return
    print(f"Changed group {group}. It takes effect when a container of it next starts.")
    changed = {each["key"].partition(".")[0] for each in proposal["differences"]}
    if changed & {"packages", "image"} and any(proposal["after"]["packages"].values()):
        print(f"Its packages are in the containers once its image is made: crab image build --group {group}")
    if earlier := answer["earlier"]:
        print_line("These sessions are as they were before. End a container with: crab sessions stop SESSION")
        for each in earlier:
            print(f"  {each['session']} ({each['phase']})")


def show(proposal: Json) -> None:
    for each in proposal["differences"]:
        key = each["key"]
        print_line(f"  {key}: {_value(key, each['before'])} -> {_value(key, each['after'])}")
    for text in proposal["widening"]:
        print_line(f"  ! {one_line(text)}", "warning")
    for mount in proposal["refused_mounts"]:
        print_line(f"  ! {one_line(mount['host'])} will not be mounted: {one_line(mount['reason'])}", "warning")
        print_line("    crab mounts explain PATH says more.", "quiet")


async def ask(question: str, *, usual: bool) -> bool:
    """A person's answer on the terminal; the end of input is a no."""
    words = "[Y/n]" if usual else "[y/N]"
    try:
        answer = await to_thread.run_sync(input, f"{question} {words} ")
    except EOFError:
        return False
    return {"": usual, "y": True, "yes": True}.get(answer.strip().lower(), False)


def _value(key: str, value: object) -> str:
    if value is None:
        return "(none)" if key.startswith("mcp_servers.") else "(the installation's)"
    return one_line(json.dumps(value, ensure_ascii=False))[:VALUE_CHARACTERS]
