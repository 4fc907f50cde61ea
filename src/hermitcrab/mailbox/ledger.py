"""Queries on both files of a mailbox for people: which messages there are in which state, and the life of each.

Reads only. Finding what is in some unfinished or bad state costs by what is in it, not by history.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from sqlite3 import Connection
from typing import Any, cast

from hermitcrab.mailbox.content import address_of
from hermitcrab.model.lives import OUTBOUND_STATES, Entry, Event, InboundState, Life
from hermitcrab.model.messages import DeliveryStatus

LOOKED_AT = 1000
"""Of the newest messages, for states in which nearly all of them are."""

EXCERPT_CHARACTERS = 200

_IN = (
    "SELECT id, seq, kind, coalesce(received_at, timestamp), status, tries, trigger, platform_id, channel_type,"
    " thread_id, content FROM messages_in"
)
_OUT = (
    "SELECT messages_out.id, messages_out.seq, kind, timestamp, platform_id, channel_type, thread_id, content,"
    " in_reply_to, deliveries.status, attempts, reason, next_attempt_at, queued_at, platform_message_id, updated_at"
    " FROM messages_out LEFT JOIN deliveries ON message_out_id = messages_out.id"
)
_ENDED_BADLY = "deliveries.status IN ('failed', 'refused', 'unknown-after-crash')"


class Ledger:
    """Over one snapshot of both files."""

    def __init__(self, inbound: Connection, outbound: Connection) -> None:
        self._in, self._out = inbound, outbound

    def entries(self, state: str | None, limit: int) -> list[Entry]:
        """The newest messages of both directions, or those in one state; newest first."""
        found = heapq.merge(self._inbound(state, limit), self._outbound(state, limit), key=lambda each: -each.seq)
        return [each for each, _ in zip(found, range(limit), strict=False)]

    def life(self, row_id: str) -> Life | None:
        """Everything that is known of the message of that id."""
        if (row := self._in.execute(f"{_IN} WHERE id = ?", (row_id,)).fetchone()) is not None:
            entry = self._inbound_entry(row)
            answers = self._out.execute(f"{_OUT} WHERE in_reply_to = ? ORDER BY messages_out.seq LIMIT 100", (row_id,))
            return Life(entry=entry, events=tuple(self._received(entry)), linked=tuple(map(_outbound_entry, answers)))
        row = self._out.execute(f"{_OUT} WHERE messages_out.id = ?", (row_id,)).fetchone()
        if row is None:
            return None
        entry = _outbound_entry(row)
        asked = self._in.execute(f"{_IN} WHERE id = ?", (entry.in_reply_to,)).fetchall() if entry.in_reply_to else []
        return Life(entry=entry, events=tuple(self._said(entry)), linked=tuple(map(self._inbound_entry, asked)))

    def unfinished(self, limit: int) -> list[Entry]:
        """What still waits in either direction, oldest first."""
        waiting = self._in.execute(f"{_IN} WHERE status = 'pending' ORDER BY seq LIMIT ?", (limit,))
        entries = [each for each in map(self._inbound_entry, waiting) if each.state in {"received", "claimed"}]
        for status in ("scheduled", "queued", "sending"):
            rows = self._out.execute(
                f"{_OUT} WHERE deliveries.status = '{status}' ORDER BY deliveries.seq LIMIT ?", (limit,)
            )
            entries += map(_outbound_entry, rows)
        return sorted(entries, key=lambda each: each.seq)[:limit]

    def _inbound(self, state: str | None, limit: int) -> Iterator[Entry]:
        match state:
            case None:
                query, values = f"{_IN} ORDER BY seq DESC LIMIT ?", (limit,)
            case "received" | "claimed":
                query, values = f"{_IN} WHERE status = 'pending' ORDER BY seq DESC LIMIT ?", (LOOKED_AT,)
            case "quarantined":
                query, values = f"{_IN} WHERE status = 'quarantined' ORDER BY seq DESC LIMIT ?", (limit,)
            case "failed" | "paused":
                query = f"{_IN} WHERE status IN ('failed', 'paused') ORDER BY seq DESC LIMIT ?"
                values = (LOOKED_AT,)
            case "completed":
                query, values = f"{_IN} ORDER BY seq DESC LIMIT ?", (LOOKED_AT,)
            case _:
                return
        for row in self._in.execute(query, values):
            entry = self._inbound_entry(row)
            if state is None or entry.state == state:
                yield entry

    def _outbound(self, state: str | None, limit: int) -> Iterator[Entry]:
        if state is None:
            query, values = f"{_OUT} ORDER BY messages_out.seq DESC LIMIT ?", (limit,)
        elif state in {"delivered", "confirmed"}:
            query, values = f"{_OUT} ORDER BY messages_out.seq DESC LIMIT ?", (LOOKED_AT,)
        elif state in {"failed", "refused", "unknown-after-crash"}:
            query, values = f"{_OUT} WHERE {_ENDED_BADLY} ORDER BY deliveries.seq DESC LIMIT ?", (LOOKED_AT,)
        elif state in OUTBOUND_STATES:
            query = f"{_OUT} WHERE deliveries.status = '{state}' ORDER BY deliveries.seq DESC LIMIT ?"
            values = (limit,)
        else:
            return
        for row in self._out.execute(query, values):
            entry = _outbound_entry(row)
            if state is None or entry.state == state:
                yield entry

    def _inbound_entry(self, row: tuple[Any, ...]) -> Entry:
        key, seq, kind, at, status, tries, trigger, *address, content = row
        ack = self._out.execute(
            "SELECT status, status_changed, reason FROM processing_ack WHERE message_id = ?", (key,)
        ).fetchone()
        ack_status, changed_at, reason = ack or (None, None, None)
        state = _inbound_state(status, ack_status)
        # What is counted are ends that it was given back in; the one that has it, or had it, came after those.
        attempts = (tries or 0) + (state in {"claimed", "completed"})
        return Entry(
            id=key,
            seq=seq or 0,
            direction="in",
            kind=kind,
            state=state,
            at=at,
            changed_at=changed_at,
            address=address_of(*address),
            text=_excerpt(content),
            attempts=attempts,
            reason=reason,
            trigger=bool(trigger),
        )

    def _received(self, entry: Entry) -> Iterator[Event]:
        yield Event(at=entry.at, what="received")
        claims = self._out.execute(
            "SELECT generation, turn, claimed_at, ended_at, outcome FROM claims WHERE message_id = ?"
            " ORDER BY claimed_at",
            (entry.id,),
        ).fetchall()
        for generation, turn, claimed_at, ended_at, outcome in claims:
            yield Event(at=claimed_at, what="claimed", detail=f"generation {generation}, {turn}")
            given_back, _, cause = (outcome or "").partition(": ")
            if given_back == "given back":
                why = f" ({cause})" if cause else ""
                detail = f"generation {generation} ended{why} before it was answered"
                yield Event(at=ended_at, what=given_back, detail=detail)
        if entry.state in {"completed", "failed", "quarantined"}:
            yield Event(at=entry.changed_at, what=entry.state, detail=entry.reason)

    def _said(self, entry: Entry) -> Iterator[Event]:
        yield Event(at=entry.at, what="said")
        attempts = self._out.execute(
            "SELECT number, began_at, ended_at, outcome, reason FROM delivery_attempts WHERE message_out_id = ?"
            " ORDER BY number",
            (entry.id,),
        ).fetchall()
        for number, began_at, ended_at, outcome, reason in attempts:
            yield Event(at=began_at, what="sending", detail=f"attempt {number}")
            if outcome is not None:
                yield Event(at=ended_at, what=outcome, detail=reason)
        told = attempts[-1][3] if attempts else None
        if entry.state not in {told, "sending", "queued"} or (entry.state == "queued" and not attempts):
            yield Event(at=entry.changed_at, what=entry.state, detail=entry.reason)


def _inbound_state(status: str | None, ack: str | None) -> InboundState:
    if ack in {"completed", "failed", "quarantined"}:
        status = ack
    if status in {"completed", "failed", "quarantined", "paused"}:
        return cast("InboundState", status)
    return "claimed" if ack == "processing" else "received"


def _outbound_entry(row: tuple[Any, ...]) -> Entry:
    key, seq, kind, at, platform_id, channel_type, thread_id, content, in_reply_to, status, *delivery = row
    attempts, reason, next_attempt_at, queued_at, platform_message_id, updated_at = delivery
    state: DeliveryStatus = status or "unknown-after-crash"
    return Entry(
        id=key,
        seq=seq or 0,
        direction="out",
        kind=kind,
        state=state,
        at=at,
        changed_at=updated_at,
        address=address_of(platform_id, channel_type, thread_id),
        text=_excerpt(content),
        attempts=attempts or 0,
        reason=reason,
        next_attempt_at=next_attempt_at,
        queued_at=queued_at,
        in_reply_to=in_reply_to,
        platform_message_id=platform_message_id,
    )


def _excerpt(content: str) -> str:
    """What a person recognises the message by; whatever it holds, this never fails."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content[:EXCERPT_CHARACTERS]
    if not isinstance(value, dict):
        return str(value)[:EXCERPT_CHARACTERS]
    for name in ("text", "markdown", "question", "prompt", "emoji", "fallbackText", "type", "operation", "action"):
        if isinstance(text := value.get(name), str) and text:
            return text[:EXCERPT_CHARACTERS]
    if isinstance(names := value.get("files"), list) and names:
        return f"[file: {', '.join(map(str, names))}]"[:EXCERPT_CHARACTERS]
    return content[:EXCERPT_CHARACTERS]
