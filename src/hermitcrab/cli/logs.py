"""`crab logs`: what a session's container wrote."""

from __future__ import annotations

from json import dumps
from typing import Annotated

from cyclopts import Parameter

from hermitcrab.channels.terminal.render import plain
from hermitcrab.cli.output import GivenHome, Json, Session, print_json
from hermitcrab.control.client import ControlClient


async def logs(
    session: Session,
    /,
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="", help="Go on until interrupted.")] = False,
    lines: Annotated[int, Parameter(name=["--lines", "-n"], help="How many of the last lines.")] = 100,
    json: Json = False,
    home: GivenHome,
) -> None:
    """What a session's container wrote: the one that runs, or else the last words of the one before."""
    kept: list[str] = []
    async with ControlClient.connect(home) as client:
        async for event in client.stream("logs", session=session, lines=lines, follow=follow):
            if json and not follow:
                kept.append(str(event["line"]))
            elif json:
                print(dumps({"line": event["line"]}, ensure_ascii=True), flush=True)
            else:
                # Written by an agent: nothing in it may steer the terminal.
                print(plain(str(event["line"])), flush=follow)
    if json and not follow:
        print_json(kept)
