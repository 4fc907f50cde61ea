"""What is said over the control socket: one JSON object a line, the same coding as the link.

    client  {"id": 1, "method": "logs", "params": {"session": "..."}}
    host    {"id": 1, "event": {...}}            any number, streaming methods only
    host    {"id": 1, "result": {...}}           or
            {"id": 1, "error": {"code", "message", "hint", "exit_code"}}

Many requests may run on one connection; answers come as they are ready. {"method": "cancel", "params": {"request": 1}}
ends a request early.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from hermitcrab import errors
from hermitcrab.errors import BadInputError, HermitcrabError
from hermitcrab_wire.codec import WireError

Json = dict[str, Any]

CANCEL = "cancel"
INTERNAL = "internal"

_WORD_START = re.compile(r"(?<!^)(?=[A-Z])")


def code_of(error_type: type[HermitcrabError]) -> str:
    """A stable name for a kind of error: NotFoundError is `not-found`."""
    return _WORD_START.sub("-", error_type.__name__.removesuffix("Error")).lower()


def error_to_json(error: HermitcrabError | WireError) -> Json:
    if isinstance(error, WireError):
        error = BadInputError(f"The request cannot be read: {error}.")
    return {
        "code": code_of(type(error)),
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


def _plain_errors() -> dict[str, type[HermitcrabError]]:
    """Every error that is made of a message and a hint alone, by code."""
    found: dict[str, type[HermitcrabError]] = {}
    for _, each in inspect.getmembers(errors, inspect.isclass):
        if issubclass(each, HermitcrabError) and list(inspect.signature(each).parameters) == ["message", "hint"]:
            found[code_of(each)] = each
    return found


_PLAIN_ERRORS = _plain_errors()


def error_from_json(value: Any) -> HermitcrabError:
    """The error that the host reported, of the same class where that class exists on this side."""
    said = value if isinstance(value, dict) else {}
    error_type = _PLAIN_ERRORS.get(str(said.get("code")), HermitcrabError)
    error = error_type(
        str(said.get("message") or "The host reported a failure without words."), hint=str(said.get("hint") or "")
    )
    exit_code = said.get("exit_code")
    if isinstance(exit_code, int) and 0 < exit_code < 256:
        error.exit_code = exit_code
    return error


class Params:
    """The parameters of one request, read by name and kind. `done` refuses what nobody read."""

    def __init__(self, method: str, values: Json) -> None:
        self._method = method
        self._values = dict(values)

    def text(self, name: str) -> str:
        value = self.optional_text(name)
        if value is None:
            raise BadInputError(f"{self._method} needs `{name}`.")
        return value

    def optional_text(self, name: str) -> str | None:
        value = self._values.pop(name, None)
        if value is not None and (not isinstance(value, str) or not value):
            raise BadInputError(f"{self._method}: `{name}` must be text that is not empty.")
        return value

    def integer(self, name: str, *, default: int, least: int, most: int) -> int:
        value = self._values.pop(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise BadInputError(f"{self._method}: `{name}` must be a whole number from {least} to {most}.")
        return value

    def flag(self, name: str) -> bool:
        value = self._values.pop(name, False)
        if not isinstance(value, bool):
            raise BadInputError(f"{self._method}: `{name}` must be true or false.")
        return value

    def texts(self, name: str, *, most: int) -> list[str]:
        value = self._values.pop(name, [])
        if (
            not isinstance(value, list)
            or len(value) > most
            or not all(isinstance(each, str) and each for each in value)
        ):
            raise BadInputError(f"{self._method}: `{name}` must be a list of at most {most} texts.")
        return list(value)

    def objects(self, name: str, *, most: int) -> list[Params]:
        """A list of objects, each to be read like the parameters themselves."""
        value = self._values.pop(name, [])
        if not isinstance(value, list) or len(value) > most or not all(isinstance(each, dict) for each in value):
            raise BadInputError(f"{self._method}: `{name}` must be a list of at most {most} objects.")
        return [Params(f"{self._method} {name}", each) for each in value]

    def json(self, name: str) -> Json:
        return self.optional_json(name) or {}

    def optional_json(self, name: str) -> Json | None:
        value = self._values.pop(name, None)
        if value is not None and not isinstance(value, dict):
            raise BadInputError(f"{self._method}: `{name}` must be an object.")
        return None if value is None else dict(value)

    def done(self) -> None:
        if self._values:
            names = ", ".join(f"`{name[:40]}`" for name in sorted(self._values))
            raise BadInputError(f"{self._method} knows no parameter {names}.")
