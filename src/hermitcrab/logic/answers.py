"""Whether a message that somebody typed is the answer to a question of an agent's, and to which. Pure.

A number or an option's own words answer; anything else, and anything that could mean two options, is an ordinary
message. Words answer the oldest open question that has such an option, a number only the oldest open one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

LONGEST_ANSWER_CHARACTERS = 400

_NUMBER = re.compile(r"[#(]?([0-9]{1,3})[.):]?")
_AROUND = " \t\n\r.,;:!'\"`()[]«»‹›“”‘’„‚*_"  # noqa: RUF001  # quotation marks of several languages
_KEYCAP = str.maketrans("", "", "\ufe0f\u20e3")

OPEN_S = 24 * 3600.0
"""How long a question can be answered that does not say so itself."""

WhyNot = Literal["answered", "expired", "not-asked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of the conversation, as far as this matters."""

    content: dict[str, Any]
    answered: bool = False
    expired: bool = False
    is_last_word: bool = False
    """Its agent has said nothing since."""

    @property
    def is_open(self) -> bool:
        return not (self.answered or self.expired)


@dataclass(frozen=True, slots=True)
class Answers:
    """The message is the answer to that question: the chosen option's value."""

    question: int
    value: str


@dataclass(frozen=True, slots=True)
class Late:
    """It fits a question that nobody can answer any more. It is an ordinary message, and its sender is told."""

    question: int
    why: WhyNot


def answer_in(text: str, sender: str | None, questions: Sequence[Question]) -> Answers | Late | None:
    """What a message is to the conversation's questions, which come oldest first. None: an ordinary message."""
    mine = [(place, each) for place, each in enumerate(questions) if each.is_open and may_answer(each.content, sender)]
    by_words = [(place, value) for place, each in mine if (value := _meant(text, each.content, numbers=False))]
    if mine and (value := _meant(text, mine[0][1].content, numbers=True)) is not None:
        return Answers(mine[0][0], value)
    if by_words and _number(text) is None:
        return Answers(*by_words[0])
    for place, each in reversed(list(enumerate(questions))):
        if each.is_last_word and _meant(text, each.content, numbers=True) is not None:
            if not each.is_open:
                return Late(place, "answered" if each.answered else "expired")
            return Late(place, "not-asked")
    return None


def may_answer(content: dict[str, Any], sender: str | None) -> bool:
    """Whether somebody may answer: everybody in the chat, unless the question is for one person."""
    asked = content.get("askedOf")
    return asked is None or asked == sender


def open_for_s(content: dict[str, Any]) -> float:
    """How long the question can be answered."""
    given = content.get("expiresAfter")
    return float(given) if isinstance(given, (int, float)) and not isinstance(given, bool) and given > 0 else OPEN_S


def option_meant(text: str, content: dict[str, Any]) -> str | None:
    """The value of the one option that `text` can mean, by its number or its words."""
    return _meant(text, content, numbers=True)


def _meant(text: str, content: dict[str, Any], *, numbers: bool) -> str | None:
    options = content.get("options")
    if len(text) > LONGEST_ANSWER_CHARACTERS or not isinstance(options, list):
        return None
    said, number = _plain(text), _number(text)
    meant: set[str] = set()
    for place, option in enumerate(options, 1):
        if not isinstance(option, dict) or not isinstance(value := option.get("value"), str):
            continue
        words = {_plain(str(option.get(key))) for key in ("label", "selectedLabel", "value") if option.get(key)}
        if (said and said in words) or (numbers and number == place):
            meant.add(value)
    return meant.pop() if len(meant) == 1 else None


def _number(text: str) -> int | None:
    found = _NUMBER.fullmatch(unicodedata.normalize("NFKC", text).translate(_KEYCAP).strip())
    return int(found[1]) if found else None


def _plain(text: str) -> str:
    """Words without what people add or leave out when they type them again."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_AROUND)
