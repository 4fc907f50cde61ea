"""`crab groups config edit`: a group's whole config in the user's editor. What was written is never lost."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from anyio import to_thread
from cyclopts import Parameter

from hermitcrab.cli.group_config_change import agreed, apply, ask
from hermitcrab.cli.output import GivenHome, print_line
from hermitcrab.control.client import ControlClient
from hermitcrab.control.protocol import Json
from hermitcrab.errors import BadInputError, ConflictError, HermitcrabError
from hermitcrab.logic.config_text import from_text, to_text

EDITORS = ("VISUAL", "EDITOR")
USUAL_EDITOR = "vi"
NOT_AGREED = 1
"""The exit code when a person was asked and said no."""

Yes = Annotated[bool, Parameter(negative="", help="Agree to what the change gives to agents, without being asked.")]


async def edit(group: str, /, *, yes: Yes = False, home: GivenHome) -> int:
    """Edit a group's whole config as TOML in $VISUAL or $EDITOR. What cannot be used is kept, to be edited again."""
    async with ControlClient.connect(home) as client:
        shown = await client.call("groups.config.show", folder=group)
        draft = _Draft.of(group, to_text(group, shown["config"], shown["installation"]))
        try:
            proposal = await _edited(client, group, draft)
            if proposal is None:
                print(f"Nothing was changed in group {group}.")
                draft.discard()
                return 0
            if proposal["before"] != shown["config"]:
                raise ConflictError(f"Somebody else has changed the config of group {group} meanwhile")
            is_agreed = await agreed(proposal, group, yes=yes, json=False)
            if is_agreed:
                await apply(client, group, proposal, json=False, config=draft.document())
        except HermitcrabError as error:
            if draft.is_changed():
                error.hint = f"{error.hint} What you wrote is in {draft.path}".strip()
            else:
                draft.discard()
            raise
    if is_agreed:
        draft.discard()
        return 0
    print(f"Nothing was changed. What you wrote is in {draft.path}")
    return NOT_AGREED


async def _edited(client: ControlClient, group: str, draft: _Draft) -> Json | None:
    """What the draft would change once it can be used; None when it changes nothing."""
    while True:
        await draft.edit()
        try:
            proposal = await client.call("groups.config.propose", folder=group, config=draft.document())
        except BadInputError as error:
            if not sys.stdin.isatty():
                raise
            print_line(error.message, "bad", stderr=True)
            if not await ask("Edit it again?", usual=True):
                raise
            continue
        return proposal if proposal["differences"] else None


class _Draft:
    """The text while it is edited: a file for its owner alone, which is there until it was taken or changes nothing."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self._text = path, text

    @classmethod
    def of(cls, group: str, text: str) -> _Draft:
        descriptor, name = tempfile.mkstemp(prefix=f"crab-{group}-", suffix=".toml")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        return cls(Path(name), text)

    def document(self) -> Json:
        try:
            return from_text(self.path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"{self.path} cannot be read: {error}.") from error

    async def edit(self) -> None:
        """Until the editor has ended. Raises BadInputError when it failed."""
        command = next((os.environ[each] for each in EDITORS if os.environ.get(each)), USUAL_EDITOR)
        try:
            words = shlex.split(command)
            done = await to_thread.run_sync(lambda: subprocess.run([*words, str(self.path)], check=False))
        except (OSError, ValueError) as error:
            raise BadInputError(
                f"The editor {command!r} cannot be run: {error}.", hint="Set EDITOR to the one you use."
            ) from error
        if done.returncode != 0:
            raise BadInputError(f"The editor {command!r} ended with {done.returncode}; nothing was changed.")

    def is_changed(self) -> bool:
        """Whether anything was written that would be missed."""
        try:
            return self.path.read_bytes() != self._text.encode()
        except OSError:
            return False  # The editor took the file away: nothing is there to be kept.

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
