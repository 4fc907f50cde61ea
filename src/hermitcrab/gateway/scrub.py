"""Takes a secret out of what an upstream sends back, while it streams.

An upstream may repeat the key that it was given: an echo endpoint, an error page, a debug header. Every form that is
looked for is overwritten with asterisks of the same length, so that lengths which were announced stay true. Only bytes
that may be the beginning of such a form are held back; an event that ends in a line break passes at once.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import quote

from hermitcrab.gateway.vault import Secret

MASK = b"*"


class Scrubber:
    """Knows every form of one secret. One is made per key; `stream` gives the state for one answer."""

    __slots__ = ("_forms", "_pattern")

    def __init__(self, secret: Secret) -> None:
        # Longest first: where one form begins like another, the longer one must win.
        self._forms = sorted(_forms(secret.reveal().encode("ascii")), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms)))

    def scrub(self, text: bytes) -> bytes:
        """`text`, which is complete, without the secret."""
        return self._pattern.sub(lambda found: MASK * len(found[0]), text)

    def taints(self, name: bytes) -> bool:
        """Whether a header's name, whose case means nothing, spells the secret."""
        return any(form.lower() in name.lower() for form in self._forms)

    def stream(self) -> ScrubStream:
        return ScrubStream(self)

    def split(self, text: bytes) -> tuple[bytes, bytes]:
        """What of `text` can be sent, scrubbed, and the rest, which may be the beginning of a form."""
        end = 0
        parts: list[bytes] = []
        for found in self._pattern.finditer(text):
            parts += text[end : found.start()], MASK * len(found[0])
            end = found.end()
        cut = len(text) - max(_overlap(text, end, form) for form in self._forms)
        parts.append(text[end:cut])
        return b"".join(parts), text[cut:]

    def __repr__(self) -> str:
        return "Scrubber(...)"


class ScrubStream:
    """The state of one answer: the few bytes that wait for what comes next."""

    __slots__ = ("_held", "_scrubber")

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._held = b""

    def feed(self, part: bytes) -> bytes:
        """What can be sent now; may be empty."""
        ready, self._held = self._scrubber.split(self._held + part)
        return ready

    def finish(self) -> bytes:
        """What was held back, now that nothing follows."""
        rest, self._held = self._held, b""
        return self._scrubber.scrub(rest)

    def __repr__(self) -> str:
        return "ScrubStream(...)"


def _overlap(text: bytes, begin: int, form: bytes) -> int:
    """How many of the last bytes of `text` (from `begin` on) are a beginning of `form` that more could complete."""
    start = text.find(form[:1], max(begin, len(text) - len(form) + 1))
    while start != -1:
        if form.startswith(text[start:]):
            return len(text) - start
        start = text.find(form[:1], start + 1)
    return 0


def _forms(secret: bytes) -> set[bytes]:
    """The secret as it is, in base64 wherever it may lie in a larger value, percent-encoded, and in hexadecimal."""
    forms = {secret, quote(secret, safe="").encode(), secret.hex().encode(), secret.hex().upper().encode()}
    encoded = "".join(f"%{byte:02x}" for byte in secret)
    forms |= {encoded.encode(), encoded.upper().encode()}
    for before in range(3):
        whole = base64.b64encode(bytes(before) + secret)
        # The first and the last characters also carry bits of the neighbours; those between are the secret's alone.
        first, last = -(-before * 8 // 6), (before + len(secret)) * 8 // 6
        inner = whole[first:last]
        forms |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return forms
