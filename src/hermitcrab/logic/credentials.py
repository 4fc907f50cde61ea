"""What looks like a credential. One list for what is kept out of logs and for what is refused in configurations."""

from __future__ import annotations

import re
from collections.abc import Iterable

SHAPES = r"""
      -----BEGIN[ A-Z0-9]*PRIVATE\ KEY-----.*?(?:-----END[ A-Z0-9]*PRIVATE\ KEY-----|\Z)
    | \bsk-[A-Za-z0-9_-]{16,}                               # Anthropic, OpenAI and their like
    | \bgh[a-z]_[A-Za-z0-9]{16,} | \bgithub_pat_\w{16,} | \bglpat-[\w-]{16,}
    | \bxox[a-z]-[A-Za-z0-9-]{8,} | \bxapp-[A-Za-z0-9-]{8,}
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}
    | \bAIza[\w-]{30,}
    | \b\d{8,12}:[A-Za-z0-9_-]{30,}                         # chat bots
    | \beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?                # JSON web tokens
    | (?<=[Bb]earer\ )[^\s"',;]{8,} | (?<=BEARER\ )[^\s"',;]{8,}
    | (?<=[Bb]asic\ )[A-Za-z0-9+/=_-]{8,}
"""
"""A verbose regular expression, for ASCII, in which `.` matches line breaks too."""

SECRET_NAME = re.compile(
    r"(?:^|[_\-.])(?:authorization|cookie|set-cookie|password|passphrase|secret|api[_-]?key|x-api-key|"
    r"access[_-]?token|refresh[_-]?token|auth[_-]?token|private[_-]?key)$",
    re.IGNORECASE | re.ASCII,
)
"""Names whose values are secrets, whatever they look like."""

_CREDENTIAL = re.compile(
    SHAPES + r"| (?<=://)[^\s/@:\"']{0,256}:[^\s/@\"']{1,256}(?=@)   # user:password@host",
    re.VERBOSE | re.DOTALL | re.ASCII,
)

_PLACEHOLDER = re.compile(
    r"placeholder|example|dummy|change[-_ ]?me|your[-_ ]|redacted|\*{3,}|x{4,}|\$\{\w+\}"
    r"|^(?:none|null|unused|fake|test|true|false|\$\w+|\$\{\w+\}|<[^<>]*>|\{\{.*\}\})?$",
    re.IGNORECASE | re.ASCII,
)
"""Words of people who know that a secret does not belong there."""


def credential_in(text: str) -> bool:
    """Whether something in `text` looks like a credential and not like a placeholder for one."""
    return any(_PLACEHOLDER.search(found[0]) is None for found in _CREDENTIAL.finditer(text))


def may_hold_credential(texts: Iterable[str]) -> bool:
    """Whether `credential_in` can say so of any of them: one look at all, where there are many and seldom one."""
    return _CREDENTIAL.search("\n".join(texts)) is not None


def without_credentials(text: str) -> str:
    """`text`, for a message to people who pasted a key into the wrong line."""
    return _CREDENTIAL.sub("[redacted]", text)


def names_secret(name: str, value: str) -> bool:
    """Whether a variable is called like a secret and holds something that is no placeholder."""
    return SECRET_NAME.search(name) is not None and _PLACEHOLDER.search(value) is None
