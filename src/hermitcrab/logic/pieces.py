"""A message as one platform can show it: in parts that are short enough, in words where it lacks the kind. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hermitcrab.logic.splitting import Unit, parts

Content = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shows:
    """Which kinds a platform has, and how much of a text it takes at once."""

    text_length: int | None = None
    text_unit: Unit = "characters"
    edits: bool = False
    reactions: bool = False
    cards: bool = False
    questions: bool = False
    files: bool = False


def pieces(content: Content, shows: Shows) -> list[Content]:
    """What to send, one after the other. The first has the files, and is what edits and reactions refer to.

    The same message for the same platform is always cut in the same way: an attempt goes on where one ended.
    """
    match content:
        case {"operation": "reaction"} if shows.reactions:
            return [content]
        case {"operation": "reaction", "emoji": emoji}:
            return [{"text": f"[reacts with {emoji}]"}]
        case {"operation": "edit"} if shows.edits:
            key, _ = _words(content)
            first, *rest = _cut(content, shows)
            return [first, *({key: each[key]} for each in rest)]
        case {"operation": "edit"}:
            key, words = _words(content)
            return _cut({key: f"[corrected] {words}"}, shows)
        case {"type": "ask_question"} if shows.questions:
            return [content]
        case {"type": "ask_question"}:
            return _cut({"text": question_text(content)}, shows)
        case {"type": "card"} if shows.cards:
            return [content]
        case {"type": "card"}:
            return _cut({"text": card_text(content)}, shows)
        case {"files": list(names)} if not shows.files and names:
            key, words = _words(content)
            listed = "\n".join(f"[file: {name}; this chat takes no files]" for name in names)
            left = {name: value for name, value in content.items() if name != "files"}
            return _cut({**left, key: f"{words}\n{listed}" if words else listed}, shows)
        case _:
            return _cut(content, shows)


def question_text(content: Content) -> str:
    """A question for a platform without buttons."""
    options = content.get("options")
    labels = [str(each.get("label")) for each in options if isinstance(each, dict)] if isinstance(options, list) else []
    lines = [str(content.get("title") or ""), str(content.get("question") or "")]
    lines += [f"{number}. {label}" for number, label in enumerate(labels, 1)]
    return "\n".join(each for each in (*lines, "Answer with the number or the words.") if each)


def card_text(content: Content) -> str:
    """A card for a platform without cards: what it gives for that, or its own words."""
    fallback = content.get("fallbackText")
    if isinstance(fallback, str) and fallback.strip():
        return fallback
    card = content.get("card")
    words = list(_card_words(card)) if isinstance(card, dict) else []
    return "\n".join(words) or "[card]"


def _card_words(card: Content) -> Iterable[str]:
    for name in ("title", "description"):
        if isinstance(words := card.get(name), str) and words:
            yield words
    children = card.get("children")
    for child in children if isinstance(children, list) else []:
        words = child.get("text") if isinstance(child, dict) else child
        if isinstance(words, str) and words:
            yield words
    actions = card.get("actions")
    for action in actions if isinstance(actions, list) else []:
        if isinstance(action, dict) and isinstance(action.get("label"), str) and isinstance(action.get("url"), str):
            yield f"{action['label']}: {action['url']}"


def _cut(content: Content, shows: Shows) -> list[Content]:
    key, words = _words(content)
    if shows.text_length is None or not words:
        return [content]
    first, *rest = parts(words, shows.text_length, shows.text_unit)
    later = {name: value for name, value in content.items() if name != "files"}
    return [{**content, key: first}, *({**later, key: each} for each in rest)]


def _words(content: Content) -> tuple[str, str]:
    """Under which name the content has words, and the words."""
    for key in ("markdown", "text"):
        if isinstance(words := content.get(key), str) and words:
            return key, words
    return "text", ""
