"""Bytes to JSON objects and back: newline-delimited, bounded, strict.

What comes in was written by an adversary: each refusal is a `WireError`, and nothing else is raised.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from hermitcrab_wire.limits import MAX_FRAME_BYTES, MAX_INTEGER, MAX_NESTING


class WireError(ValueError):
    """A peer sent what the protocol does not allow. `code` is stable; the text is for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def encode(message: dict[str, Any], *, limit: int = MAX_FRAME_BYTES) -> bytes:
    """One line of compact JSON with its newline. Raises WireError("too-large") beyond `limit` bytes."""
    try:
        line = json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise WireError("not-unicode", "the text holds half of a surrogate pair") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError("not-json", f"not representable as JSON: {error}") from error
    if len(line) + 1 > limit:
        raise WireError("too-large", f"a frame of {len(line) + 1} bytes; the limit is {limit}")
    return line + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The JSON object on one line (without its newline). Raises WireError for anything else."""
    try:
        # Text, not bytes: of bytes `json` guesses the encoding, and lets half of a surrogate pair through.
        value = json.loads(line.decode(), parse_constant=_refuse_constant, parse_int=_bounded_integer)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError("not-json", "a line that is not JSON") from error
    if not isinstance(value, dict):
        raise WireError("not-an-object", "a line that is not a JSON object")
    if b"\\u" in line:
        # Only an escape can smuggle in half of a surrogate pair, which no file or database takes.
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise WireError("not-unicode", "the text holds half of a surrogate pair") from error
    return value


def is_too_deep(content: object) -> bool:
    """Whether lists and objects lie in each other deeper than the content of a message may have them."""
    level: list[Any] = [content]
    for _ in range(MAX_NESTING + 1):
        level = [each for each in level if isinstance(each, (dict, list, tuple))]
        if not level:
            return False
        level = [each for outer in level for each in (outer.values() if isinstance(outer, dict) else outer)]
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise WireError("not-json", f"{name} is not JSON")


def _bounded_integer(digits: str) -> int:
    if len(digits) > len(str(MAX_INTEGER)) + 1 or abs(value := int(digits)) > MAX_INTEGER:
        raise WireError("integer-too-large", f"an integer beyond {MAX_INTEGER}")
    return value


class LineBuffer:
    """Cuts a byte stream into lines, never holding more than one line beyond what was taken out."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without newlines and without empty ones.

        Raises WireError("too-large") for a line over the limit; the stream is then lost.
        """
        start = len(self._rest)
        self._rest += data
        lines: list[bytes] = []
        begin = 0
        while (end := self._rest.find(b"\n", max(begin, start))) >= 0:
            if end + 1 - begin > self._limit:
                raise WireError("too-large", f"a frame over the limit of {self._limit} bytes")
            if end > begin:
                lines.append(bytes(self._rest[begin:end]))
            begin = end + 1
        del self._rest[:begin]
        if len(self._rest) >= self._limit:
            raise WireError("too-large", f"a frame over the limit of {self._limit} bytes")
        return lines
