"""`crab deaths`: how containers ended."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from hermitcrab.channels.terminal.render import plain
from hermitcrab.cli.output import GivenHome, Json, print_json, print_table
from hermitcrab.control.client import ControlClient


async def deaths(
    session: Annotated[str | None, Parameter(help="Only of this session: its id, or a group's name.")] = None,
    /,
    *,
    cause: Annotated[str | None, Parameter(help="Only ends of this cause, as in the table.")] = None,
    since: Annotated[str | None, Parameter(help="Only ends since then: 30m, 2h or 7d ago, or a date.")] = None,
    limit: Annotated[int, Parameter(help="At most this many.")] = 20,
    logs: Annotated[bool, Parameter(negative="", help="With the last lines that each container wrote.")] = False,
    json: Json = False,
    home: GivenHome,
) -> None:
    """How containers ended, newest first: of every session, or of one."""
    async with ControlClient.connect(home) as client:
        asked = client.stream("deaths", session=session, cause=cause, since=since, limit=limit, logs=logs)
        found = [each async for each in asked]
    if json:
        print_json(found)
        return
    nothing = "No container has ended like that." if cause or since else "No container has ended yet."
    columns = ("ENDED", "SESSION", "GENERATION", "CAUSE", "EXIT", "LASTED", "GIVEN BACK", "WHY")
    if not logs:
        print_table(columns, map(_row, found), empty=nothing)
        return
    for number, each in enumerate(found):
        if number:
            print()
        print_table(columns, [_row(each)], empty="")
        for line in each["log"]:
            # Written by an agent: nothing in it may steer the terminal.
            print(f"  | {plain(line)}")
    if not found:
        print(nothing)


def _row(death: dict[str, Any]) -> tuple[object, ...]:
    lasted = death["duration_s"]
    return (
        death["ended_at"],
        death["session"],
        death["generation"],
        death["cause"],
        death["exit_code"],
        f"{lasted:.1f} s" if lasted is not None else None,
        death["rows_returned"],
        death["text"],
    )
