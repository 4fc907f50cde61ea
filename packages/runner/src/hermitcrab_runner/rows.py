"""Inbound rows as the runner sees them. Whatever a row holds, reading it never fails."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from hermitcrab_wire.limits import MAX_ID_CHARACTERS

SUSPECT_TRIES = 2

CHAT_KINDS = frozenset({"chat", "chat-sdk"})


class Row(NamedTuple):
    id: str
    kind: str
    content: Mapping[str, Any]
    timestamp: str = ""
    seq: int | None = None
    trigger: bool = True
    """False: context that waits for the next row that triggers."""
    channel_type: str | None = None
    platform_id: str | None = None
    thread_id: str | None = None
    tries: int = 0
    """Containers that have ended while they had it."""

    @property
    def is_suspect(self) -> bool:
        """It is worked on alone, so that no other row is blamed for what it does."""
        return self.trigger and self.tries >= SUSPECT_TRIES

    @property
    def question(self) -> str | None:
        """The question of the agent's that the row is the answer to."""
        if self.kind != "system" or self.content.get("type") != "question_response":
            return None
        return text_of(self.content.get("questionId")) or None

    @property
    def text(self) -> str:
        return text_of(self.content.get("text"))

    @property
    def from_chat(self) -> bool:
        return self.kind in CHAT_KINDS


def parse_row(message: Mapping[str, Any]) -> Row | None:
    """The row, or None for one without a usable id, which could not be completed either."""
    key = message.get("id")
    if not isinstance(key, str) or not 0 < len(key) <= MAX_ID_CHARACTERS:
        return None
    seq, tries = message.get("seq"), message.get("tries")
    return Row(
        id=key,
        kind=text_of(message.get("kind")) or "chat",
        content=_content(message.get("content")),
        timestamp=text_of(message.get("timestamp")),
        seq=seq if isinstance(seq, int) and not isinstance(seq, bool) else None,
        trigger=bool(message.get("trigger", True)),
        channel_type=_name(message.get("channel_type")),
        platform_id=_name(message.get("platform_id")),
        thread_id=_name(message.get("thread_id")),
        tries=tries if isinstance(tries, int) and not isinstance(tries, bool) else 0,
    )


def text_of(value: object) -> str:
    """Text as it is, numbers as written, anything else as nothing."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return ""


def _name(value: object) -> str | None:
    return text_of(value) or None


def _content(value: object) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {"text": value}
    if isinstance(value, dict):
        return value
    return {"text": text_of(value)}
