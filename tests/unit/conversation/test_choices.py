"""Answers to agents' questions, and what platforms say later, find their way back to the session that asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from hermitcrab.channels.base import Choice, Traits
from hermitcrab.containers.runner import ContainerRunner
from hermitcrab.conversation.router import Router
from hermitcrab.logic.kinds import checked
from hermitcrab.logic.pieces import Shows
from hermitcrab.model.ids import SessionId
from hermitcrab.model.messages import InboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.testing.fake_channel import FakeChannel

QUESTION = {"type": "ask_question", "title": "Lunch", "question": "Where?", "options": ["here", "there"]}


class FakeRunner:
    def __init__(self) -> None:
        self.offered: list[InboundRow] = []

    @contextmanager
    def receiving(self, _session_id: SessionId) -> Iterator[bool]:
        yield True

    async def offer(self, _session: Session, row: InboundRow) -> None:
        self.offered.append(row)


def router(post: Any, runner: FakeRunner) -> Router:
    return Router(
        post.store,
        post.mailboxes,
        cast("ContainerRunner", runner),
        message_bytes_at_most=10_000,
        failed_later=post.deliverer.failed_later,
    )


async def test_the_first_answer_to_a_question_comes_back_as_a_message_that_wants_an_answer(open_post: Any) -> None:
    channel, runner = FakeChannel(traits=Traits(shows=Shows(questions=True))), FakeRunner()
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.say(session, "q", kind="chat-sdk", content=checked(QUESTION, "q"))
        post.deliverer.notify(session)
        await post.until(session, "q", "delivered")
        key = channel.shown[0].delivery.key
        host = router(post, runner)
        wrong = await host.choose(Choice(key=key, option="elsewhere", user_id="fake:1"))
        assert (wrong.accepted, wrong.reason) == (False, "the question has no such option")
        assert (await host.choose(Choice(key=key, option=1, user_id="fake:1"))).accepted
        late = await host.choose(Choice(key=key, option="here", user_id="fake:2"))
        assert late.reason == "it was answered before"
        (row,) = runner.offered
        assert (row.kind, row.trigger) == ("system", True)
        assert row.content["selectedOption"] == "there"
        assert row.content["questionId"] == "q"
        assert row.content["userId"] == "fake:1"
        assert row.address == channel.shown[0].delivery.address


async def test_a_choice_that_belongs_to_no_question_changes_nothing(open_post: Any) -> None:
    runner = FakeRunner()
    async with open_post(FakeChannel()) as post:
        session = await post.session("a")
        await post.say(session, "o")
        host = router(post, runner)
        for key in ("sess-fake-a/o", "sess-fake-a/nothing", "nobody/o", "", "/", "x" * 10_000):
            assert not (await host.choose(Choice(key=key, option=0, user_id="u"))).accepted
        assert runner.offered == []


async def test_what_a_platform_says_later_of_a_message_is_on_record(open_post: Any) -> None:
    channel = FakeChannel()
    async with open_post(channel) as post:
        session = await post.session("a")
        for key in ("o1", "o2", "o3"):
            await post.say(session, key)
        post.deliverer.notify(session)
        await post.until(session, "o3", "delivered")
        host = router(post, FakeRunner())
        await host.settled("sess-fake-a/o1", failed=None)
        await host.settled("sess-fake-a/o2", failed="the number \ud800 is not in use")
        await host.settled("sess-fake-a/never", failed="x")
        await host.settled("nobody/o1", failed="x")
        assert (await post.row(session, "o1")).delivery == "confirmed"
        row = await post.row(session, "o2")
        assert row.delivery == "failed"
        assert "is not in use" in row.reason
        found = await post.eventually(lambda: post.mailboxes.run(session, lambda mailbox: mailbox.pending(limit=9)))
        assert [each.id for each in found] == ["undelivered-o2"]
        await host.settled("sess-fake-a/o1", failed="too late")
        assert (await post.row(session, "o1")).delivery == "confirmed"
