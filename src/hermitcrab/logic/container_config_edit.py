"""One change to a container config's document, by a dotted key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hermitcrab.errors import BadInputError
from hermitcrab.logic.container_config import KEYS

_REMOVED = object()

_LISTS = re.compile(r"skills|packages\.\w+|foreign_command|mcp_servers\.[^.]+\.args")
_TEXTS = re.compile(
    r"provider|model|effort|image|assistant_name|cli_scope|hardening"
    r"|mcp_servers\.[^.]+\.(?:command|url|transport|instructions|env\..+)"
)


def value_of_words(key: str, words: Sequence[str]) -> Any:
    """What people mean who write `words` for the dotted `key` on a command line. Raises BadInputError.

    Text is taken as it is, a list is written word by word or as JSON, and all else is JSON.
    """
    _split(key)
    if not words:
        raise BadInputError(
            f"{key[:80]!r} needs a value", hint=f"crab groups config unset GROUP {key[:80]} removes it."
        )
    if _LISTS.fullmatch(key):
        if len(words) == 1 and (words[0].lstrip().startswith("[") or (key, words[0]) == ("skills", "all")):
            return words[0] if words[0] == "all" else _json(key, words[0])
        return list(words)
    if len(words) > 1:
        raise BadInputError(f"{key[:80]!r} takes one value", hint="Put it in quotes.")
    return words[0] if _TEXTS.fullmatch(key) else _json(key, words[0])


def _json(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInputError(
            f"The value of {key[:80]!r} is no JSON", hint='Write a number, true, or {"command": "..."}.'
        ) from error


def with_value(document: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The document with `value` at the dotted `key`: `model`, `limits.pids`, `mcp_servers.files`; unchecked."""
    return _changed(document, _split(key), value)


def without_value(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The document without what stands at the dotted `key`, which then has its default."""
    return _changed(document, _split(key), _REMOVED)


def _changed(document: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    changed = dict(document)
    if rest:
        inner = document.get(first)
        if isinstance(inner, dict) or value is not _REMOVED:
            changed[first] = _changed(inner if isinstance(inner, dict) else {}, rest, value)
    elif value is _REMOVED:
        changed.pop(first, None)
    else:
        changed[first] = value
    return changed


def _split(key: str) -> list[str]:
    parts = key.split(".")
    if parts[0] not in KEYS:
        raise BadInputError(f"A group's config has no key {parts[0][:80]!r}", hint=_instead_of(parts[0]))
    if not all(parts) or len(parts) > 4:
        raise BadInputError(f"{key[:80]!r} is no key", hint="Write one like model, limits.pids or mcp_servers.NAME.")
    return parts


def _instead_of(key: str) -> str:
    if key == "runner":
        return "A group has a foreign runner while foreign_command says how that is started; our own needs no key."
    close = difflib.get_close_matches(key, KEYS, n=1)
    return f"Did you mean {close[0]}?" if close else f"There are {', '.join(KEYS)}."
