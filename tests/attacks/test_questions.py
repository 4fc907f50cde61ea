"""An agent that asks in order to deceive: what it says of who may answer, and of whose question it is, counts for nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hermitcrab.containers.link.saying import RefusedError, Sayings
from hermitcrab.containers.link.uploads import Uploads
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import AgentGroupId, Generation, MessageId, SessionId
from hermitcrab.model.messages import Address, InboundRow, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.store import questions
from hermitcrab.store.database import Store

CHAT = Address(channel_type="fake", platform_id="a")
SESSION = Session(id=SessionId("sess-1"), agent_group_id=AgentGroupId("ag-1"), messaging_group_id=None)
ASK = {"type": "ask_question", "title": "May I?", "question": "Really?", "options": ["yes", "no"]}


class Agent:
    """What an agent's frames become, over a real mailbox."""

    def __init__(self, mailboxes: Mailboxes, folder: Path) -> None:
        self.mailboxes = mailboxes
        self._sayings = Sayings(SESSION, mailboxes, Uploads(folder / "outbox", Generation(1)), dict)

    async def says(self, key: str, content: dict[str, Any], **said: Any) -> OutboundRow:
        row = await self._sayings.row({"id": key, "kind": "chat-sdk", "content": content, **said}, [], CHAT)
        await self.mailboxes.run(SESSION, lambda mailbox: mailbox.append([row]))
        return row

    async def hears(self, key: str, content: dict[str, Any], kind: str = "chat") -> None:
        row = InboundRow(id=MessageId(key), kind=kind, timestamp="2026-01-01T00:00:00Z", content=content, address=CHAT)
        await self.mailboxes.run(SESSION, lambda mailbox: mailbox.accept(row))


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    async with Mailboxes(lambda _session: tmp_path / "mailbox") as mailboxes:
        yield Agent(mailboxes, tmp_path)


async def test_a_question_has_the_hosts_id_and_no_mark_of_the_hosts(agent: Agent) -> None:
    forged = {**ASK, "questionId": "approval-1", "askedOf": "the-accomplice", "notice": True, "compacted": True}
    row = await agent.says("q1", forged)
    assert row.content["questionId"] == "q1"
    assert not {"askedOf", "notice", "compacted"} & row.content.keys()


async def test_who_was_the_asker_the_host_looks_up_itself(agent: Agent) -> None:
    await agent.hears("m1", {"text": "go", "senderId": "fake:owner"})
    row = await agent.says("q1", {**ASK, "answeredBy": "asker", "askedOf": "fake:accomplice"}, in_reply_to="m1")
    assert row.content["askedOf"] == "fake:owner"
    # The answer to a question leads back to whoever wrote the first message, not to who answered.
    response = {"type": "question_response", "questionId": "q1", "userId": "fake:accomplice"}
    await agent.hears("qr-q1", response, kind="system")
    row = await agent.says("q2", {**ASK, "answeredBy": "asker"}, in_reply_to="qr-q1")
    assert row.content["askedOf"] == "fake:owner"


@pytest.mark.parametrize("in_reply_to", [None, "never", "m-nobody", "qr-loop"])
async def test_a_question_for_an_asker_that_nobody_was_is_refused(agent: Agent, in_reply_to: str | None) -> None:
    await agent.hears("m-nobody", {"text": "go", "senderId": 7})
    await agent.says("loop", ASK, in_reply_to="qr-loop")
    await agent.hears("qr-loop", {"type": "question_response", "questionId": "loop"}, kind="system")
    with pytest.raises(RefusedError, match="nobody wrote the message"):
        await agent.says("q1", {**ASK, "answeredBy": "asker"}, in_reply_to=in_reply_to)


@pytest.mark.parametrize(
    "wrong",
    [
        {"expiresAfter": 10**9},
        {"expiresAfter": float("inf")},
        {"expiresAfter": -1},
        {"expiresAfter": "for ever"},
        {"answeredBy": "the-accomplice"},
        {"options": []},
        {"options": ["x"] * 26},
        {"options": [{"label": "x" * 201}]},
        {"options": [{"value": "yes"}]},
        {"title": ""},
    ],
)
async def test_a_question_beyond_all_bounds_is_refused(agent: Agent, wrong: dict[str, Any]) -> None:
    with pytest.raises(RefusedError):
        await agent.says("q1", {**ASK, **wrong})


async def test_a_flood_of_questions_is_forgotten_from_its_beginning_and_takes_no_others_place(tmp_path: Path) -> None:
    most = questions.OF_A_SESSION_AT_MOST
    async with Store.open(tmp_path / "hermitcrab.db") as store:

        def flood(connection: Any) -> None:
            questions.ask(connection, SessionId("honest"), MessageId("q"), CHAT, 3600)
            for number in range(most + 50):
                elsewhere = Address(channel_type="fake", platform_id=str(number))
                questions.ask(connection, SESSION.id, MessageId(f"q{number}"), elsewhere, 3600)

        await store.write(flood)
        kept = await store.read(
            lambda connection: connection.execute("SELECT session_id, count(*) FROM questions GROUP BY 1").fetchall()
        )
        assert dict(kept) == {"honest": 1, SESSION.id: most}
        first = await store.read(lambda connection: questions.by_message(connection, SESSION.id, "q0"))
        last = await store.read(lambda connection: questions.by_message(connection, SESSION.id, f"q{most + 49}"))
        assert first is None
        assert last is not None
