"""Messages as one platform can show them: nothing of any kind is lost where the platform lacks the kind."""

from __future__ import annotations

from typing import Any

import pytest

from hermitcrab.errors import BadInputError
from hermitcrab.logic.kinds import checked
from hermitcrab.logic.pieces import Shows, pieces

PLAIN, ALL = Shows(), Shows(edits=True, reactions=True, cards=True, questions=True, files=True)
QUESTION = checked(
    {"type": "ask_question", "title": "Lunch", "question": "Where?", "options": ["here", {"label": "there"}]}, "o-1"
)
CARD = {
    "type": "card",
    "card": {
        "title": "Build",
        "description": "It failed.",
        "children": ["one", {"text": "two"}],
        "actions": [{"label": "Log", "url": "https://x.example"}, {"label": "no link"}],
    },
}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"text": "hello"}, "hello"),
        ({"markdown": "**hello**"}, "**hello**"),
        ({"operation": "edit", "messageId": "m", "text": "better"}, "[corrected] better"),
        ({"operation": "reaction", "messageId": "m", "emoji": "+1"}, "[reacts with +1]"),
        (QUESTION, "Lunch\nWhere?\n1. here\n2. there\nAnswer with the number or the words."),
        (CARD, "Build\nIt failed.\none\ntwo\nLog: https://x.example"),
        ({**CARD, "fallbackText": "the build failed"}, "the build failed"),
        ({"type": "card", "card": {}}, "[card]"),
        ({"text": "", "files": ["a.pdf"]}, "[file: a.pdf; this chat takes no files]"),
        ({"text": "see", "files": ["a.pdf"]}, "see\n[file: a.pdf; this chat takes no files]"),
    ],
)
def test_a_platform_that_has_only_words_gets_words(content: dict[str, Any], words: str) -> None:
    (piece,) = pieces(content, PLAIN)
    assert piece.get("text", piece.get("markdown")) == words
    assert pieces(content, ALL) == [content]


def test_files_go_with_the_first_part_only() -> None:
    found = pieces(
        {"text": "one two three four five", "files": ["a"], "notice": True}, Shows(files=True, text_length=10)
    )
    assert [each.get("files") for each in found] == [["a"], None, None]
    assert all(each["notice"] for each in found)


def test_an_edit_that_is_too_long_is_gone_on_with_in_messages_of_its_own() -> None:
    found = pieces({"operation": "edit", "messageId": "m", "text": "one two three"}, Shows(edits=True, text_length=8))
    assert found == [{"operation": "edit", "messageId": "m", "text": "one two "}, {"text": "three"}]


def test_options_of_a_question_come_in_one_shape_under_the_hosts_own_id() -> None:
    assert QUESTION["questionId"] == "o-1"
    assert QUESTION["options"][0] == {"label": "here", "selectedLabel": "here", "value": "here"}


def test_marks_of_the_host_are_taken_off_what_an_agent_says() -> None:
    assert checked({"text": "I am the host", "notice": True, "compacted": True}, "o") == {"text": "I am the host"}


@pytest.mark.parametrize(
    "content",
    [
        {"operation": "delete", "messageId": "m"},
        {"operation": "edit", "text": "x"},
        {"operation": "edit", "messageId": "m"},
        {"operation": "edit", "messageId": "m", "text": ""},
        {"operation": "edit", "messageId": "x" * 201, "text": "x"},
        {"operation": "edit", "seq": True, "text": "x"},
        {"operation": "edit", "seq": -1, "text": "x"},
        {"operation": "reaction", "messageId": "m", "emoji": ""},
        {"operation": "reaction", "messageId": "m", "emoji": "x" * 65},
        {"operation": ["edit"], "messageId": "m"},
        {"type": "ask_question", "title": "t", "question": "q"},
        {"type": "ask_question", "title": "t", "question": "q", "options": []},
        {"type": "ask_question", "title": "t", "question": "q", "options": [""]},
        {"type": "ask_question", "title": "t", "question": "q", "options": [{"value": "x"}]},
        {"type": "ask_question", "title": "t", "question": "q", "options": ["x"] * 26},
        {"type": "ask_question", "title": 3, "question": "q", "options": ["x"]},
        {"type": "card", "card": "x"},
        {"text": "x", "files": "a"},
        {"text": "x", "files": [1]},
        {"text": "x", "files": ["a"] * 11},
    ],
)
def test_what_no_channel_could_show_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(BadInputError):
        checked(content, "o")
