"""What becomes of a message after one attempt to deliver it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hermitcrab.logic.retry import DELIVERY, Backoff

RETRY_AFTER_S_AT_MOST = 6 * 3600.0
"""A platform that names a longer time is asked again earlier."""

UNEXPECTED_AT_MOST = 5
"""Attempts at a message for which a channel fails as no channel should; then it counts as undeliverable."""

WAITS = "waits: "
"""With what the reason of a message begins that waits for somebody to come."""

REASON_CHARACTERS = 500
PLATFORM_ID_CHARACTERS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why an attempt did not deliver.

    `transient`: the same may work later. `permanent`: it never will. `uncertain`: it may have arrived. `broken`: the
    channel itself failed, after which it may have arrived, too. `nobody`: there is nobody to take it, and the channel
    says when somebody comes.
    """

    kind: Literal["transient", "permanent", "uncertain", "broken", "nobody"]
    reason: str
    retry_after_s: float | None = None
    """What the platform asked for."""
    limits: Literal["chat", "channel"] = "chat"
    """For whom it asked that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    in_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Never:
    reason: str


def verdict(
    trouble: Trouble,
    *,
    attempts: int,
    waited_s: float,
    give_up_after_s: float,
    idempotent: bool,
    jitter: float,
    backoff: Backoff = DELIVERY,
) -> Later | Never:
    """Whether to try again.

    `attempts` counts this one, `waited_s` is since the message was queued, `jitter` in [0, 1).
    """
    match trouble.kind:
        case "permanent":
            return Never(reason=trouble.reason)
        case "nobody":
            return Later(in_s=backoff.delay_s(attempts, jitter), reason=f"{WAITS}{trouble.reason}"[:REASON_CHARACTERS])
        case "uncertain" | "broken" if not idempotent:
            # Nobody wants an answer twice, and only a channel that knows the key shows it once.
            return Never(reason=f"{trouble.reason}; it may have arrived, and was not sent twice")
        case "broken" if attempts >= UNEXPECTED_AT_MOST:
            return Never(reason=f"{trouble.reason}; given up after {attempts} attempts")
        case "transient" | "uncertain" | "broken" if waited_s >= give_up_after_s:
            return Never(reason=f"{trouble.reason}; given up after {attempts} attempts in {_span(waited_s)}")
        case _:
            return Later(in_s=max(backoff.delay_s(attempts, jitter), _wished(trouble)), reason=trouble.reason)


def channel_pause_s(trouble: Trouble) -> float:
    """How long nothing more is to be sent through the whole channel: only for as long as its platform asked."""
    return _wished(trouble) if trouble.kind == "transient" and trouble.limits == "channel" else 0.0


def plain_reason(value: object) -> str:
    """A channel's words as a database takes them: one line, bounded, valid Unicode."""
    text = value if isinstance(value, str) else repr(value)
    line = " ".join(text.encode("utf-8", "replace").decode().replace("\0", " ").split())
    return line[:REASON_CHARACTERS] or "the channel gave no reason"


def plain_platform_id(value: object) -> str | None:
    """A platform's id of a message as a database takes it; None for what cannot be one."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value) <= PLATFORM_ID_CHARACTERS or "\0" in value:
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value


def _wished(trouble: Trouble) -> float:
    wish = trouble.retry_after_s
    if wish is None or not math.isfinite(wish):
        return 0.0
    return min(max(wish, 0.0), RETRY_AFTER_S_AT_MOST)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
