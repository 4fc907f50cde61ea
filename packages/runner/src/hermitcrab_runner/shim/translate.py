"""Between frames of the link and rows of the files, in both directions. Pure, and fails on nothing it is given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hermitcrab_runner.prompt import Destination
from hermitcrab_runner.rows import text_of
from hermitcrab_runner.shim.times import iso_time, parse_time
from hermitcrab_wire.codec import is_too_deep
from hermitcrab_wire.limits import MAX_CONTENT_BYTES, MAX_ID_CHARACTERS, MAX_NESTING

KINDS = frozenset({"chat", "chat-sdk", "task", "webhook", "system"})
"""A v2 runner passes over rows of any other kind, and the newest ones over those with a moment that is none. They do it
in silence, so that nobody would ever hear of them again."""

_GREATEST_SEQ = 2**53
"""JavaScript counts no further; a foreign runner would choke on more."""


class Place(NamedTuple):
    """Where something is from or goes to, as a row says it; each part may be missing."""

    channel_type: str | None = None
    platform_id: str | None = None
    thread_id: str | None = None

    @property
    def chat(self) -> tuple[str, str] | None:
        return None if self.channel_type is None or self.platform_id is None else (self.channel_type, self.platform_id)


NOWHERE = Place()


def home(routing: Mapping[str, Any] | None) -> Place:
    """The session's own chat, as the welcome says it."""
    if routing is None:
        return NOWHERE
    return Place(*(text_of(routing.get(key)) or None for key in ("channel_type", "platform_id", "thread_id")))


class InRow(NamedTuple):
    """The columns of one row of messages_in but for its status, in the table's order."""

    id: str
    seq: int | None
    kind: str
    timestamp: str
    process_after: str | None
    recurrence: str | None
    series_id: str
    tries: int
    trigger: int
    platform_id: str | None
    channel_type: str | None
    thread_id: str | None
    content: str
    source_session_id: str | None
    on_wake: int

    @property
    def place(self) -> Place:
        return Place(self.channel_type, self.platform_id, self.thread_id)


class OutRow(NamedTuple):
    """A row of messages_out that can be sent."""

    id: str
    in_reply_to: str | None
    timestamp: str
    deliver_after: str | None
    kind: str
    place: Place
    content: dict[str, Any]

    @property
    def action(self) -> str:
        """What kind of thing it is, in a word for people: chat, edit, reaction, ask_question, install_packages, ..."""
        for key in ("action", "operation", "type"):
            if word := text_of(self.content.get(key)):
                return word[:60]
        return self.kind[:60]

    @property
    def files(self) -> list[str]:
        names = self.content.get("files")
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


class Unsendable(NamedTuple):
    """A row of messages_out that is not what any runner writes, and why."""

    id: str | None
    reason: str


class Way(NamedTuple):
    """How a frame says where something goes."""

    to: str | None
    in_reply_to: str | None


def in_row(message: Mapping[str, Any], *, at: str) -> InRow | None:
    """The row for an inbound row of the link; `at` is its time if it has none. None: it has no usable id."""
    key = message.get("id")
    if not isinstance(key, str) or not 0 < len(key) <= MAX_ID_CHARACTERS:
        return None
    seq = _count(message.get("seq"))
    return InRow(
        id=key,
        seq=seq if seq and seq % 2 == 0 else None,
        kind=kind if (kind := text_of(message.get("kind"))) in KINDS else "chat",
        timestamp=_moment(message.get("timestamp")) or at,
        process_after=_moment(message.get("process_after")),
        recurrence=text_of(message.get("recurrence")) or None,
        series_id=text_of(message.get("series_id")) or key,
        tries=_count(message.get("tries")),
        trigger=int(bool(message.get("trigger", True))),
        platform_id=text_of(message.get("platform_id")) or None,
        channel_type=text_of(message.get("channel_type")) or None,
        thread_id=text_of(message.get("thread_id")) or None,
        content=content_text(message.get("content")),
        source_session_id=text_of(message.get("source_session_id")) or None,
        on_wake=int(bool(message.get("on_wake", False))),
    )


def content_text(content: object) -> str:
    """Compact JSON, as runners find an answer by `LIKE '%"questionId":"..."%'`. What would kill one is made harmless.

    A v2 runner ends when a content is null, or when its text or sender are no texts.
    """
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError):
            content = {"text": content}
    if not isinstance(content, dict):
        content = {"text": text_of(content)}
    tamed = dict(content)
    for key in ("text", "sender"):
        if key in tamed and not isinstance(tamed[key], str):
            tamed[key] = text_of(tamed[key])
    return json.dumps(tamed, ensure_ascii=False, separators=(",", ":"))


def inbound_seq(wanted: int | None, *, taken: bool, greatest: int) -> int:
    """The number of a row that comes in: the host's own where it is free, else the next; always even."""
    if wanted is not None and not taken:
        return wanted
    return greatest + 2 - greatest % 2


def out_row(columns: Sequence[object]) -> OutRow | Unsendable:
    """The row from id, in_reply_to, timestamp, deliver_after, kind, channel_type, platform_id, thread_id, content.

    SQLite keeps a column's type no better than whoever writes it: all of them are looked at.
    """
    key, in_reply_to, timestamp, deliver_after, kind, channel_type, platform_id, thread_id, content = columns
    if not isinstance(key, str) or not 0 < len(key) <= MAX_ID_CHARACTERS:
        return Unsendable(None, "its id is no text of 1 to 200 characters")
    if not isinstance(kind, str) or not 0 < len(kind) <= MAX_ID_CHARACTERS:
        return Unsendable(key, "its kind is no word")
    if not isinstance(content, str):
        return Unsendable(key, "its content is no text")
    if len(content.encode(errors="replace")) > MAX_CONTENT_BYTES:
        return Unsendable(key, f"its content has more than {MAX_CONTENT_BYTES} bytes")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return Unsendable(key, "its content is no JSON")
    if not isinstance(value, dict):
        return Unsendable(key, "its content is no JSON object")
    if is_too_deep(value):
        return Unsendable(key, f"its content is nested more than {MAX_NESTING} deep")
    return OutRow(
        id=key,
        in_reply_to=_name(in_reply_to),
        timestamp=text_of(timestamp),
        deliver_after=_name(deliver_after),
        kind=kind,
        place=Place(_name(channel_type), _name(platform_id), _name(thread_id)),
        content=value,
    )


def way_of(
    out: OutRow,
    *,
    answered: Place | None,
    latest: str | None,
    home: Place,
    destinations: Sequence[Destination],
) -> Way | None:
    """How to say to the host where this row goes; None: there is no way to say it, so that it goes nowhere.

    `answered` is the place of the row that it replies to, if there is one; `latest` is the newest row from the chat
    that it goes to; `home` is the session's own chat. Whether the agent may write there, the host decides (law 5).
    """
    chat = out.place.chat
    if chat is None:
        # Requests to the host have no place. Their chat, if they need one, is the session's.
        return Way(None, None)
    if out.in_reply_to is not None and answered is not None and answered.chat == chat:
        return Way(None, out.in_reply_to)
    if home.chat == chat and home.thread_id == out.place.thread_id:
        return Way(None, None)
    for each in destinations:
        named = ("agent", each.agent_group_id) if each.type == "agent" else (each.channel_type, each.platform_id)
        if named == chat and not out.place.thread_id:
            return Way(each.name, None)
    if latest is not None:
        return Way(None, latest)
    if home.chat == chat:
        return Way(None, None)
    return next((Way(each.name, None) for each in destinations if (each.channel_type, each.platform_id) == chat), None)


def _name(value: object) -> str | None:
    return text_of(value)[: 4 * MAX_ID_CHARACTERS] or None


def _moment(value: object) -> str | None:
    at = parse_time(value)
    return None if at is None else iso_time(at)


def _count(value: object) -> int:
    """The value if it is a number to count with, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _GREATEST_SEQ else 0
