"""What an agent may say, by kind: checked and brought into one shape before it is kept. Pure.

    {text | markdown, files?}                                      words
    {operation: "edit", messageId | seq, text | markdown}          other words in place of earlier ones
    {operation: "reaction", messageId | seq, emoji}
    {type: "ask_question", questionId, title, question, options, answeredBy?, expiresAfter?}
                                                                   a choice; the answer comes back as a message
    {type: "card", card: {title?, description?, children?, actions?}, fallbackText?}

`seq` is the number by which the agent knows a message; it becomes `messageId`, the id of that message's row.
"""

from __future__ import annotations

from typing import Any

from hermitcrab.errors import BadInputError
from hermitcrab_wire.limits import MAX_FILES_IN_A_MESSAGE, MAX_ID_CHARACTERS

Content = dict[str, Any]

OPTIONS_AT_MOST = 25
OPTION_CHARACTERS = 200
EMOJI_CHARACTERS = 64

EXPIRES_AFTER_S_AT_MOST = 7 * 86_400
"""How long a question may be open."""

HOST_ONLY = ("notice", "compacted", "askedOf")
"""Marks that the host sets on its own words; from an agent they would be a disguise."""


def checked(content: Content, row_id: str) -> Content:
    """`content` as it is kept. Raises BadInputError for what no channel could show."""
    said = {key: value for key, value in content.items() if key not in HOST_ONLY}
    match said.get("operation"):
        case None:
            pass
        case "edit":
            _target(said)
            if not _words(said):
                raise BadInputError("an edit needs `text`: what the message is to say")
        case "reaction":
            _target(said)
            emoji = said.get("emoji")
            if not isinstance(emoji, str) or not 0 < len(emoji) <= EMOJI_CHARACTERS:
                raise BadInputError(f"a reaction needs `emoji`, of at most {EMOJI_CHARACTERS} characters")
        case other:
            raise BadInputError(f"there is no operation {str(other)[:40]!r}; there are edit and reaction")
    match said.get("type"):
        case "ask_question":
            return _question(said, row_id)
        case "card" if not isinstance(said.get("card"), dict):
            raise BadInputError("a card needs `card`, an object")
        case _:
            pass
    if "files" in said:
        names = said["files"]
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise BadInputError("`files` is a list of names")
        if len(names) > MAX_FILES_IN_A_MESSAGE:
            raise BadInputError(f"a message may have {MAX_FILES_IN_A_MESSAGE} files")
    return said


def chosen(content: Content, option: str | int) -> str | None:
    """The value of the option that somebody chose of a question: by its value or its place. None: it has none such."""
    options = content.get("options")
    if content.get("type") != "ask_question" or not isinstance(options, list):
        return None
    values = [str(each.get("value")) for each in options if isinstance(each, dict)]
    if isinstance(option, str):
        return option if option in values else None
    return values[option] if 0 <= option < len(values) else None


def _target(said: Content) -> None:
    seq, key = said.get("seq"), said.get("messageId")
    if isinstance(seq, int) and not isinstance(seq, bool) and seq > 0:
        return
    if isinstance(key, str) and 0 < len(key) <= MAX_ID_CHARACTERS:
        return
    raise BadInputError("it needs `seq`, the number of the message that it is about, or `messageId`")


def _question(said: Content, row_id: str) -> Content:
    title, question, options = said.get("title"), said.get("question"), said.get("options")
    if not isinstance(title, str) or not title or not isinstance(question, str):
        raise BadInputError("a question needs `title` and `question`")
    if not isinstance(options, list) or not 0 < len(options) <= OPTIONS_AT_MOST:
        raise BadInputError(f"a question needs 1 to {OPTIONS_AT_MOST} `options`")
    if said.get("answeredBy", "anyone") not in {"anyone", "asker"}:
        raise BadInputError("`answeredBy` is anyone, or asker: whoever wrote the message that this replies to")
    seconds = said.get("expiresAfter")
    if seconds is not None and not (
        isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 < seconds <= EXPIRES_AFTER_S_AT_MOST
    ):
        raise BadInputError(f"`expiresAfter` is a number of seconds up to {EXPIRES_AFTER_S_AT_MOST:,}")
    said["questionId"] = row_id
    said["options"] = [_option(each) for each in options]
    return said


def _option(option: object) -> Content:
    given = {"label": option} if isinstance(option, str) else option
    if not isinstance(given, dict):
        raise BadInputError("an option is a text, or an object with `label`")
    label = given.get("label")
    made = {"label": label, "selectedLabel": given.get("selectedLabel", label), "value": given.get("value", label)}
    if not all(isinstance(each, str) and 0 < len(each) <= OPTION_CHARACTERS for each in made.values()):
        raise BadInputError(f"texts of an option have 1 to {OPTION_CHARACTERS} characters")
    return made


def _words(said: Content) -> str:
    for name in ("text", "markdown"):
        if isinstance(words := said.get(name), str) and words:
            return words
    return ""
