"""`crab groups restart` and `crab sessions restart`: fresh containers in the place of those that run."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from hermitcrab.cli.output import GivenHome, Json, Session, print_json, print_line, print_table
from hermitcrab.control.client import ControlClient

Message = Annotated[str | None, Parameter(help="Said to the fresh container only, as from the system.")]
Wake = Annotated[bool, Parameter(help="Start the fresh one at once, even if nothing waits for it.", negative=())]


async def group(
    group: str, /, *, message: Message = None, wake: Wake = False, json: Json = False, home: GivenHome
) -> int:
    """End the container of each of the group's sessions that has one; sessions without one sleep on.

    The fresh one starts at once if something waits for it, and otherwise with the next message.
    """
    async with ControlClient.connect(home) as client:
        found = await client.call("groups.restart", folder=group, message=message, wake=wake)
    if json:
        print_json(found)
    else:
        print_table(
            ("SESSION", "OLD CONTAINER", "FRESH ONE"),
            [(each["session"], _old(each), _fresh(each)) for each in found["restarted"]],
            empty="No session of it has a container.",
        )
        for problem in found["failed"]:
            print_line(problem, "bad")
    return 1 if found["failed"] or any(each["phase"] != "absent" for each in found["restarted"]) else 0


async def session(
    session: Session, /, *, message: Message = None, wake: Wake = False, json: Json = False, home: GivenHome
) -> int:
    """End the session's container; a session without one sleeps on, unless it is to be woken."""
    async with ControlClient.connect(home) as client:
        found = await client.call("sessions.restart", session=session, message=message, wake=wake)
    if json:
        print_json(found)
    else:
        print(f"Its container: {_old(found)}. A fresh one: {_fresh(found)}.")
    return 0 if found["phase"] == "absent" else 1


def _old(restart: dict[str, Any]) -> str:
    if not restart["had_container"]:
        return "it had none"
    return "ended" if restart["phase"] == "absent" else f"did not end, it is {restart['phase']}"


def _fresh(restart: dict[str, Any]) -> str:
    if not restart["starts"]:
        return "with the next message"
    return "starts" if restart["phase"] == "absent" else "as soon as the old one is gone"
