"""The interactive `crab chat`: a line to type in at the bottom, answers above it as they come."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style

from hermitcrab.channels.terminal.render import plain
from hermitcrab.cli.files import opened
from hermitcrab.cli.terminal import Terminal
from hermitcrab.errors import BadInputError, HermitcrabError
from hermitcrab.settings.home import Home

FILE_COMMAND = "/file"
_PATH = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|((?!["'])(?:\\.|[^\s\\])+))(?:\s+(.*?))?\s*""", re.DOTALL)

TYPING_SHOWN_S = 6.0
"""A mark that somebody is writing is renewed about every four seconds."""


class Conversation:
    def __init__(self, home: Home, group: str, folder: Path | None) -> None:
        self._home, self._group = home, group
        self._reached = True
        self._typing_until = 0.0
        self._unsent = 0
        self._leaving = False
        self._prompt: PromptSession[str] = PromptSession(
            "> ",
            bottom_toolbar=self._toolbar,
            refresh_interval=1.0,
            enable_suspend=True,
            style=Style.from_dict({"bottom-toolbar": "noreverse ansigray"}),
        )
        self._terminal = Terminal(
            home,
            group,
            folder=folder,
            show=self._show,
            typing=self._typing,
            reached=self._reachable,
            trouble=lambda text: self._say(text, "ansired"),
        )

    async def run(self) -> int:
        with patch_stdout():
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._terminal.run)
                self._say(f"Talking to {self._group}. {FILE_COMMAND} PATH sends a file. Ctrl-D leaves.", "ansigray")
                while True:
                    try:
                        text = await self._prompt.prompt_async()
                    except (EOFError, KeyboardInterrupt):
                        break
                    if text.strip():
                        tasks.start_soon(self._send, text)
                self._leaving = True
                tasks.cancel_scope.cancel()
        if self._unsent:
            raise HermitcrabError(
                f"{self._unsent} message(s) did not reach the host and were not kept.", hint="Send them again later."
            )
        return 0

    async def _send(self, text: str) -> None:
        self._unsent += 1
        try:
            words, paths = split_file(text)
            with ExitStack() as stack:
                files = await to_thread.run_sync(stack.enter_context, opened(paths, self._home))
                await self._terminal.send(words, files)
            self._unsent -= 1
            if paths:
                self._say(f"Sent {', '.join(each.name for each in files)}.", "ansigray")
        except HermitcrabError as error:
            self._unsent -= 1
            self._say(f"{error.message} {error.hint}".strip(), "ansired")

    def _show(self, event: dict[str, Any]) -> None:
        self._typing_until = 0.0
        notice = bool(event["content"].get("notice"))
        text = self._terminal.words(event)
        if notice:
            self._say(text, "ansiyellow")
        else:
            print_formatted_text(FormattedText([("bold", f"{self._group}: "), ("", text)]))

    def _typing(self) -> None:
        self._typing_until = time.monotonic() + TYPING_SHOWN_S
        self._prompt.app.invalidate()

    def _reachable(self, reached: bool) -> None:
        if reached != self._reached and not self._leaving:
            self._reached = reached
            self._say("The host is back." if reached else "The host is away; waiting for it.", "ansiyellow")

    def _toolbar(self) -> str:
        if not self._reached:
            waiting = f", {self._unsent} message(s) wait" if self._unsent else ""
            return f"The host is away{waiting}. Start it with: crab up"
        if time.monotonic() < self._typing_until:
            return f"{self._group} is writing…"
        return ""

    @staticmethod
    def _say(text: str, style: str) -> None:
        print_formatted_text(FormattedText([(style, plain(text))]))


def split_file(line: str) -> tuple[str, list[str]]:
    """The words and the path of a line that sends a file, `/file PATH WORDS`; any other line is all words."""
    command, _, rest = line.strip().partition(" ")
    if command != FILE_COMMAND:
        return line, []
    found = _PATH.fullmatch(rest)
    if found is None:
        raise BadInputError(
            "Which file?", hint=f"{FILE_COMMAND} PATH WORDS; a path with spaces goes in quotation marks."
        )
    quoted, bare, words = found[1] or found[2], found[3], found[4] or ""
    return words, [quoted if quoted is not None else re.sub(r"\\(.)", r"\1", bare)]


async def converse(home: Home, group: str, *, folder: Path | None = None) -> int:
    if not group:
        raise BadInputError("--group needs a name.", hint="crab groups list shows all of them.")
    return await Conversation(home, group, folder).run()
