"""`crab chat`: talk to an agent from this terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Annotated, Any

import anyio
from cyclopts import Parameter

from hermitcrab.channels.terminal.manifest import DEFAULT_GROUP
from hermitcrab.channels.terminal.render import checked_text, decoded, text_of
from hermitcrab.cli.files import opened
from hermitcrab.cli.output import GivenHome, Json, print_json
from hermitcrab.cli.terminal import Answer, Terminal
from hermitcrab.errors import BadInputError, NoAnswerError
from hermitcrab.settings.home import Home

LONGEST_BYTES = 1_000_000
"""What limits.message_bytes can be at most: more is refused before anybody is asked."""


def chat(
    text: Annotated[str | None, Parameter(help="The message; - reads it from standard input.")] = None,
    /,
    *,
    group: Annotated[str, Parameter(help="The agent group to talk to.")] = DEFAULT_GROUP,
    file: Annotated[
        list[str] | None,
        Parameter(help="Send this file, with TEXT or without. May be given several times.", negative=""),
    ] = None,
    files_to: Annotated[
        str | None, Parameter(help="Save the agent's files in this folder, not in the home's received/GROUP.")
    ] = None,
    timeout: Annotated[float, Parameter(help="With TEXT: seconds to wait for the answer.")] = 120.0,
    json: Json = False,
    home: GivenHome,
) -> Awaitable[int]:
    """Talk to an agent. With TEXT: print the answer and exit 0; 2 without a host, 3 without an answer in time.

    Without TEXT it is a conversation, which Ctrl-D ends. Answers that come while nobody is here are kept. An agent's
    question is answered with the number of an option, or its words.
    """
    interactive = text is None and not file and sys.stdin.isatty()
    folder = None if files_to is None else Path(files_to).expanduser().absolute()
    if interactive:
        if json:
            raise BadInputError("--json needs TEXT.", hint="crab chat --json TEXT")
        from hermitcrab.cli.conversation import converse  # noqa: PLC0415  # a line editor only where one is needed

        return converse(home, group, folder=folder)
    if not 0 < timeout < 1e6:
        raise BadInputError("--timeout is a number of seconds above 0.", hint="crab chat --timeout 120 TEXT")
    given = _piped_text() if text == "-" or (text is None and not file) else text or ""
    # What can be refused without a host is refused before there is one.
    if given or not file:
        checked_text(given, most_bytes=LONGEST_BYTES)
    return say(home, group, given, files=file or (), folder=folder, timeout_s=timeout, json=json)


def _piped_text() -> str:
    data = sys.stdin.buffer.read(LONGEST_BYTES + 1)
    if len(data) > LONGEST_BYTES:
        raise BadInputError(
            f"The message has more than {LONGEST_BYTES:,} bytes.", hint="Put it in a file of the agent's folder."
        )
    return decoded(data)


async def say(
    home: Home,
    group: str,
    text: str,
    *,
    files: Sequence[str] = (),
    folder: Path | None = None,
    timeout_s: float,
    json: bool,
) -> int:
    """Send one message and print what is said to it on stdout, and what else arrives on stderr."""
    began = time.monotonic()
    arrived: list[dict[str, Any]] = []

    def show(event: dict[str, Any]) -> None:
        if not json and event["content"].get("notice"):
            aside(text_of(event["content"]))  # The host says why it takes long; later would be too late.
        else:
            arrived.append(event)

    def said(message: dict[str, Any]) -> None:
        if not json:
            print(terminal.words(message), flush=True)

    def aside(words: str) -> None:
        print(f"[{group}] {words}", file=sys.stderr, flush=True)

    answer: Answer | None = None
    terminal = Terminal(home, group, folder=folder, show=show, trouble=aside)
    with opened(files, home) as local:
        async with anyio.create_task_group() as tasks:
            await tasks.start(terminal.run)
            with anyio.move_on_after(timeout_s):
                answer = await terminal.answer_to(await terminal.send(text, local), said)
            tasks.cancel_scope.cancel()
    # Being here, we also got what waited for anybody here: it must get lost neither in the answer nor altogether.
    messages = answer.messages if answer is not None else ()
    answered = {each["key"] for each in messages}
    others = [each for each in arrived if each["key"] not in answered]
    if not json:
        for each in others:
            aside(terminal.words(each))
    if answer is None:
        raise NoAnswerError(
            f"No answer within {timeout_s:g} s. The message is kept and will be answered.",
            hint="crab chat shows the answer when it comes; crab status shows what the agent is doing.",
        )
    if json:
        print_json(
            {
                "group": group,
                "reply": "\n".join(text_of(each["content"]) for each in messages),
                "messages": [_listed(terminal, each) for each in messages],
                "others": [_listed(terminal, each) for each in others],
                "failed": answer.failed,
                "elapsed_ms": round((time.monotonic() - began) * 1000, 1),
            }
        )
    elif not messages:
        print("The agent ended its turn without a word.", file=sys.stderr)
    return 1 if answer.failed else 0


def _listed(terminal: Terminal, message: dict[str, Any]) -> dict[str, Any]:
    saved = [
        {"name": each.name, "path": None if each.path is None else str(each.path)}
        for each in terminal.saved.get(message["key"], ())
    ]
    return {"id": message["key"], "content": message["content"], **({"files": saved} if saved else {})}
