"""One change to a container config's document, by a dotted key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from hermitcrab.errors import BadInputError
from hermitcrab.logic.container_config import KEYS

_REMOVED = object()


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
        close = difflib.get_close_matches(parts[0], KEYS, n=1)
        raise BadInputError(
            f"A group's config has no key {parts[0][:80]!r}",
            hint=f"Did you mean {close[0]}?" if close else f"There are {', '.join(KEYS)}.",
        )
    if not all(parts) or len(parts) > 4:
        raise BadInputError(f"{key[:80]!r} is no key", hint="Write one like model, limits.pids or mcp_servers.NAME.")
    return parts
