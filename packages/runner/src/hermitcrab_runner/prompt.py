"""Rows to the text that the model reads, and what the model is told about how its answers travel. Pure.

Everything that came from outside is escaped, so that no sender can write a tag that looks like the host's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from hermitcrab_runner.rows import Row, text_of
from hermitcrab_wire.codec import is_too_deep

INVALID_DATE = "Invalid Date"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TOO_DEEP = "(nested too deeply to show)"
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"})

LocalTime = Callable[[float], time.struct_time]


class Destination(NamedTuple):
    """A place that this agent may send to, under the name by which it knows it."""

    name: str
    display_name: str = ""
    type: str = "channel"
    channel_type: str | None = None
    platform_id: str | None = None
    agent_group_id: str | None = None

    def is_origin_of(self, row: Row) -> bool:
        if not (row.channel_type and row.platform_id):
            return False
        if row.channel_type == "agent":
            return self.type == "agent" and self.agent_group_id == row.platform_id
        return (self.type, self.channel_type, self.platform_id) == ("channel", row.channel_type, row.platform_id)


def parse_destinations(listed: Iterable[Mapping[str, Any]]) -> tuple[Destination, ...]:
    """The destinations of a welcome, by name; an entry without one is passed over."""
    found = {}
    for each in listed:
        if name := text_of(each.get("name")):
            found[name] = Destination(
                name=name,
                display_name=text_of(each.get("display_name")),
                type=text_of(each.get("type")) or "channel",
                channel_type=text_of(each.get("channel_type")) or None,
                platform_id=text_of(each.get("platform_id")) or None,
                agent_group_id=text_of(each.get("agent_group_id")) or None,
            )
    return tuple(found[name] for name in sorted(found))


def compose(
    rows: Sequence[Row],
    destinations: Sequence[Destination],
    *,
    timezone: str,
    local_time: LocalTime = time.localtime,
) -> str:
    """The prompt for `rows`, in the order in which they came."""
    header = f'<context timezone="{escape(timezone)}" />'
    items = [_item(row, destinations, local_time) for row in rows]
    if len(items) > 1:
        items = ["<messages>", *items, "</messages>"]
    return f"{header}\n" + "\n".join(items)


def escape(text: str) -> str:
    return text.translate(_ESCAPES)


def shown_time(timestamp: str, local_time: LocalTime = time.localtime) -> str:
    """`Nov 23, 2026, 9:10 AM`. A time that names no zone is taken as local."""
    try:
        at = local_time(datetime.fromisoformat(timestamp.strip()).timestamp())
    except (ValueError, OverflowError, OSError):
        return INVALID_DATE
    half = "AM" if at.tm_hour < 12 else "PM"
    return f"{_MONTHS[at.tm_mon - 1]} {at.tm_mday}, {at.tm_year}, {(at.tm_hour + 11) % 12 + 1}:{at.tm_min:02} {half}"


def origin_of(row: Row, destinations: Iterable[Destination]) -> str | None:
    """The name of the destination that a row came from; None for a row that came from no chat."""
    for each in destinations:
        if each.is_origin_of(row):
            return each.name
    if row.channel_type or row.platform_id:
        return f"unknown:{row.channel_type or ''}:{row.platform_id or ''}"
    return None


def instructions(assistant_name: str, destinations: Sequence[Destination]) -> str:
    """What is added to the harness's own system prompt."""
    sections = []
    if assistant_name:
        sections.append(
            f"# You are {assistant_name}\n\nYour name is **{assistant_name}**. Give it when somebody asks who you are."
        )
    sections.append("## Sending messages\n\n" + "\n\n".join(_sending(destinations)))
    return "\n\n".join(sections)


def correction(unknown: Iterable[str], destinations: Sequence[Destination]) -> str:
    """What the model is told when it addressed somebody who is no destination."""
    wrong = ", ".join(f"`{escape(name)}`" for name in unknown)
    right = ", ".join(f"`{each.name}`" for each in destinations) or "none"
    return (
        f"<system>Not delivered: {wrong} is not one of your destinations ({right}). Nobody has read those words. "
        "Send them to a destination that exists, or answer plainly.</system>"
    )


def _sending(destinations: Sequence[Destination]) -> list[str]:
    if not destinations:
        return [
            (
                "You have no configured destinations. What you answer goes to the chat that you are asked from, if "
                "there is one; to write anywhere else, an administrator has to wire a destination first."
            )
        ]
    closing = (
        "Text within `<internal>...</internal>` is for yourself; nobody is sent it. "
        "Each block arrives as a message of its own. To send a file with a message, write "
        '`<file path="report.pdf" />` in it; the path is in your workspace.'
    )
    if len(destinations) == 1:
        only = destinations[0]
        return [
            (
                f"Your one destination is {_listed(only)}. What you answer goes to the chat that you are asked from. "
                f'You can also address it by name: `<message to="{only.name}">...</message>`.'
            ),
            closing,
        ]
    return [
        "These are your destinations:",
        "\n".join(f"- {_listed(each)}" for each in destinations),
        (
            'Wrap each message that you send in `<message to="name">...</message>`; an answer may have several. '
            'Default routing: answer the destination that the message came from, which its `from="name"` tells you. '
            "When an answer has such blocks, text outside of them is a scratchpad that is not sent. An answer without "
            "any block goes whole to the chat that you are asked from."
        ),
        closing,
    ]


def _listed(destination: Destination) -> str:
    shown = destination.display_name
    return f"`{destination.name}`" + (f" ({shown})" if shown and shown != destination.name else "")


def _item(row: Row, destinations: Sequence[Destination], local_time: LocalTime) -> str:
    content = row.content
    where = {"from": origin_of(row, destinations)}
    when = {"time": shown_time(row.timestamp, local_time)}
    match row.kind:
        case "chat" | "chat-sdk":
            return _chat(row, where, when)
        case "task":
            lines = []
            if content.get("scriptOutput"):
                lines += ["Script output:", _pretty(content["scriptOutput"]), ""]
            lines += ["Instructions:", text_of(content.get("prompt"))]
            return _element("task", {**where, **when}, escape("\n".join(lines)))
        case "webhook":
            names = {
                "source": text_of(content.get("source")) or "unknown",
                "event": text_of(content.get("event")) or "unknown",
            }
            return _element("webhook", {**where, **names}, escape(_pretty(content.get("payload") or dict(content))))
        case "system":
            names = {"action": text_of(content.get("action")), "status": text_of(content.get("status"))}
            return _element("system_response", {**where, **names}, escape(_compact(content.get("result"))))
        case other:
            # A kind that this runner is too old to know is shown as it is rather than swallowed.
            return _element("event", {"kind": other, **where, **when}, escape(_pretty(dict(content))))


def _chat(row: Row, where: Mapping[str, str | None], when: Mapping[str, str]) -> str:
    content = row.content
    reply = _mapping(content.get("replyTo"))
    attributes = {
        "id": None if row.seq is None else str(row.seq),
        **where,
        "sender": _sender(content),
        **when,
        "reply_to": text_of(reply.get("id")) or None,
    }
    quoted = ""
    if (sender := text_of(reply.get("sender"))) and (text := text_of(reply.get("text"))):
        quoted = f"\n  {_element('quoted_message', {'from': sender}, escape(text))}\n"
    attachments = content.get("attachments")
    listed = attachments if isinstance(attachments, (list, tuple)) else ()
    files = [_attachment(each) for each in listed if isinstance(each, Mapping)]
    return _element("message", attributes, "\n".join([quoted + escape(row.text), *files]))


def _sender(content: Mapping[str, Any]) -> str:
    author = _mapping(content.get("author"))
    names = (content.get("sender"), author.get("fullName"), author.get("userName"))
    return next((name for name in map(text_of, names) if name), "Unknown")


def _attachment(content: Mapping[str, Any]) -> str:
    kind = text_of(content.get("type")) or "file"
    name = text_of(content.get("name")) or text_of(content.get("filename")) or "attachment"
    if path := text_of(content.get("localPath")):
        return escape(f"[{kind}: {name} — saved to /workspace/{path}]")
    if url := text_of(content.get("url")):
        return escape(f"[{kind}: {name} ({url})]")
    return escape(f"[{kind}: {name}]")


def _element(tag: str, attributes: Mapping[str, str | None], body: str) -> str:
    shown = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items() if value is not None)
    return f"<{tag}{shown}>{body}</{tag}>"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _pretty(value: object) -> str:
    if is_too_deep(value):
        return _TOO_DEEP
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def _compact(value: object) -> str:
    if is_too_deep(value):
        return _TOO_DEEP
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
