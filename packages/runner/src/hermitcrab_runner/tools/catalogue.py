"""The tools as a harness lists them to its model: names, descriptions, JSON schemas. Only such a harness loads it."""

from __future__ import annotations

from typing import Any, NamedTuple

from hermitcrab_runner.tools.requests import ASK, DEFAULT_WAIT_S, LONGEST_WAIT_S

SERVER = "hermitcrab"
"""Under which name a harness knows all of them."""


class Tool(NamedTuple):
    name: str
    description: str
    schema: dict[str, Any]


def _tool(name: str, description: str, required: tuple[str, ...], **properties: dict[str, Any]) -> Tool:
    return Tool(name, description, {"type": "object", "properties": properties, "required": list(required)})


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


_TO = _text("Name of a destination. Leave it out for the chat that you are asked from.")
_AFTER = _text("Not to be delivered before this time, e.g. 2026-05-01T09:00. Without a zone: your own time zone.")
_MESSAGE = {"type": "integer", "description": "The message's id: from its `id` attribute, or from a tool's reply."}
_OPTION = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {
                "label": _text("On the button."),
                "selectedLabel": _text("Shown once it is chosen."),
                "value": _text("What you get."),
            },
            "required": ["label"],
        },
    ]
}

TOOLS = (
    _tool(
        "send_message",
        "Send a message at once, while you go on working. Your final answer is sent by itself; do not repeat it here.",
        ("text",),
        text=_text("The message."),
        to=_TO,
        deliver_after=_AFTER,
    ),
    _tool(
        "send_file",
        "Send a file of yours to a chat.",
        ("path",),
        path=_text("Absolute, or relative to your folder."),
        to=_TO,
        text=_text("Words that go with it."),
        filename=_text("The name that people see, if not the file's own."),
        deliver_after=_AFTER,
    ),
    _tool(
        "edit_message",
        "Replace the words of a message that you sent.",
        ("messageId", "text"),
        messageId=_MESSAGE,
        text=_text("What it is to say."),
    ),
    _tool(
        "add_reaction",
        "React to a message with an emoji.",
        ("messageId", "emoji"),
        messageId=_MESSAGE,
        emoji=_text("The emoji, or its short name such as thumbs_up."),
    ),
    _tool(
        ASK,
        "Ask the people in the chat to choose one of several options, and wait for the choice.",
        ("title", "question", "options"),
        title=_text("A few words on what it is about."),
        question=_text("The question."),
        options={"type": "array", "items": _OPTION, "minItems": 1, "maxItems": 25},
        to=_TO,
        timeout={
            "type": "number",
            "description": f"Seconds to wait, {DEFAULT_WAIT_S:g} if not given, {LONGEST_WAIT_S:g} at most."
            " A later answer comes to you as a message.",
        },
        only_asker={"type": "boolean", "description": "Only whoever wrote the message that you work on may answer."},
    ),
    _tool(
        "send_card",
        "Send a card: a title, a description, lines of text and links. It collects no answer.",
        ("card",),
        card={
            "type": "object",
            "properties": {
                "title": _text("In a few words."),
                "description": _text("In a few sentences."),
                "children": {"type": "array", "items": _text("A line of text.")},
                "actions": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"label": _text("Words."), "url": _text("Link.")}},
                },
            },
        },
        fallbackText=_text("For chats that have no cards."),
        to=_TO,
    ),
)
