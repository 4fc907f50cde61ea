"""Everything that an agent can say besides its answer, from its container to a chat that has the kind, or lacks it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from hermitcrab.app import Host
from hermitcrab.channels.base import Choice, Delivery, Traits
from hermitcrab.errors import ChannelError
from hermitcrab.logic.pieces import Shows
from hermitcrab.model.messages import Address
from hermitcrab.store import sessions
from hermitcrab.testing.scratch import REPLY_WITHIN_S, RecordingChannel, add_chat, host_on, say

NeedEngine = Callable[[str], Mapping[str, str]]

EVERYTHING = Shows(edits=True, reactions=True, cards=True, questions=True, files=True)
ASK = {"title": "Lunch", "question": "Where?", "options": ["here", {"label": "At the sea", "value": "sea"}]}


class Chat:
    """A chat with the echo agent, and everything that people see in it."""

    def __init__(self, host: Host, channel: RecordingChannel, address: Address, folder: Path) -> None:
        self.host, self.channel, self.address, self.folder = host, channel, address, folder
        self.seen: list[Delivery] = []
        self._changed = anyio.Event()

    async def deliver(self, delivery: Delivery) -> str | None:
        self.seen.append(delivery)
        self._changed.set()
        self._changed = anyio.Event()
        return f"platform-{len(self.seen)}"

    async def until(self, count: int) -> Delivery:
        """The message of that number, once it is here."""
        with anyio.fail_after(REPLY_WITHIN_S):
            while len(self.seen) < count:
                await self._changed.wait()
        return self.seen[count - 1]

    async def tell(self, key: str, *uses: tuple[str, Mapping[str, Any]]) -> None:
        """One message for which the agent uses these tools."""
        lines = [f"/tool {name} {json.dumps(arguments)}" for name, arguments in uses]
        assert (await say(self.host, self.address, key, "\n".join(lines))).accepted

    @property
    def texts(self) -> list[Any]:
        return [each.content.get("text") for each in self.seen]


@asynccontextmanager
async def chat_on(home: Path, shows: Shows) -> AsyncIterator[Chat]:
    async with host_on(home, "bubblewrap", drain_within_s=0.2) as (host, channel):
        channel.traits = Traits(shows=shows)
        group, address = await add_chat(host, "chat")
        chat = Chat(host, channel, address, host.home.groups / group.folder)
        channel.deliver = chat.deliver  # type: ignore[method-assign]
        yield chat


@pytest.mark.parametrize("shows", [EVERYTHING, Shows()], ids=["a chat that has it all", "a chat that has words only"])
async def test_each_kind_arrives_as_the_chat_can_show_it(need_engine: NeedEngine, tmp_path: Path, shows: Shows) -> None:
    need_engine("bubblewrap")
    async with chat_on(tmp_path / "home", shows) as chat:
        chat.folder.mkdir(parents=True, exist_ok=True)
        (chat.folder / "notes.txt").write_text("my notes")
        (chat.folder / "notes.txt").chmod(0o644)
        soon = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
        await chat.tell(
            "one",
            ("send_message", {"text": "half way"}),
            ("edit_message", {"messageId": 3, "text": "nearly there"}),
            ("add_reaction", {"messageId": 2, "emoji": "👍"}),
            ("send_file", {"path": "notes.txt", "text": "as promised"}),
            ("send_card", {"card": {"title": "Build", "description": "It works."}}),
            ("send_message", {"text": "later", "deliver_after": soon}),
        )
        await chat.until(7)
        first, edit, reaction, file, card, *last = chat.seen
        answer = next(each for each in last if str(each.content.get("text")).startswith("Echo: "))
        assert "later" in [each.content.get("text") for each in last]
        assert first.content["text"] == "half way"
        assert answer.content["text"].splitlines() == [
            "Echo: Message sent to (current conversation) (id: 3)",
            "Message edit queued for #3",
            "Reaction queued for #2",
            "File sent to (current conversation) (id: 9, filename: notes.txt)",
            "Card sent (id: 11)",
            "Message sent to (current conversation) (id: 13)",
        ]
        if shows.edits:
            assert (edit.content["text"], edit.target) == ("nearly there", "platform-1")
            assert (reaction.content["emoji"], reaction.target) == ("👍", "one")
            assert ([each.name for each in file.files], file.content["text"]) == (["notes.txt"], "as promised")
            assert card.content["card"] == {"title": "Build", "description": "It works."}
        else:
            assert edit.content["text"] == "[corrected] nearly there"
            assert reaction.content["text"] == "[reacts with 👍]"
            assert file.content["text"] == "as promised\n[file: notes.txt; this chat takes no files]"
            assert card.content["text"] == "Build\nIt works."


@pytest.mark.parametrize("has_buttons", [True, False])
async def test_a_questions_answer_is_the_reply_of_the_tool_that_asked(
    need_engine: NeedEngine, tmp_path: Path, has_buttons: bool
) -> None:
    need_engine("bubblewrap")
    async with chat_on(tmp_path / "home", Shows(questions=has_buttons)) as chat:
        await chat.tell("one", ("ask_user_question", ASK), ("ask_user_question", {**ASK, "only_asker": True}))
        question = await chat.until(1)
        if has_buttons:
            assert [each["label"] for each in question.content["options"]] == ["here", "At the sea"]
            receipt = await chat.host.router.choose(Choice(key=question.key, option=1, user_id="recording:2"))
        else:
            assert question.content["text"].splitlines()[2:4] == ["1. here", "2. At the sea"]
            receipt = await say(chat.host, chat.address, "two", "2")
        assert receipt.row_ids[0].startswith("qr-")
        second = await chat.until(2)
        if has_buttons:
            choice = Choice(key=second.key, option=0, user_id="recording:2")
            assert not (await chat.host.router.choose(choice)).accepted
            await chat.host.router.choose(Choice(key=second.key, option=0, user_id="recording:1"))
        else:
            await say(chat.host, chat.address, "three", "Here")
        answer = await chat.until(3)
        assert answer.content["text"] == "Echo: sea\nhere"
        # The answers were part of the turn, and ended with it: nothing waits.
        (view,) = chat.host.runner.views()
        session = view.session_id
        found = await chat.host.store.read(lambda connection: sessions.by_id(connection, session))
        assert found is not None

        async def at_rest() -> bool:
            return not await chat.host.mailboxes.run(found, lambda mailbox: mailbox.has_work())

        with anyio.fail_after(REPLY_WITHIN_S):
            while not await at_rest():  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_a_question_that_outlives_its_container_is_answered_all_the_same(
    need_engine: NeedEngine, tmp_path: Path
) -> None:
    need_engine("bubblewrap")
    async with chat_on(tmp_path / "home", Shows()) as chat:
        await chat.tell("one", ("ask_user_question", ASK))
        await chat.until(1)
        await chat.host.runner.kill(chat.host.runner.views()[0].session_id)
        await say(chat.host, chat.address, "two", "at the sea")
        answer = await chat.until(2)
        # The next container asks again under the same key, which nobody sees twice, and finds the answer here.
        assert answer.content["text"].endswith("sea")
        assert len(chat.seen) == 2


async def test_a_question_that_its_chat_refuses_is_an_error_at_once(need_engine: NeedEngine, tmp_path: Path) -> None:
    need_engine("bubblewrap")
    async with chat_on(tmp_path / "home", EVERYTHING) as chat:
        take = chat.deliver

        async def refuse(delivery: Delivery) -> str | None:
            if delivery.content.get("type") == "ask_question":
                raise ChannelError("buttons are forbidden here", transient=False)
            return await take(delivery)

        chat.channel.deliver = refuse  # type: ignore[method-assign]
        await chat.tell("one", ("ask_user_question", ASK))
        answer = await chat.until(1)
        assert answer.content["text"] == "Echo: Error: the question did not arrive: buttons are forbidden here"
