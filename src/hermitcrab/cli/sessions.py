"""`crab sessions`: conversations and their containers."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from hermitcrab.channels.terminal.render import one_line
from hermitcrab.cli.output import GivenHome, Json, Session, print_fields, print_json, print_table
from hermitcrab.cli.status import megabytes
from hermitcrab.control.client import ControlClient


async def list_sessions(
    *,
    group: Annotated[str | None, Parameter(help="Only sessions of this agent group.")] = None,
    limit: Annotated[int, Parameter(help="At most this many.")] = 100,
    before: Annotated[str | None, Parameter(help="Only sessions older than this one: the next page.")] = None,
    json: Json = False,
    home: GivenHome,
) -> None:
    """Sessions, newest first."""
    async with ControlClient.connect(home) as client:
        found = await client.call("sessions.list", group=group, limit=limit, before=before)
    if json:
        print_json(found["sessions"])
        return
    print_table(
        ("SESSION", "GROUP", "CHAT", "PHASE", "GENERATION", "LAST ACTIVE"),
        [
            (each["id"], each["group"], each["chat"], each["phase"], each["generation"], each["last_active_at"])
            for each in found["sessions"]
        ],
        empty="There is no session yet; the first message makes one: crab chat hello",
    )
    if found["next_before"]:
        print(f"More: crab sessions list --before {found['next_before']}")


async def show(session: Session, /, *, json: Json = False, home: GivenHome) -> None:
    """One session: its container, its messages, how earlier containers ended."""
    async with ControlClient.connect(home) as client:
        found = await client.call("sessions.show", session=session)
    if json:
        print_json(found)
        return
    about, container = found["session"], found["session"]["container"] or {}
    print_fields(
        [
            ("session", about["id"]),
            ("group", about["group"]),
            ("chat", about["chat"]),
            ("thread", about["thread"]),
            ("phase", about["phase"]),
            ("generation", about["generation"]),
            ("activity", " ".join(part for part in (container.get("activity"), container.get("detail")) if part)),
            ("container", container.get("container")),
            ("engine", container.get("engine")),
            ("memory", megabytes(container.get("memory_bytes"))),
            ("on disk", megabytes(container.get("workspace_bytes"))),
            ("not kept", container.get("unrealized")),
            ("note", container.get("text")),
            ("created", about["created_at"]),
            ("last active", about["last_active_at"]),
            *((f"messages {name.replace('_', ' ')}", count) for name, count in found["mailbox"].items()),
            *((f"last start: {stage}", _figure(stage, value)) for stage, value in found["timings_ms"].items()),
        ]
    )
    print()
    print_table(
        ("ENDED", "GENERATION", "CAUSE", "WHY"),
        [(each["ended_at"], each["generation"], each["cause"], each["text"]) for each in found["certificates"]],
        empty="None of its containers has ended yet.",
    )
    if found["quarantined"]:
        print()
        print_table(
            ("SET ASIDE", "MESSAGE", "TRIES", "TEXT", "WHY"),
            [
                (each["since"], each["id"], each["tries"], one_line(each["text"], width=60), each["reason"])
                for each in found["quarantined"]
            ],
            empty="",
        )
        print(f"To try one again: crab sessions release {about['id']} MESSAGE")


async def release(
    session: Session,
    message: Annotated[str, Parameter(help="The message's id, as `crab sessions show` has it.")],
    /,
    *,
    json: Json = False,
    home: GivenHome,
) -> int:
    """Try a message again that was set aside because it ended container after container."""
    async with ControlClient.connect(home) as client:
        found = await client.call("messages.release", session=session, message=message)
    if json:
        print_json(found)
    elif found["released"]:
        print("Released; it is answered like a new one.")
    else:
        print(f"It is not set aside, but {found['status']}.")
    return 0 if found["released"] else 1


async def stop(session: Session, /, *, json: Json = False, home: GivenHome) -> None:
    """End a session's container; its next message starts another."""
    async with ControlClient.connect(home) as client:
        found = await client.call("sessions.stop", session=session)
    if json:
        print_json(found)
        return
    print("Its container has ended." if found["stopped"] else "It had no container.")


def _figure(stage: str, value: float) -> str:
    return f"{value:.0f} kB" if stage.endswith("_kb") else f"{value:.0f} ms"


async def interrupt(session: Session, /, *, json: Json = False, home: GivenHome) -> int:
    """End the turn that the session's agent is in. Its container stays, and its next message is answered as usual."""
    async with ControlClient.connect(home) as client:
        found = await client.call("sessions.interrupt", session=session)
    if json:
        print_json(found)
    elif found["interrupted"]:
        print("Interrupted.")
    else:
        print("It has no container that could be interrupted.")
    return 0 if found["interrupted"] else 1
