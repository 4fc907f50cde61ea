"""Ids that a second attempt at the same work finds again (law 8: repeating a frame changes nothing)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

try:  # hashlib loads OpenSSL, which costs the runner 4 MB; the interpreter has its own SHA-256.
    from _sha2 import sha256  # type: ignore[import-not-found,unused-ignore]  # Python 3.12 and later
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found,no-redef,unused-ignore]  # Python 3.11
    except ImportError:
        from hashlib import sha256  # type: ignore[assignment,no-redef,unused-ignore]

_sha256: Callable[[bytes], Any] = sha256
hasher = _sha256
"""SHA-256, to be updated and read like hashlib's."""
_DIGITS = 24


def turn_id(first_row: str) -> str:
    """The id of the turn that begins with this row."""
    return "turn-" + _hex(first_row)


def out_id(first_row: str, to: str | None, content: dict[str, Any], occurrence: int) -> str:
    """The id of something said in that turn; `occurrence` counts repeats of the very same words to the same place."""
    canonical = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return "out-" + _hex(first_row, "" if to is None else f"to:{to}", canonical, str(occurrence))


def sha256_of(parts: Iterable[bytes]) -> str:
    """In hex digits, of all parts as one."""
    digest = _sha256(b"")
    for part in parts:
        digest.update(part)
    return str(digest.hexdigest())


def _hex(*parts: str) -> str:
    # Lengths in front keep ("ab", "c") apart from ("a", "bc").
    joined = b"".join(b"%d:%b" % (len(data), data) for data in (part.encode(errors="surrogatepass") for part in parts))
    return str(_sha256(joined).hexdigest())[:_DIGITS]
