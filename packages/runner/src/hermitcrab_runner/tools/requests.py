"""What a call of a tool asks for. Pure but for a look at the file that is to be sent; fails on nothing it is given.

Names, parameters and replies are those of the earlier system, so that instructions written for it hold.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from hermitcrab_wire.codec import WireError, encode, is_too_deep
from hermitcrab_wire.limits import MAX_CONTENT_BYTES, MAX_FILE_BYTES, MAX_NESTING

ASK = "ask_user_question"

DEFAULT_WAIT_S = 300.0
LONGEST_WAIT_S = 3600.0
"""How long a question holds up its turn. It can be answered for longer: that comes as a message."""

HERE = "(current conversation)"


class Request(NamedTuple):
    """Something to say, and what the tool replies when it is on the host's disk."""

    content: dict[str, Any]
    reply: str
    """`{id}` in it stands for the message's number."""
    to: str | None = None
    kind: str = "chat"
    files: tuple[str, ...] = ()
    """Paths of files, one for each name in `content`."""
    deliver_after: str | None = None
    waits_s: float | None = None
    """A question: for so long its answer is waited for, which then is the tool's reply."""


class InvalidError(Exception):
    """The call cannot be carried out; the text says why, to the model."""


def request_of(name: str, arguments: Mapping[str, Any], destinations: Collection[str], workdir: str) -> Request:
    """Raises InvalidError."""
    make = _MAKERS.get(name)
    if make is None:
        raise InvalidError(f"Unknown tool: {name[:80]}")
    to = arguments.get("to")
    if to is not None and (not isinstance(to, str) or to not in destinations):
        known = ", ".join(sorted(destinations)) or "(none)"
        raise InvalidError(f'Unknown destination "{str(to)[:80]}". Known: {known}')
    made = make(arguments, workdir)
    try:
        size = len(encode(made.content))
    except (WireError, RecursionError) as error:
        raise InvalidError(f"it cannot be sent: {error}") from error
    if size > MAX_CONTENT_BYTES:
        raise InvalidError(f"it has {size:,} bytes; a message may have {MAX_CONTENT_BYTES:,}")
    if is_too_deep(made.content):
        raise InvalidError(f"it is nested more than {MAX_NESTING} deep")
    return made._replace(to=to, deliver_after=_time(arguments.get("deliver_after")))


def _send_message(arguments: Mapping[str, Any], _workdir: str) -> Request:
    text = _words(arguments, "text")
    if not text:
        raise InvalidError("text is required")
    return Request({"text": text}, f"Message sent to {arguments.get('to') or HERE} (id: {{id}})")


def _send_file(arguments: Mapping[str, Any], workdir: str) -> Request:
    path = _words(arguments, "path")
    if not path:
        raise InvalidError("path is required")
    try:
        found = os.stat(os.path.join(workdir, path))
    except (OSError, ValueError) as error:
        raise InvalidError(f"File not found: {path[:300]}") from error
    if not stat.S_ISREG(found.st_mode):
        raise InvalidError(f"Not a file: {path[:300]}")
    if found.st_size > MAX_FILE_BYTES:
        raise InvalidError(f"{path[:300]} has {found.st_size:,} bytes; a file may have {MAX_FILE_BYTES:,}")
    name = _words(arguments, "filename") or path.rstrip("/").rpartition("/")[2]
    return Request(
        {"text": _words(arguments, "text"), "files": [name]},
        f"File sent to {arguments.get('to') or HERE} (id: {{id}}, filename: {name})",
        files=(path,),
    )


def _edit_message(arguments: Mapping[str, Any], _workdir: str) -> Request:
    number, text = _number(arguments), _words(arguments, "text")
    if number is None or not text:
        raise InvalidError("messageId and text are required")
    return Request({"operation": "edit", "seq": number, "text": text}, f"Message edit queued for #{number}")


def _add_reaction(arguments: Mapping[str, Any], _workdir: str) -> Request:
    number, emoji = _number(arguments), _words(arguments, "emoji")
    if number is None or not emoji:
        raise InvalidError("messageId and emoji are required")
    return Request({"operation": "reaction", "seq": number, "emoji": emoji}, f"Reaction queued for #{number}")


def _ask_user_question(arguments: Mapping[str, Any], _workdir: str) -> Request:
    title, question, options = _words(arguments, "title"), _words(arguments, "question"), arguments.get("options")
    if not title or not question or not isinstance(options, list) or not options:
        raise InvalidError("title, question, and options are required")
    content = {"type": "ask_question", "title": title, "question": question, "options": options}
    if arguments.get("only_asker") is True:
        content["answeredBy"] = "asker"
    given = arguments.get("timeout")
    wait_s = float(given) if isinstance(given, (int, float)) and not isinstance(given, bool) else DEFAULT_WAIT_S
    return Request(content, "", kind="chat-sdk", waits_s=min(max(wait_s, 1.0), LONGEST_WAIT_S))


def _send_card(arguments: Mapping[str, Any], _workdir: str) -> Request:
    card, fallback = arguments.get("card"), _words(arguments, "fallbackText")
    if not isinstance(card, dict):
        raise InvalidError("card is required, an object")
    content = {"type": "card", "card": card, **({"fallbackText": fallback} if fallback else {})}
    return Request(content, "Card sent (id: {id})", kind="chat-sdk")


_MAKERS = {
    "send_message": _send_message,
    "send_file": _send_file,
    "edit_message": _edit_message,
    "add_reaction": _add_reaction,
    ASK: _ask_user_question,
    "send_card": _send_card,
}


def _words(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name)
    return value if isinstance(value, str) else ""


def _number(arguments: Mapping[str, Any]) -> int | None:
    value = arguments.get("messageId")
    if isinstance(value, str) and value.lstrip("#").isdecimal():
        value = int(value.lstrip("#")[:18])
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _time(text: object) -> str | None:
    """A time with its zone; one that names none is meant in the process's own."""
    if text is None or text == "":
        return None
    try:
        return datetime.fromisoformat(str(text).strip()).astimezone(UTC).isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidError(f"invalid deliver_after: {str(text)[:80]}") from error
