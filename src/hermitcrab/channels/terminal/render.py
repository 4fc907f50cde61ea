"""Text on its way to and from a terminal. Pure.

A terminal obeys what it is shown: an escape sequence can rename its window, fill its clipboard or hide what follows.
What an agent (or a container's log) says is therefore reduced to plain text before anything prints it, and what a
person types is checked before anything stores it.
"""

from __future__ import annotations

import re
from typing import Any

from hermitcrab.errors import BadInputError
from hermitcrab.logic.pieces import card_text, question_text

_ESCAPE_SEQUENCES = re.compile(
    # Strings that a terminal takes as a whole (window titles, clipboard, device control), up to their end mark. The
    # body holds no control character, so that a scan never runs over the next sequence: the work stays linear.
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x00-\x1f\x7f-\x9f]*(?:\x07|\x1b\\|\x9c)"
    # Control sequences: colours, cursor moves, erasing. An unfinished one still loses its parameters.
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    # Two- and three-character escapes: character sets, resets.
    r"|\x1b[ -/]*[0-~]?"
)

_NEWLINES = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")

_UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # every control character but tab and newline
    "\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069"  # changes of direction, which make text read as what it is not
    "\ufff9-\ufffb]"  # annotations that terminals hide
)

_SURROGATES = re.compile("[\ud800-\udfff]")


def plain(text: str) -> str:
    """`text` with nothing in it that a terminal would obey. Plain text comes back as it was."""
    text = _ESCAPE_SEQUENCES.sub("", text)
    text = _NEWLINES.sub("\n", text)
    text = _UNSHOWABLE.sub("", text)
    return _SURROGATES.sub("\ufffd", text)


def one_line(text: str, *, width: int = 200) -> str:
    """`text` for one cell of a table or one line of a report."""
    line = " ".join(plain(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def text_of(content: dict[str, Any]) -> str:
    """What a person reads of a message's content; content without text is described, never dropped."""
    match content:
        case {"operation": "edit"}:
            words = content.get("text") or content.get("markdown")
            return f"[corrected] {plain(words)}" if isinstance(words, str) else "[corrected]"
        case {"operation": "reaction", "emoji": str(emoji)}:
            return f"[reacts with {one_line(emoji)}]"
        case {"type": "ask_question"}:
            return plain(question_text(content))
        case {"type": "card"}:
            return plain(card_text(content))
        case _:
            pass
    text = content.get("text") or content.get("markdown")
    shown = plain(text) if isinstance(text, str) else ""
    files = content.get("files")
    names = [one_line(each) for each in files if isinstance(each, str)] if isinstance(files, list) else []
    attached = "\n".join(f"[file: {name}]" for name in names)
    if shown or attached:
        return "\n".join(part for part in (shown, attached) if part)
    kind = content.get("type") or content.get("operation")
    return f"[{one_line(kind)}]" if isinstance(kind, str) and kind else "[a message without text]"


def checked_text(text: str, *, most_bytes: int) -> str:
    """`text` as a message that can be stored and sent. Raises BadInputError in one sentence that says what to do."""
    if "\0" in text:
        raise BadInputError("The message holds a NUL byte, which no chat can carry.", hint="Remove it and send again.")
    if _SURROGATES.search(text):
        raise BadInputError("The message is not valid UTF-8.", hint="Convert it, for example with `iconv -t UTF-8`.")
    if (size := len(text.encode())) > most_bytes:
        raise BadInputError(
            f"The message has {size:,} bytes; the limit is {most_bytes:,}.",
            hint="Send less, put it in a file of the agent's folder, or raise limits.message_bytes.",
        )
    if not text.strip():
        raise BadInputError("The message is empty.", hint="Give some text.")
    return text


def decoded(data: bytes) -> str:
    """Bytes that a person piped in, as text. Raises BadInputError when they are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"The message is not valid UTF-8: byte {error.start} is {data[error.start]:#04x}.",
            hint="Convert it, for example with `iconv -t UTF-8`.",
        ) from error
