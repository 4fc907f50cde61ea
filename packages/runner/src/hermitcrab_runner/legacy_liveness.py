"""Whether a foreign v2 runner is stuck, by the rules that it was written for. Pure; what uses it is its shim.

Such a runner has no beats. It touches a heartbeat file when its provider says something, notes the rows that it has in
work and the tool that runs, and the host of its time ended it by the age of these. Two rules differ from that host's:
a time that a tool declares is believed up to an hour, and a heartbeat from the future is none (both were ways to live
for ever).

All times are seconds on the caller's own clock. A time that the runner wrote by another clock is to be translated, or
better: replaced by when the caller first saw it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

CEILING_S = 1800.0
CLAIM_TOLERANCE_S = 60.0
DECLARED_AT_MOST_S = 3600.0
SKEW_S = 5.0
"""A heartbeat may be this far ahead."""

TRIES_AT_MOST = 5
FIRST_RETRY_S = 5


class ToolState(NamedTuple):
    """The row of container_state."""

    current_tool: str | None = None
    declared_timeout_ms: object = None
    """Whatever the runner wrote there."""


class Claim(NamedTuple):
    """A row of processing_ack that is `processing`."""

    message_id: str
    since: float | None
    """None: its time could not be read."""


class Stuck(NamedTuple):
    """To be ended."""

    reason: str
    """absolute-ceiling or claim-stuck, as that host called them."""
    text: str
    message_id: str | None = None


def judge(
    now: float, *, started_at: float, heartbeat_at: float | None, tool: ToolState, claims: Iterable[Claim]
) -> Stuck | None:
    """None: let it work. `heartbeat_at` is None while this runner has not touched its file yet."""
    if heartbeat_at is not None and heartbeat_at > now + SKEW_S:
        heartbeat_at = started_at
    declared_s = _declared_s(tool)
    if heartbeat_at is not None and now - heartbeat_at > max(CEILING_S, declared_s):
        return Stuck("absolute-ceiling", f"it showed no progress for {now - heartbeat_at:.0f} s")
    tolerance_s = max(CLAIM_TOLERANCE_S, declared_s)
    for claim in claims:
        if claim.since is None or now - claim.since <= tolerance_s:
            continue
        if heartbeat_at is not None and heartbeat_at > claim.since:
            continue
        text = f"it took a message {now - claim.since:.0f} s ago and has shown no progress since"
        return Stuck("claim-stuck", text, claim.message_id)
    return None


def retry_after_s(tries: int) -> int | None:
    """How long a message waits that was given back and had been tried so often; None: it has failed."""
    return None if tries >= TRIES_AT_MOST else FIRST_RETRY_S * 2**tries


def _declared_s(tool: ToolState) -> float:
    declared_ms = tool.declared_timeout_ms
    if tool.current_tool != "Bash" or isinstance(declared_ms, bool) or not isinstance(declared_ms, (int, float)):
        return 0.0
    # NaN is neither below nor above anything, and must not become a bound.
    return min(declared_ms / 1000, DECLARED_AT_MOST_S) if declared_ms > 0 else 0.0
