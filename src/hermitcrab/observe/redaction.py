"""Keeps secrets out of logs: whatever looks like a credential, and every value that somebody registered.

Pure but for the set of registered values. `logs.py` runs it over every event, last before it is written.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from urllib.parse import quote

from hermitcrab.logic.credentials import SECRET_NAME, SHAPES

REDACTED = "[redacted]"

MAX_TEXT = 16_384
"""Characters of one value in a log. More would let an agent fill the disk through the host's log."""

_MAX_DEPTH = 8
_SHORTEST_SECRET = 6
"""A registered value shorter than this would blot out ordinary words."""

_SHAPES = re.compile(
    SHAPES + r"""| (?<=://)[^\s/@"']{1,512}(?=@)  # user:password@host""", re.VERBOSE | re.DOTALL | re.ASCII
)


class Redactor:
    def __init__(self) -> None:
        self._registered: dict[str, None] = {}

    def register(self, secret: str) -> None:
        """Never let this value into a log from now on, neither plain nor as base64 or in a URL."""
        if len(secret) < _SHORTEST_SECRET:
            return
        data = secret.encode("utf-8", "surrogatepass")
        forms = {
            secret,
            quote(data, safe=""),
            base64.b64encode(data).decode(),
            base64.urlsafe_b64encode(data).decode().rstrip("="),
        }
        # The longest first, so that one value inside another leaves nothing of the longer one behind.
        self._registered = dict.fromkeys(sorted({*self._registered, *forms}, key=len, reverse=True))

    def text(self, text: str) -> str:
        """`text` without anything secret, and not longer than a log can bear."""
        for secret in self._registered:
            if secret in text:
                text = text.replace(secret, REDACTED)
        text = _SHAPES.sub(REDACTED, text)
        if len(text) > MAX_TEXT:
            text = f"{text[:MAX_TEXT]}… ({len(text) - MAX_TEXT} characters more)"
        return text

    def value(self, value: object, depth: int = 0) -> object:
        """Any value as something that a log can hold: numbers as they are, all else redacted, copies throughout."""
        match value:
            case None | bool() | int() | float():
                return value
            case str():
                return self.text(value)
            case bytes() | bytearray():
                return self.text(bytes(value).decode("utf-8", "backslashreplace"))
            case _ if depth >= _MAX_DEPTH:
                return "…"
            case Mapping():
                return {
                    self.text(str(key)): REDACTED
                    if isinstance(each, str | bytes) and each and SECRET_NAME.search(str(key))
                    else self.value(each, depth + 1)
                    for key, each in value.items()
                }
            case list() | tuple() | set() | frozenset():
                return [self.value(each, depth + 1) for each in value]
            case _:
                return self.text(_described(value))


def _described(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  # foreign code: a broken __str__ must not cost the event
        return f"<{type(value).__name__}>"
