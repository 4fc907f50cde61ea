"""The agent's tools: what each call says, what it replies, and how a question's answer reaches the call that waits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.runner.test_turn import MAIN, TEAM, Play, row

from hermitcrab_runner.providers import base
from hermitcrab_runner.tools.catalogue import TOOLS
from hermitcrab_runner.tools.requests import InvalidError, Request, request_of
from hermitcrab_wire import frames
from hermitcrab_wire.limits import MAX_NESTING


class Calls:
    """A loop that works on a row, whose agent uses tools."""

    def __init__(self, **config: Any) -> None:
        self.play = Play(destinations=(MAIN, TEAM), **config)
        self.play.receive(row("r1"))
        self.replies: list[tuple[str, bool]] = []

    def use(self, name: str, **arguments: Any) -> frames.Out | None:
        """What the call said, if it said anything."""
        before = len(self.play.of_kind(frames.Out))
        self.play.loop.handle(base.ToolCall(name, arguments, lambda text, failed: self.replies.append((text, failed))))
        said = self.play.of_kind(frames.Out)[before:]
        return said[-1] if said else None

    def commit(self, out: frames.Out | None, seq: int | None = 5) -> None:
        assert out is not None
        self.play.loop.handle(frames.Committed(id=out.id, seq=seq))


def answer_to(question: frames.Out, value: str) -> dict[str, Any]:
    content = {
        "type": "question_response",
        "questionId": question.id,
        "selectedOption": value,
        "action": "question_response",
        "status": "answered",
        "result": {"answer": value},
    }
    return {"id": f"qr-{question.id}", "kind": "system", "trigger": True, "content": content}


OPTIONS = {"title": "Lunch", "question": "Where?", "options": ["here", "there"]}


def test_a_message_is_said_at_once_and_replied_to_when_the_host_has_it() -> None:
    calls = Calls()
    out = calls.use("send_message", text="half way")
    assert out is not None
    assert (out.content, out.to, out.in_reply_to) == ({"text": "half way"}, None, "r1")
    assert calls.replies == []
    calls.commit(out)
    assert calls.replies == [("Message sent to (current conversation) (id: 5)", False)]
    out = calls.use("send_message", text="to them", to="team", deliver_after="2030-05-01T09:00:00+02:00")
    assert out is not None
    assert (out.to, out.deliver_after) == ("team", "2030-05-01T07:00:00+00:00")
    calls.commit(out)
    assert calls.replies[-1] == ("Message sent to team (id: 5)", False)


def test_the_same_words_by_tool_and_as_the_answer_are_two_messages_and_the_same_ones_in_a_second_attempt() -> None:
    ids = []
    for _ in range(2):
        calls = Calls()
        first, second = calls.use("send_message", text="hi"), calls.use("send_message", text="hi")
        calls.play.answer("hi")
        (complete,) = calls.play.of_kind(frames.Complete)
        assert first is not None
        assert second is not None
        ids.append((first.id, second.id, complete.outs[0]["id"]))
    assert len(set(ids[0])) == 3
    assert ids[0] == ids[1]


def test_edits_and_reactions_name_a_message_by_its_number() -> None:
    calls = Calls()
    edit, reaction = (
        calls.use("edit_message", messageId=7, text="better"),
        calls.use("add_reaction", messageId="#2", emoji="👍"),
    )
    assert edit is not None
    assert reaction is not None
    assert edit.content == {"operation": "edit", "seq": 7, "text": "better"}
    assert reaction.content == {"operation": "reaction", "seq": 2, "emoji": "👍"}
    calls.commit(edit)
    calls.play.loop.handle(frames.Refused(id=reaction.id, code="unknown-message", text="there is no message #2"))
    assert calls.replies == [("Message edit queued for #7", False), ("Error: there is no message #2", True)]
    # The agent knows; its chat hears nothing of it.
    assert len(calls.play.of_kind(frames.Out)) == 2


def test_a_card_that_is_nested_deeper_than_a_message_may_be_is_refused() -> None:
    def card(levels: int) -> Request:
        """In the content there is the card, and in the card these lists."""
        return request_of("send_card", {"card": {"children": json.loads("[" * levels + "]" * levels)}}, (), "/")

    assert "card" in card(MAX_NESTING - 2).content
    with pytest.raises(InvalidError, match="nested more than"):
        card(MAX_NESTING - 1)


def test_a_file_goes_under_the_name_that_people_are_to_see(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    request = request_of("send_file", {"path": "a.txt", "filename": "b.txt", "text": "see"}, (), str(tmp_path))
    assert (request.content, request.files) == ({"text": "see", "files": ["b.txt"]}, ("a.txt",))
    for path, why in (("nothing.txt", "File not found"), (".", "Not a file"), ("\0", "File not found"), (7, "path is")):
        with pytest.raises(InvalidError, match=why):
            request_of("send_file", {"path": path}, (), str(tmp_path))


def test_an_answer_reaches_the_call_that_waits_and_ends_with_its_turn() -> None:
    calls = Calls()
    question = calls.use("ask_user_question", **OPTIONS)
    assert question is not None
    assert question.kind == "chat-sdk"
    calls.commit(question)
    assert calls.replies == []
    calls.play.receive(answer_to(question, "there"))
    assert calls.replies == [("there", False)]
    assert len(calls.play.provider.prompts) == 1, "the answer is no prompt of its own"
    calls.play.answer("Then there.")
    (complete,) = calls.play.of_kind(frames.Complete)
    assert complete.ids == ["r1", f"qr-{question.id}"]
    assert complete.outs[0]["in_reply_to"] == f"qr-{question.id}"
    assert [claim.ids for claim in calls.play.of_kind(frames.Claim)] == [["r1"], [f"qr-{question.id}"]]
    calls.play.acknowledge()
    assert not calls.play.loop.held


def test_an_answer_that_comes_too_late_is_a_message() -> None:
    calls = Calls()
    question = calls.use("ask_user_question", **OPTIONS, timeout=20)
    assert question is not None
    assert calls.play.loop.deadline == 1020.0
    calls.play.now = 1020.0
    calls.play.loop._check_time()
    text, failed = calls.replies[0]
    assert failed
    assert text.startswith("Error: Question timed out after 20s")
    calls.play.receive(answer_to(question, "here"))
    assert len(calls.replies) == 1
    calls.play.answer("I went on without.")
    assert 'action="question_response" status="answered"' in calls.play.provider.prompts[-1].text


def test_a_turn_that_begins_again_finds_the_answer_that_came_meanwhile() -> None:
    first = Calls()
    question = first.use("ask_user_question", **OPTIONS)
    assert question is not None
    for batches in ([[row("r1"), answer_to(question, "there")]], [[row("r1")], [answer_to(question, "there")]]):
        # The runner died, and another one gets both rows, in one frame or in two.
        second = Calls.__new__(Calls)
        second.play, second.replies = Play(destinations=(MAIN, TEAM)), []
        for batch in batches:
            second.play.receive(*batch)
        assert len(second.play.provider.prompts) == 1, "the answer waits for its question"
        again = second.use("ask_user_question", **OPTIONS)
        assert again is not None
        assert (again.id, again.in_reply_to) == (question.id, "r1")
        assert second.replies == [("there", False)]
        # What the host says of the repeat changes nothing, and nobody hears of it.
        second.play.loop.handle(frames.Refused(id=again.id, code="id-reused", text="it was said"))
        second.play.answer("Then there.")
        (complete,) = second.play.of_kind(frames.Complete)
        assert complete.ids == ["r1", f"qr-{question.id}"]
        assert [each["content"]["text"] for each in complete.outs] == ["Then there."]


def test_an_answer_that_nobody_asks_for_again_is_a_prompt_of_its_own_after_the_turn() -> None:
    question = Calls().use("ask_user_question", **OPTIONS)
    assert question is not None
    calls = Calls()
    calls.play.receive(answer_to(question, "there"), row("r2"))
    calls.play.answer("done")
    assert len(calls.play.provider.prompts) == 3
    assert "question_response" in calls.play.provider.prompts[1].text
    assert "question_response" not in calls.play.provider.prompts[2].text


def test_a_question_whose_turn_ends_waits_for_nothing() -> None:
    calls = Calls()
    calls.use("ask_user_question", **OPTIONS)
    calls.play.fail("it was interrupted", cancelled=True)
    assert calls.replies == [("Error: the turn is over", True)]
    assert calls.play.loop.deadline is None


def test_what_an_earlier_attempt_has_said_is_no_error() -> None:
    calls = Calls()
    out = calls.use("send_message", text="hi")
    assert out is not None
    calls.play.loop.handle(frames.Refused(id=out.id, code="id-reused", text="something else was said"))
    assert calls.replies == [("It has been sent before.", False)]


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("send_message", {}, "text is required"),
        ("send_message", {"text": "x", "to": "nobody"}, 'Unknown destination "nobody". Known: main, team'),
        ("send_message", {"text": "x", "to": ["main"]}, "Unknown destination"),
        ("send_message", {"text": "x", "deliver_after": "tomorrow"}, "invalid deliver_after: tomorrow"),
        ("send_message", {"text": "x" * 2_000_000}, "a message may have"),
        ("edit_message", {"messageId": 3}, "messageId and text are required"),
        ("edit_message", {"messageId": -3, "text": "x"}, "messageId and text are required"),
        ("add_reaction", {"messageId": 3}, "messageId and emoji are required"),
        ("ask_user_question", {"title": "x"}, "title, question, and options are required"),
        ("send_card", {"card": "x"}, "card is required"),
        ("send_card", {"card": {"title": float("nan")}}, "it cannot be sent"),
        ("install_packages", {}, "Unknown tool: install_packages"),
    ],
)
def test_a_call_that_cannot_be_carried_out_says_why(name: str, arguments: dict[str, Any], why: str) -> None:
    calls = Calls()
    assert calls.use(name, **arguments) is None
    ((text, failed),) = calls.replies
    assert failed
    assert why in text


def test_every_tool_of_the_catalogue_exists_and_no_other_parameter_is_required() -> None:
    for tool in TOOLS:
        with pytest.raises(InvalidError, match=r"required|not found"):
            request_of(tool.name, {}, (), "/nowhere")
        assert set(tool.schema["required"]) <= set(tool.schema["properties"])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([tool.name for tool in TOOLS])
keys = st.sampled_from(sorted({key for tool in TOOLS for key in tool.schema["properties"]}))


@given(names, st.dictionaries(keys, values))
def test_whatever_a_model_gives_a_call_is_carried_out_or_says_why(name: str, arguments: Mapping[str, Any]) -> None:
    with contextlib.suppress(InvalidError):
        assert isinstance(request_of(name, arguments, ("main",), "/nowhere"), Request)


def test_a_question_that_does_not_arrive_is_not_waited_for() -> None:
    calls = Calls()
    question = calls.use("ask_user_question", **OPTIONS)
    assert question is not None
    calls.commit(question)
    calls.play.loop.handle(frames.Delivered(id=question.id, platform_id="p"))
    assert calls.replies == []
    calls.play.loop.handle(frames.Delivered(id=question.id, failed="the chat does not exist"))
    assert calls.replies == [("Error: the question did not arrive: the chat does not exist", True)]
    calls.play.loop.handle(frames.Delivered(id="nothing", failed="x"))
