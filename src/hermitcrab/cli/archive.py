"""`crab sessions export`, `import`, `move`, `delete` and `check`: a conversation as a file, and as a folder."""

from __future__ import annotations

import secrets
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from cyclopts import Parameter

from hermitcrab.cli.output import GivenHome, Json, Session, print_json, print_line
from hermitcrab.control.client import ControlClient
from hermitcrab.errors import BadInputError, ConflictError, HermitcrabError, NotFoundError
from hermitcrab.settings.home import Home, resolve

Archive = Annotated[Path, Parameter(help="The archive's file.")]


async def export(
    session: Session,
    file: Archive,
    /,
    *,
    without_files: Annotated[bool, Parameter(negative="", help="Only its messages.")] = False,
    replace: Annotated[bool, Parameter(negative="", help="Write over a file that is there.")] = False,
    json: Json = False,
    home: GivenHome,
) -> None:
    """Write a session to a file: its messages, its files, its agent's memory of it. It lives on here."""
    async with ControlClient.connect(home) as client:
        found = await client.call(
            "sessions.export",
            session=session,
            path=str(file.absolute()),
            without_files=without_files,
            replace=replace,
        )
    if json:
        print_json(found)
        return
    print_line(f"{found['about']['session']} is in {found['path']}: {_counted(found)}.", "good")


async def import_(
    file: Archive,
    /,
    *,
    group: Annotated[str | None, Parameter(help="The agent group to give it to (default: as it was called).")] = None,
    go_on: Annotated[
        bool, Parameter(name="--continue", negative="", help="Answer and deliver here what waited.")
    ] = False,
    json: Json = False,
    home: GivenHome,
) -> None:
    """Take a session in from a file. Without --continue it is a copy: what waited in it is closed."""
    async with ControlClient.connect(home) as client:
        found = await client.call("sessions.import", path=str(file.absolute()), group=group, go_on=go_on)
    if json:
        print_json(found)
        return
    print_line(f"{found['session']} is here, in group {found['group']}: {_counted(found)}.", "good")
    if not found["is_wired"]:
        print_line("Its chat is not wired to that group: no new message reaches it yet.", "warning")


async def move(
    session: Session,
    /,
    *,
    to: Annotated[str | None, Parameter(help="The home that it goes to; a host must run on it.")] = None,
    group: Annotated[str | None, Parameter(help="The agent group there (default: as it is called here).")] = None,
    cancel: Annotated[bool, Parameter(negative="", help="Call off a move that did not come to its end.")] = False,
    json: Json = False,
    home: GivenHome,
) -> None:
    """Move a session to another home. Interrupted at any point, the same command brings it to its end."""
    if cancel:
        async with ControlClient.connect(home) as client:
            found = await client.call("sessions.release", session=session)
        print_json(found) if json else print("It lives on here." if found["released"] else "It was not being moved.")
        return
    if to is None:
        raise BadInputError("crab sessions move needs a home to move to.", hint="crab sessions move SESSION --to HOME")
    there = Home(resolve(to))
    if there.path == home.path:
        raise BadInputError("The session is in that home already.")
    async with ControlClient.connect(there) as target, ControlClient.connect(home) as source:
        token, why = secrets.token_hex(16), f"it is being moved to {there.path}"
        held = await source.call("sessions.hold", session=session, why=why, token=token)
        key = held["session"]
        try:
            found = await _carry(source, target, key, home.trash / f"moving-{key}.zip", group, held["token"])
        except (BadInputError, ConflictError, NotFoundError):
            # Refused before anything was taken in. What an earlier attempt has begun may have come to its end there.
            if held["token"] == token:
                await source.call("sessions.release", session=key)
            raise
        except HermitcrabError as error:
            goes_on = f"The same command brings the move to its end; crab sessions move {key} --cancel calls it off."
            error.hint = f"{error.hint} {goes_on}".strip()
            raise
        await source.call("sessions.delete", session=key)
    if json:
        print_json(found)
        return
    print_line(f"{key} lives in {there.path} now, in group {found['group']}.", "good")
    if not found["is_wired"]:
        print_line("Its chat is not wired to that group: no new message reaches it yet.", "warning")


async def _carry(
    source: ControlClient, target: ControlClient, session: str, file: Path, group: str | None, token: str
) -> dict[str, Any]:
    """What the target says of the session once it has it."""
    try:
        await source.call("sessions.export", session=session, path=str(file), replace=True)
        return await target.call("sessions.import", path=str(file), group=group, go_on=True, token=token)
    finally:
        await to_thread.run_sync(partial(file.unlink, missing_ok=True))


async def delete(
    session: Session,
    /,
    *,
    yes: Annotated[bool, Parameter(negative="", help="Really.")] = False,
    json: Json = False,
    home: GivenHome,
) -> None:
    """Remove a session with its messages and files, for good."""
    if not yes:
        raise BadInputError(
            f"This removes session {session} with all its messages and files, for good.",
            hint="Add --yes if you mean it; crab sessions export keeps a copy.",
        )
    async with ControlClient.connect(home) as client:
        found = await client.call("sessions.delete", session=session)
    print_json(found) if json else print_line(f"{found['session']} is gone.", "good")


async def check(
    session: Annotated[str | None, Parameter(help="One session (default: all of them).")] = None,
    /,
    *,
    json: Json = False,
    home: GivenHome,
) -> int:
    """Look whether sessions' databases are sound. Exit code 1: one is not."""
    checks: list[dict[str, Any]] = []
    async with (
        ControlClient.connect(home) as client,
        aclosing(client.stream("sessions.check", session=session)) as events,
    ):
        async for each in events:
            checks.append(each)
            if each["problems"] and not json:
                print_line(f"{each['session']}: {'; '.join(each['problems'])}", "bad")
    damaged = sum(bool(each["problems"]) for each in checks)
    if json:
        print_json(checks)
    elif not damaged:
        print_line(f"{len(checks)} of {len(checks)} sessions are sound.", "good")
    else:
        print_line(f"{damaged} of {len(checks)} sessions are damaged; all others go on.", "bad")
    return 1 if damaged else 0


def _counted(found: dict[str, Any]) -> str:
    messages = found["rows"].get("inbound", 0) + found["rows"].get("outbound", 0)
    return f"{messages} rows of messages, {sum(found['entries'].values())} files and folders"
