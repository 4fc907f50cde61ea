"""JSON objects that came over the link, as checked frames. What breaks the contract comes no further than here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hermitcrab_wire.codec import WireError
from hermitcrab_wire.frames import Frame, Json
from hermitcrab_wire.limits import (
    MAX_FILES_IN_A_MESSAGE,
    MAX_ID_CHARACTERS,
    MAX_IDS_IN_A_FRAME,
    MAX_OUTS_IN_A_COMPLETION,
    MAX_ROWS_IN_A_FRAME,
)


def parse(message: Json, known: dict[str, type[Frame]]) -> Frame:
    """The frame that a JSON object stands for. Unknown fields are passed over, so that a newer peer can add one.

    Raises WireError: "unknown-type" (a newer peer may mean well) or "malformed" (it breaks the contract).
    """
    name = message.get("type")
    if not isinstance(name, str):
        raise WireError("malformed", "a frame without a type")
    cls = known.get(name)
    if cls is None:
        raise WireError("unknown-type", f"no frame of type {name[:40]!r} in this protocol")
    values: Json = {}
    for field, kind in cls.FIELDS.items():
        if field not in message:
            continue
        value = message[field]
        if not _CHECKS[kind](value):
            raise WireError("malformed", f"{name}.{field} is not a {kind}")
        values[field] = value
    _check_bounds(name, values)
    try:
        return cls(**values)
    except TypeError as error:
        raise WireError("malformed", f"a {name} frame lacks a field") from error


def _check_bounds(name: str, values: Json) -> None:
    for key in ("id", "turn", "in_reply_to", "to", "key", "kind"):
        if isinstance(text := values.get(key), str) and not 0 < len(text) <= MAX_ID_CHARACTERS:
            raise WireError("malformed", f"{name}.{key} must have 1 to {MAX_ID_CHARACTERS} characters")
    for key, most in (
        ("ids", MAX_IDS_IN_A_FRAME),
        ("holds", MAX_IDS_IN_A_FRAME * 4),
        ("writable", MAX_IDS_IN_A_FRAME),
        ("unwritable", MAX_IDS_IN_A_FRAME),
        ("rows", MAX_ROWS_IN_A_FRAME),
        ("outs", MAX_OUTS_IN_A_COMPLETION),
        ("files", MAX_FILES_IN_A_MESSAGE),
    ):
        if len(values.get(key) or ()) > most:
            raise WireError("malformed", f"{name}.{key} has more than {most} items")
    if any(not 0 < len(each) <= MAX_ID_CHARACTERS for each in (*values.get("ids", ()), *values.get("holds", ()))):
        raise WireError("malformed", f"{name} names an id that is empty or too long")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(item, kind) for item in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "int": _is_int,
    "int | None": lambda value: value is None or _is_int(value),
    "bool": lambda value: isinstance(value, bool),
    "Json": lambda value: isinstance(value, dict),
    "Json | None": lambda value: value is None or isinstance(value, dict),
    "list[str]": _list_of(str),
    "list[str] | None": lambda value: value is None or _list_of(str)(value),
    "list[Json]": _list_of(dict),
}
