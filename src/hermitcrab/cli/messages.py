"""`crab messages` and `crab delivery`: what became of each message, and what is stuck."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from hermitcrab.cli.output import GivenHome, Json, print_fields, print_json, print_table
from hermitcrab.control.client import ControlClient

Message = Annotated[str, Parameter(help="The message's id, or SESSION/ID.")]


async def list_messages(
    *,
    session: Annotated[str | None, Parameter(help="Only of this session: its id, or a group's name.")] = None,
    state: Annotated[str | None, Parameter(help="Only in this state, for one: failed, queued, received.")] = None,
    limit: Annotated[int, Parameter(help="At most this many.")] = 50,
    before: Annotated[str | None, Parameter(help="Only of sessions older than this one: the next page.")] = None,
    json: Json = False,
    home: GivenHome,
) -> None:
    """Messages in both directions, newest first, each with its state."""
    async with ControlClient.connect(home) as client:
        found = await client.call("messages.list", session=session, state=state, limit=limit, before=before)
    if json:
        print_json(found)
        return
    print_table(
        ("AT", "MESSAGE", "WAY", "STATE", "ATTEMPTS", "WHERE", "TEXT", "WHY"),
        [
            (
                each["at"],
                each["id"],
                "<-" if each["direction"] == "in" else "->",
                each["state"],
                each["attempts"],
                _place(each),
                each["text"],
                each["reason"],
            )
            for each in found["messages"]
        ],
        empty="There is no such message.",
    )
    for each in found["unreadable"]:
        print(f"Session {each['session']} cannot be read: {each['reason']}")
    if found["next_before"]:
        print(f"More: crab messages list --before {found['next_before']}")


async def show(message: Message, /, *, json: Json = False, home: GivenHome) -> None:
    """One message: everything that happened to it, and what it answers or was answered by."""
    async with ControlClient.connect(home) as client:
        found = await client.call("messages.show", message=message)
    if json:
        print_json(found)
        return
    about = found["message"]
    print_fields(
        [
            ("message", about["id"]),
            ("direction", "in" if about["direction"] == "in" else "out"),
            ("kind", about["kind"]),
            ("state", about["state"]),
            ("why", about["reason"]),
            ("where", _place(about)),
            ("attempts", about["attempts"]),
            ("next attempt", about["next_attempt_at"]),
            ("platform's id", about["platform_message_id"]),
            ("text", about["text"]),
        ]
    )
    print()
    print_table(
        ("AT", "WHAT", "DETAIL"), [(each["at"], each["what"], each["detail"]) for each in found["events"]], empty=""
    )
    linked = found.get("answers") or found.get("answered")
    if linked:
        print()
        title = "ANSWERED BY" if about["direction"] == "in" else "ANSWERS"
        print_table(
            (title, "AT", "STATE", "TEXT"),
            [(each["id"], each["at"], each["state"], each["text"]) for each in linked],
            empty="",
        )


async def retry(message: Message, /, *, json: Json = False, home: GivenHome) -> None:
    """Another attempt at a message that ended badly, or at once at one that waits for its next attempt."""
    async with ControlClient.connect(home) as client:
        found = await client.call("messages.retry", message=message)
    if json:
        print_json(found)
        return
    print(f"It is tried again: crab messages show {found['as']}")


async def doctor(*, json: Json = False, home: GivenHome) -> int:
    """What waits to be answered or delivered, why, and what happens next. Exits with 1 when something is stuck."""
    async with ControlClient.connect(home) as client:
        found = await client.call("delivery.doctor")
    if json:
        print_json(found)
    else:
        print_table(
            ("STUCK", "MESSAGE", "STATE", "WAITED", "ATTEMPTS", "WHERE", "WHY", "NEXT", "AT"),
            [
                (
                    each["stuck"],
                    each["id"] or each["session"],
                    each["state"],
                    f"{each['waited_s']:.0f} s" if "waited_s" in each else None,
                    each.get("attempts"),
                    _place(each),
                    each["reason"],
                    each["next"],
                    each["next_at"],
                )
                for each in found["waiting"]
            ],
            empty="Nothing waits to be answered or delivered.",
        )
        for channel, left_s in found["paused_channels"].items():
            print(f"Channel {channel} is paused for another {left_s:.0f} s, as its platform asked.")
        if found["stuck"]:
            can_be_tried = any(each["stuck"] and each["id"] for each in found["waiting"])
            print(f"{found['stuck']} stuck.{' crab messages retry ID tries one now.' if can_be_tried else ''}")
    return 1 if found["stuck"] else 0


def _place(message: dict[str, Any]) -> str | None:
    address = message.get("address")
    if not address:
        return None
    thread = f" ({address['thread_id']})" if address["thread_id"] else ""
    return f"{address['channel_type']}:{address['platform_id']}{thread}"
