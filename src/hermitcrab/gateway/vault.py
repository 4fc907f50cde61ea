"""Where keys come from, and how they are kept from being seen.

A key is read at the moment of use, so that changing it needs no restart, and lives in a `Secret` until it becomes a
header. `relay.py` reads; `crab doctor` asks whether it could.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import Literal, Never

from hermitcrab.errors import SettingsError
from hermitcrab.observe.logs import redactor

MIN_KEY_CHARACTERS = 8
"""A shorter word cannot be told from ordinary text, so that answers could not be scrubbed of it."""

MAX_KEY_CHARACTERS = 4096

KEY = re.compile(rf"[\x21-\x7e]{{{MIN_KEY_CHARACTERS},{MAX_KEY_CHARACTERS}}}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Secret:
    """A key. Only `reveal` shows it; printing, logging, comparing and pickling do not."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> Never:
        raise TypeError("a secret does not leave its process")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyProblem:
    """Why a key cannot be used, in words for the operator; never for an agent."""

    text: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """The place of a key: `env:NAME` or `file:/absolute/path`."""

    kind: Literal["env", "file"]
    name: str

    @classmethod
    def parse(cls, text: str) -> KeySource:
        """Raises SettingsError when `text` names no place. It is not repeated: it may be the key itself."""
        kind, _, name = text.partition(":")
        if kind == "env" and VARIABLE.fullmatch(name):
            return cls(kind="env", name=name)
        if kind == "file" and name.startswith("/") and "\0" not in name:
            return cls(kind="file", name=name)
        raise SettingsError(
            "The place of a key cannot be read.",
            hint="Write env:NAME of an environment variable, or file:/absolute/path. Never the key itself.",
        )

    def read(self) -> Secret | KeyProblem:
        """The key as it is now. Blocks on the disk when it is a file."""
        found = self._from_environment() if self.kind == "env" else self._from_file()
        if isinstance(found, KeyProblem):
            return found
        if not KEY.fullmatch(found):
            return KeyProblem(
                text=f"{self} does not hold a key",
                fix=f"It must be one word of at least {MIN_KEY_CHARACTERS} visible ASCII characters.",
            )
        redactor.register(found)
        return Secret(found)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    def _from_environment(self) -> str | KeyProblem:
        value = os.environ.get(self.name, "").strip()
        return value or KeyProblem(text=f"{self} is not set", fix=f"Set {self.name} where the host is started.")

    def _from_file(self) -> str | KeyProblem:
        try:
            # Not blocking: a pipe in the file's place must not hold a request for ever.
            descriptor = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            return KeyProblem(
                text=f"{self} cannot be read: {error.strerror}", fix="Write the key to that file, with mode 0600."
            )
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                return KeyProblem(text=f"{self} is not a file", fix="Write the key to an ordinary file.")
            if about.st_uid not in {0, os.geteuid()}:
                return KeyProblem(
                    text=f"{self} belongs to somebody else", fix="Let it belong to the user that runs the host."
                )
            if stat.S_IMODE(about.st_mode) & 0o077:
                return KeyProblem(text=f"{self} is open to others", fix=f"chmod 600 {self.name}")
            return os.read(descriptor, MAX_KEY_CHARACTERS + 2).decode("latin-1").strip()
        finally:
            os.close(descriptor)
