"""What the agent is told when something that its runner wrote could not be passed on. Pure.

A v2 runner has no place for such an answer; but it reads system notes as messages, and its command-line tool waits for
a response. Each reason is told once, as a note is a turn, and a turn may try the same again.
"""

from __future__ import annotations

from collections.abc import Mapping

from hermitcrab_runner.shim.times import iso_time
from hermitcrab_runner.shim.translate import InRow, OutRow, content_text


def rows(out: OutRow, reason: str, *, now: float, told: set[str]) -> list[InRow]:
    """The rows to show to the runner. `told` remembers which notes there were."""
    if out.kind == "system" and out.content.get("action") == "cli_request":
        return [_response(out, reason, now)]
    key = f"{out.action}: {reason}"
    if key in told:
        return []
    told.add(key)
    return [_note(out, reason, now)]


def _response(out: OutRow, reason: str, now: float) -> InRow:
    request = out.content.get("requestId")
    key = request if isinstance(request, str) else out.id
    frame = {"id": key, "ok": False, "error": {"code": "transport-error", "message": reason}}
    content = {"type": "cli_response", "requestId": key, "frame": frame}
    return _row(f"cli-resp-{key}", "system", content, now)


def _note(out: OutRow, reason: str, now: float) -> InRow:
    what = out.action.replace("_", " ")
    text = f"Your {what} ({out.id}) was not passed on: {reason}. Do not repeat it unchanged."
    return _row(f"sys-resp-{out.id}", "chat", {"text": text, "sender": "system", "senderId": "system"}, now)


def _row(key: str, kind: str, content: Mapping[str, object], now: float) -> InRow:
    return InRow(
        id=key[:200],
        seq=None,
        kind=kind,
        timestamp=iso_time(now),
        process_after=None,
        recurrence=None,
        series_id=key[:200],
        tries=0,
        trigger=0,
        platform_id=None,
        channel_type=None,
        thread_id=None,
        content=content_text(content),
        source_session_id=None,
        on_wake=0,
    )
