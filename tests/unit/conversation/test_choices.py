"""Answers to agents' questions, and what platforms say later, find their way back to the session that asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from hermitcrab.channels.base import Choice, Traits
from hermitcrab.containers.runner import ContainerRunner
from hermitcrab.conversation.answering import open_again
from hermitcrab.conversation.router import Router
from hermitcrab.logic.kinds import checked
from hermitcrab.logic.pieces import Shows
from hermitcrab.model.ids import SessionId
from hermitcrab.model.messages import Address, ChannelMessage, InboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.store import destinations
from hermitcrab.testing.fake_channel import FakeChannel

QUESTION = {"type": "ask_question", "title": "Lunch", "question": "Where?", "options": ["here", "there"]}


class FakeRunner:
    def __init__(self) -> None:
        self.offered: list[InboundRow] = []

    @contextmanager
    def receiving(self, _session_id: SessionId) -> Iterator[bool]:
        yield True

    async def offer(self, _session: Session, row: InboundRow) -> None:
        if row.kind == "system":
            self.offered.append(row)

    def request(self, _session: Session) -> None:
        """Nobody is there to be woken."""


def router(post: Any, runner: FakeRunner) -> Router:
    return Router(
        post.store,
        post.mailboxes,
        cast("ContainerRunner", runner),
        message_bytes_at_most=10_000,
        inbox_of=lambda session: post.folder / "inbox" / session.id,
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
    channel, ended = FakeChannel(), list[tuple[str, str]]()
    async with open_post(channel) as post:
        post.deliverer._told_of_end = lambda _session, row: ended.append((row.id, row.delivery))
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
        assert ended == [("o1", "delivered"), ("o2", "delivered"), ("o3", "delivered"), ("o2", "failed")]
        await host.settled("sess-fake-a/o1", failed="too late")
        assert (await post.row(session, "o1")).delivery == "confirmed"


def typed(text: str, key: str = "m1", *, chat: str = "a", sender: str = "fake:1", thread: str | None = None) -> Any:
    return ChannelMessage(
        id=key,
        address=Address(channel_type="fake", platform_id=chat, thread_id=thread),
        content={"text": text, "sender": "somebody", "senderId": sender},
        timestamp="2026-01-01T00:00:00.000Z",
    )


async def ask(post: Any, session: Any, key: str, **changes: Any) -> None:
    content = {**checked({**QUESTION, **changes.pop("more", {})}, key), **changes}
    await post.say(session, key, kind="chat-sdk", content=content)
    post.deliverer.notify(session)
    await post.until(session, key, "delivered")


async def test_a_typed_answer_goes_to_the_oldest_open_question_of_its_chat(open_post: Any) -> None:
    channel, runner = FakeChannel(), FakeRunner()
    async with open_post(channel) as post:
        session, other = await post.session("a"), await post.session("b")
        for key in ("q1", "q2"):
            await ask(post, session, key)
        await ask(post, other, "q3")
        assert channel.texts("a")[0] == "Lunch\nWhere?\n1. here\n2. there\nAnswer with the number or the words."
        host = router(post, runner)
        first = await host.receive(typed("2", "m1"))
        assert (first.row_ids, first.session_ids) == (("qr-q1",), (session.id,))
        await host.receive(typed("HERE.", "m2", sender="fake:2"))
        assert [(each.id, each.content["selectedOption"], each.content["userId"]) for each in runner.offered] == [
            ("qr-q1", "there", "fake:1"),
            ("qr-q2", "here", "fake:2"),
        ]
        again = await host.receive(typed("2", "m1"))
        assert (again.row_ids, again.reason) == (("qr-q1",), "it was received before")
        assert len(runner.offered) == 2
        # Another chat's question is untouched.
        assert (await host.receive(typed("there", "m3", chat="b"))).row_ids == ("qr-q3",)


async def test_words_that_are_no_answer_are_an_ordinary_message(open_post: Any) -> None:
    runner = FakeRunner()
    async with open_post(FakeChannel()) as post:
        session = await post.session("a")
        host = router(post, runner)
        await host.receive(typed("2", "before"))
        await ask(post, session, "q1")
        for number, text in enumerate(("3", "maybe here", "there or here?", "")):
            assert (await host.receive(typed(text, f"m{number}"))).row_ids == (f"m{number}",)
        # What came before there was a question, and comes once more, does not answer it.
        assert (await host.receive(typed("2", "before"))).row_ids == ("before",)
        assert await post.mailboxes.run(session, lambda mailbox: mailbox.inbound("qr-q1")) is None


async def test_who_answers_too_late_is_told_and_the_words_are_a_message(open_post: Any) -> None:
    channel, runner = FakeChannel(), FakeRunner()
    async with open_post(channel) as post:
        session = await post.session("a")
        host = router(post, runner)
        await ask(post, session, "q1", expiresAfter=0.001)
        assert (await host.receive(typed("1"))).row_ids == ("m1",)
        post.deliverer.notify(session)
        await channel.until_shown(2)
        assert "cannot be answered any more" in channel.texts()[-1]
        assert not (await host.choose(Choice(key=f"{session.id}/q1", option=0, user_id="fake:1"))).accepted
        await ask(post, session, "q2")
        await host.choose(Choice(key=f"{session.id}/q2", option=0, user_id="fake:2"))
        assert (await host.receive(typed("2", "m2"))).row_ids == ("m2",)
        post.deliverer.notify(session)
        await channel.until_shown(4)
        assert "has been answered already" in channel.texts()[-1]
        # Once the agent has said something else, a number is nothing but a number.
        await post.say(session, "words")
        await host.receive(typed("2", "m3"))
        post.deliverer.notify(session)
        await channel.until_shown(5)
        assert channel.texts()[-1] == "words"


async def test_a_question_for_one_person_is_answered_by_nobody_else(open_post: Any) -> None:
    channel, runner = FakeChannel(), FakeRunner()
    async with open_post(channel) as post:
        session = await post.session("a")
        host = router(post, runner)
        await ask(post, session, "q1", askedOf="fake:1")
        assert (await host.receive(typed("1", "m1", sender="fake:2"))).row_ids == ("m1",)
        post.deliverer.notify(session)
        await channel.until_shown(2)
        assert "for somebody else to answer" in channel.texts()[-1]
        refused = await host.choose(Choice(key=f"{session.id}/q1", option=0, user_id="fake:2"))
        assert (refused.accepted, refused.reason) == (False, "the question is for somebody else to answer")
        assert (await host.receive(typed("1", "m2"))).row_ids == ("qr-q1",)


async def test_a_question_in_another_chat_than_the_sessions_own_is_answered_there(open_post: Any) -> None:
    runner = FakeRunner()
    async with open_post(FakeChannel()) as post:
        session, _ = await post.session("a"), await post.session("b")
        await post.store.write(
            lambda connection: destinations.insert(connection, post.group.id, "b", "channel", "mg-fake-b")
        )
        await post.say(
            session,
            "q1",
            kind="chat-sdk",
            content=checked(QUESTION, "q1"),
            address=Address(channel_type="fake", platform_id="b"),
        )
        post.deliverer.notify(session)
        await post.until(session, "q1", "delivered")
        receipt = await router(post, runner).receive(typed("here", chat="b"))
        assert (receipt.session_ids, receipt.row_ids) == ((session.id,), ("qr-q1",))


async def test_in_a_group_an_answer_needs_no_mention_and_other_words_do(open_post: Any) -> None:
    runner = FakeRunner()
    async with open_post(FakeChannel()) as post:
        session = await post.session("a")
        query = "UPDATE wirings SET engage_mode = 'mention', engage_pattern = NULL"
        await post.store.write(lambda connection: connection.execute(query))
        await ask(post, session, "q1")
        host = router(post, runner)
        other = replace(typed("what?", "m1"), is_group=True)
        assert (await host.receive(other)).reason == "no agent of this chat is addressed by it"
        assert (await host.receive(replace(typed("2", "m2"), is_group=True))).row_ids == ("qr-q1",)


async def test_a_question_that_came_with_its_session_from_another_home_can_be_answered(open_post: Any) -> None:
    runner = FakeRunner()
    async with open_post(FakeChannel()) as post:
        session = await post.session("a")
        for key in ("q1", "q2"):
            await ask(post, session, key)
        host = router(post, runner)
        await host.receive(typed("here", "m1"))
        # The other home's list of questions did not come along.
        await post.store.write(lambda connection: connection.execute("DELETE FROM questions"))
        await open_again(post.store, post.mailboxes, session)
        assert (await host.receive(typed("there", "m2"))).row_ids == ("qr-q2",)
        assert (await host.receive(typed("there", "m3"))).row_ids == ("m3",)


async def test_a_question_in_a_mailbox_that_cannot_be_read_stops_nobody(open_post: Any) -> None:
    async with open_post(FakeChannel()) as post:
        session, _ = await post.session("a"), await post.session("b")
        await post.store.write(
            lambda connection: destinations.insert(connection, post.group.id, "b", "channel", "mg-fake-b")
        )
        address = Address(channel_type="fake", platform_id="b")
        await post.say(session, "q1", kind="chat-sdk", content=checked(QUESTION, "q1"), address=address)
        post.deliverer.notify(session)
        await post.until(session, "q1", "delivered")
        await post.mailboxes.withhold(session.id, "it is being moved")
        assert (await router(post, FakeRunner()).receive(typed("here", chat="b"))).row_ids == ("m1",)
