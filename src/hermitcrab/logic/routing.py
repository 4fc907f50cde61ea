"""Which agents hear a message, and in which session: pure decisions of the router."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from hermitcrab.model.groups import MessagingGroup, Wiring
from hermitcrab.model.messages import ChannelMessage

EVERYTHING = "."
"""The engage pattern that matches any message, an empty one too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """How one wiring takes a message: `answer` triggers a turn, `context` only rides along with the next one."""

    wiring: Wiring
    mode: Literal["answer", "context"]


def hearings(
    message: ChannelMessage, chat: MessagingGroup, wirings: list[Wiring], *, engaged_sessions: frozenset[str]
) -> list[Hearing]:
    """The wirings that take the message, highest priority first.

    `engaged_sessions`: ids of wirings whose session has answered in this chat before (for mention-sticky).
    """
    taken: list[Hearing] = []
    for wiring in sorted(wirings, key=lambda each: (-each.priority, each.id)):
        if _engages(message, chat, wiring, engaged_sessions):
            taken.append(Hearing(wiring=wiring, mode="answer"))
        elif wiring.ignored_message_policy == "accumulate":
            taken.append(Hearing(wiring=wiring, mode="context"))
    return taken


def _engages(message: ChannelMessage, chat: MessagingGroup, wiring: Wiring, engaged_sessions: frozenset[str]) -> bool:
    match wiring.engage_mode:
        case "pattern":
            return pattern_matches(wiring.engage_pattern, text_of(message))
        case "mention":
            return message.is_mention or not message.is_group
        case "mention-sticky":
            return message.is_mention or not message.is_group or (chat.is_group and wiring.id in engaged_sessions)


def pattern_matches(pattern: str | None, text: str) -> bool:
    """A pattern that is no regular expression matches nothing: it fails closed."""
    if pattern is None or pattern == EVERYTHING:
        return True
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return False


def text_of(message: ChannelMessage) -> str:
    text = message.content.get("text")
    return text if isinstance(text, str) else ""


def thread_of_session(wiring: Wiring, message: ChannelMessage, *, supports_threads: bool) -> str | None:
    """The thread that the session belongs to, or None for one session for the whole chat."""
    if wiring.session_mode == "per-thread" and supports_threads:
        return message.address.thread_id
    return None
