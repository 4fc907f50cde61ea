"""The ledger, as the commands show it: every message has one visible life, and what is stuck is named."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from hermitcrab.cli import messages as commands
from hermitcrab.containers.lifecycle.slot import SessionView
from hermitcrab.control.client import ControlClient
from hermitcrab.control.message_methods import MessageMethods
from hermitcrab.control.server import serving
from hermitcrab.errors import BadInputError, ConflictError, NotFoundError
from hermitcrab.mailbox.files import inbound_migrations, outbound_migrations
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import Generation, MessageId
from hermitcrab.model.messages import Address, InboundRow, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import Settings
from hermitcrab.store import schema, sessions
from hermitcrab.store.sqlite import connect
from hermitcrab.testing.fake_channel import FakeChannel, hangs, is_busy, is_empty, refuses

A = Address(channel_type="fake", platform_id="a")


@dataclass
class FakeRunner:
    shown: list[SessionView] = field(default_factory=list)
    requested: list[Session] = field(default_factory=list)

    def views(self) -> list[SessionView]:
        return self.shown

    def request(self, session: Session) -> None:
        self.requested.append(session)


@dataclass
class Desk:
    home: Home
    client: ControlClient
    runner: FakeRunner


@asynccontextmanager
async def at_desk(post: Any) -> AsyncIterator[Desk]:
    """The control methods over the post, and a client of them."""
    home, runner = Home(post.folder / "home"), FakeRunner()
    home.prepare()

    @dataclass
    class Host:
        store = post.store
        mailboxes = post.mailboxes
        settings = Settings()
        deliverer = post.deliverer

        def __post_init__(self) -> None:
            self.runner = runner

    found = MessageMethods(Host())  # type: ignore[arg-type]
    methods = {
        "messages.list": found.list,
        "messages.show": found.show,
        "messages.retry": found.retry,
        "delivery.doctor": found.doctor,
    }
    async with serving(home.run, methods), ControlClient.connect(home) as client:
        yield Desk(home, client, runner)


async def hear(post: Any, session: Session, key: str, **changes: Any) -> None:
    values: dict[str, Any] = {
        "kind": "chat",
        "timestamp": "2026-01-01T00:00:00Z",
        "content": {"text": f"say {key}"},
        "address": A,
    }
    row = InboundRow(id=MessageId(key), **(values | changes))
    await post.store.write(lambda connection: sessions.unsettle(connection, session.id))
    await post.mailboxes.run(session, lambda mailbox: mailbox.accept(row))


def events(shown: dict[str, Any]) -> list[str]:
    assert all(each["at"] for each in shown["events"]), shown
    return [each["what"] for each in shown["events"]]


async def test_the_whole_life_of_a_question_and_its_answer_is_linked(open_post: Any) -> None:
    channel = FakeChannel()
    channel.then(is_busy("slow down"))
    async with open_post(channel) as post, at_desk(post) as desk:
        session = await post.session("a")
        await hear(post, session, "m")
        assert (await desk.client.call("messages.show", message="m"))["message"]["state"] == "received"
        for generation in (1, 2):
            await post.mailboxes.run(
                session,
                lambda mailbox, generation=generation: mailbox.claim("t", [MessageId("m")], Generation(generation)),
            )
            shown = (await desk.client.call("messages.show", message="m"))["message"]
            assert (shown["state"], shown["attempts"]) == ("claimed", generation)
            if generation == 1:
                await post.mailboxes.run(session, lambda mailbox: mailbox.release_claims(Generation(2)))
        await post.mailboxes.run(session, lambda mailbox: mailbox.finish("t", [MessageId("m")], [], None))
        await post.say(session, "o", in_reply_to="m")
        post.deliverer.notify(session)
        await post.until(session, "o", "delivered")
        asked = await desk.client.call("messages.show", message="m")
        assert events(asked) == ["received", "claimed", "given back", "claimed", "completed"]
        assert asked["message"]["attempts"] == 2
        assert [each["id"] for each in asked["answers"]] == ["sess-fake-a/o"]
        said = await desk.client.call("messages.show", message="sess-fake-a/o")
        assert events(said) == ["said", "sending", "postponed", "sending", "delivered"]
        assert said["events"][2]["detail"] == "slow down"
        assert [each["id"] for each in said["answered"]] == ["sess-fake-a/m"]
        assert said["message"]["platform_message_id"] == "fake-1"


async def test_a_message_of_nothing_but_files_is_known_by_their_names(open_post: Any) -> None:
    async with open_post(FakeChannel()) as post, at_desk(post) as desk:
        await post.say(await post.session("a"), "o", content={"text": "", "files": ["a.txt", "b.txt"]})
        (listed,) = (await desk.client.call("messages.list"))["messages"]
        assert listed["text"] == "[file: a.txt, b.txt]"


async def test_listings_go_by_session_and_state_and_page_through_all(open_post: Any) -> None:
    channel = FakeChannel()
    channel.always(refuses("gone"), chat="b")
    async with open_post(channel) as post, at_desk(post) as desk:
        for chat in ("a", "b"):
            session = await post.session(chat)
            await hear(post, session, f"m-{chat}", address=Address(channel_type="fake", platform_id=chat))
            await post.say(session, f"o-{chat}")
            post.deliverer.notify(session)
        await post.until(await post.session("b"), "o-b", "failed")
        await post.until(await post.session("a"), "o-a", "delivered")
        await post.at_rest()
        everything = await desk.client.call("messages.list")
        ids = {each["id"].split("/")[1] for each in everything["messages"]}
        assert ids == {"m-a", "o-a", "m-b", "o-b", "undelivered-o-b"}
        assert everything["next_before"] is None
        for state, expected in (
            ("failed", {"o-b"}),
            ("delivered", {"o-a"}),
            ("received", {"m-a", "m-b", "undelivered-o-b"}),
            ("queued", set()),
            ("quarantined", set()),
        ):
            found = await desk.client.call("messages.list", state=state)
            assert {each["id"].split("/")[1] for each in found["messages"]} == expected, state
        one = await desk.client.call("messages.list", session="sess-fake-a", limit=1)
        assert [each["id"] for each in one["messages"]] == ["sess-fake-a/o-a"]
        with pytest.raises(BadInputError, match="no state 'lost'"):
            await desk.client.call("messages.list", state="lost")


@pytest.mark.parametrize("name", ["nothing", "sess-fake-a/nothing", "nowhere/o", "/", "a/b/c", "x" * 5000, "'; DROP--"])
async def test_a_message_that_there_is_not_is_said_so(open_post: Any, name: str) -> None:
    async with open_post(FakeChannel()) as post, at_desk(post) as desk:
        await post.say(await post.session("a"), "o")
        with pytest.raises((NotFoundError, BadInputError)):
            await desk.client.call("messages.show", message=name)


async def test_a_bare_id_of_several_sessions_must_be_told_apart(open_post: Any) -> None:
    async with open_post(FakeChannel()) as post, at_desk(post) as desk:
        for chat in ("a", "b"):
            await post.say(await post.session(chat), "o")
        with pytest.raises(ConflictError, match="2 sessions have a message 'o'") as raised:
            await desk.client.call("messages.show", message="o")
        assert "sess-fake-a/o" in raised.value.hint
        assert (await desk.client.call("messages.show", message="sess-fake-b/o"))["message"]["session"] == "sess-fake-b"


async def test_a_failed_delivery_is_tried_again_when_a_person_asks(open_post: Any) -> None:
    channel = FakeChannel()
    channel.then(refuses("blocked"))
    async with open_post(channel) as post, at_desk(post) as desk:
        session = await post.session("a")
        await post.say(session, "o")
        post.deliverer.notify(session)
        await post.until(session, "o", "failed")
        assert await desk.client.call("messages.retry", message="o") == {
            "message": "sess-fake-a/o",
            "as": "sess-fake-a/o",
        }
        await post.until(session, "o", "delivered")
        shown = await desk.client.call("messages.show", message="o")
        assert events(shown) == ["said", "sending", "failed", "sending", "delivered"]
        with pytest.raises(ConflictError, match="is delivered, so there is nothing"):
            await desk.client.call("messages.retry", message="o")


async def test_a_postponed_delivery_is_tried_at_once_when_a_person_asks(open_post: Any) -> None:
    channel = FakeChannel()
    channel.then(is_busy(retry_after_s=3600))
    async with open_post(channel) as post, at_desk(post) as desk:
        session = await post.session("a")
        await post.say(session, "o")
        post.deliverer.notify(session)
        await post.eventually(lambda: _postponed(post, session))
        await desk.client.call("messages.retry", message="o")
        await post.until(session, "o", "delivered")


async def test_a_message_that_failed_is_answered_anew_as_a_copy_of_itself(open_post: Any) -> None:
    async with open_post(FakeChannel()) as post, at_desk(post) as desk:
        session = await post.session("a")
        await hear(post, session, "m")
        await post.mailboxes.run(session, lambda mailbox: mailbox.finish("t", [MessageId("m")], [], "it went wrong"))
        again = await desk.client.call("messages.retry", message="m")
        assert again["as"] == "sess-fake-a/m~again-2"
        assert desk.runner.requested == [session]
        with pytest.raises(ConflictError, match="was repeated before"):
            await desk.client.call("messages.retry", message="m")
        await post.mailboxes.run(
            session, lambda mailbox: mailbox.finish("t", [MessageId("m~again-2")], [], "it went wrong")
        )
        assert (await desk.client.call("messages.retry", message="m~again-2"))["as"] == "sess-fake-a/m~again-3"
        (row,) = await post.mailboxes.run(session, lambda mailbox: mailbox.pending(limit=9))
        assert row.content == {"text": "say m"}
        assert (await desk.client.call("messages.show", message="m"))["message"]["reason"] == "it went wrong"


async def test_a_quarantined_message_is_called_so(open_post: Any) -> None:
    async with open_post(FakeChannel()) as post, at_desk(post) as desk:
        session = await post.session("a")
        await hear(post, session, "m")
        reason = "it ended its container 3 times"
        notice = OutboundRow(id=MessageId("n"), kind="chat", timestamp="2026-01-01T00:00:00Z", content={"text": "Oh."})
        await post.mailboxes.run(session, lambda mailbox: mailbox.quarantine(MessageId("m"), notice, reason))
        (found,) = (await desk.client.call("messages.list", state="quarantined"))["messages"]
        assert (found["id"], found["reason"]) == ("sess-fake-a/m", reason)
        assert (await desk.client.call("messages.list", state="failed"))["messages"] == []


async def test_the_doctor_finds_nothing_where_nothing_waits(open_post: Any, capsys: pytest.CaptureFixture[str]) -> None:
    async with open_post(FakeChannel()) as post, at_desk(post) as desk:
        assert await commands.doctor(home=desk.home) == 0
        assert capsys.readouterr().out == "Nothing waits to be answered or delivered.\n"


async def test_the_doctor_names_what_is_stuck_why_and_what_happens_next(
    open_post: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    channel, empty = FakeChannel(), FakeChannel(type="empty")
    channel.always(is_busy("the platform is down", retry_after_s=3000))
    empty.always(is_empty())
    async with open_post(channel, empty) as post, at_desk(post) as desk:
        session, at_home = await post.session("a"), await post.session("b", "empty")
        for each in (session, at_home):
            await post.store.write(lambda connection, each=each: sessions.unsettle(connection, each.id))
        for each in ("o1", "o2"):
            await post.say(session, each)
        later = (datetime.now(UTC) + timedelta(hours=2)).isoformat(timespec="milliseconds")
        await post.say(session, "later", deliver_after=later.replace("+00:00", "Z"))
        await post.say(at_home, "o")
        await hear(post, session, "m")
        for each in (session, at_home):
            post.deliverer.notify(each)
        await post.eventually(lambda: _postponed(post, session, "o1"))
        await post.eventually(lambda: _postponed(post, at_home))
        assert await commands.doctor(home=desk.home) == 0  # nobody has waited for long
        capsys.readouterr()
        for each in (session, at_home):
            await post.mailboxes.run(each, _age)
        found: dict[str, Any] = {}

        async def told() -> bool:
            """As it is between two attempts, which come every second where nobody is there."""
            assert await commands.doctor(json=True, home=desk.home) == 1
            for each in json.loads(capsys.readouterr().out)["waiting"]:
                found[each["id"].split("/")[1] + each["session"][-1]] = each
            return bool(found["ob"]["next"] == "sent as soon as somebody is there")

        await post.eventually(told)
        assert {key: each["stuck"] for key, each in found.items()} == {
            "ma": True,
            "o1a": True,
            "o2a": True,
            "latera": False,
            "ob": False,
        }
        assert found["o1a"]["reason"] == "the platform is down"
        assert found["o1a"]["next"].startswith("attempt 2; given up at the first attempt after 20")
        assert found["o1a"]["next_at"] > datetime.now(UTC).isoformat()
        assert found["o2a"]["next"] == "sent after what was said before it to the same address"
        assert found["latera"]["next"] == "is sent at its time"
        assert found["ma"]["next"].startswith("nobody attends its session")
        assert await commands.doctor(home=desk.home) == 1
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.startswith("yes ") for line in lines) == 3
        assert lines[-1] == "3 stuck. crab messages retry ID tries one now."


async def test_what_is_under_way_is_not_stuck(open_post: Any) -> None:
    channel = FakeChannel()
    channel.always(hangs())
    async with open_post(channel) as post, at_desk(post) as desk:
        session = await post.session("a")
        await post.store.write(lambda connection: sessions.unsettle(connection, session.id))
        await post.say(session, "o")
        post.deliverer.notify(session)
        await channel.until(lambda: channel.under_way == 1)
        (found,) = (await desk.client.call("delivery.doctor"))["waiting"]
        assert (found["stuck"], found["next"]) == (False, "its channel has it now")


async def test_a_mailbox_that_cannot_be_read_is_stuck_and_hides_no_other(
    open_post: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_post(FakeChannel()) as post, at_desk(post) as desk:
        for chat in ("a", "b"):
            await hear(post, await post.session(chat), "m")
        session = await post.session("a")
        await post.mailboxes.close_quiet(unused_since=anyio.current_time() + 1e6)
        (post.folder / "mailboxes" / session.id / "outbound.db").write_bytes(b"no database at all" * 100)
        found = await desk.client.call("delivery.doctor")
        assert {each["state"] for each in found["waiting"]} == {"unreadable", "received"}
        listed = await desk.client.call("messages.list")
        assert [each["session"] for each in listed["unreadable"]] == [session.id]
        assert [each["session"] for each in listed["messages"]] == ["sess-fake-b"]
        assert (await desk.client.call("messages.show", message="m"))["message"]["session"] == "sess-fake-b"
        assert await commands.doctor(home=desk.home) == 1
        table, told = capsys.readouterr().out.rstrip().rsplit("\n", 1)
        assert told == "1 stuck.", "no message of it can be tried again"
        assert f"crab sessions check {session.id}" in table


async def test_people_read_tables(open_post: Any, capsys: pytest.CaptureFixture[str]) -> None:
    channel = FakeChannel()
    channel.always(refuses("the bot was \x1b[31mblocked"))
    async with open_post(channel) as post, at_desk(post) as desk:
        session = await post.session("a")
        await hear(post, session, "m")
        await post.say(session, "o", in_reply_to="m")
        post.deliverer.notify(session)
        await post.until(session, "o", "failed")
        await commands.list_messages(home=desk.home, state="failed")
        heading, line = capsys.readouterr().out.splitlines()
        assert heading.split() == ["AT", "MESSAGE", "WAY", "STATE", "ATTEMPTS", "WHERE", "TEXT", "WHY"]
        assert "sess-fake-a/o" in line
        assert line.endswith("the bot was blocked")
        await commands.show("m", home=desk.home)
        shown = capsys.readouterr().out
        assert "ANSWERED BY" in shown
        await commands.show("o", home=desk.home)
        assert "ANSWERS" in capsys.readouterr().out
        await commands.retry("o", home=desk.home)
        assert capsys.readouterr().out == "It is tried again: crab messages show sess-fake-a/o\n"


def test_a_mailbox_of_an_earlier_version_keeps_its_ledger(tmp_path: Path) -> None:
    path = tmp_path / "inbound.db"
    connection = connect(path, small=True)
    schema.migrate(connection, path, inbound_migrations()[:2])
    connection.execute(
        "INSERT INTO messages_in (id, seq, timestamp, kind, content) VALUES ('m', 2, '2026-01-01T00:00:00Z', 'chat', '{}')"
    )
    connection.close()
    path = tmp_path / "outbound.db"
    connection = connect(path, small=True)
    schema.migrate(connection, path, outbound_migrations()[:2])
    for seq, (key, status) in enumerate((("o1", "delivered"), ("o2", "queued"), ("o3", "failed"))):
        connection.execute(
            "INSERT INTO messages_out (id, seq, timestamp, kind, channel_type, platform_id, content)"
            " VALUES (?, ?, '2026-01-01T00:00:00Z', 'chat', 'fake', 'a', '{\"text\":\"hi\"}')",
            (key, 2 * seq + 3),
        )
        connection.execute(
            "INSERT INTO deliveries (message_out_id, seq, status, attempts, reason, platform_message_id, updated_at)"
            " VALUES (?, ?, ?, 2, 'because', 'p', '2026-01-01T00:00:00Z')",
            (key, 2 * seq + 3, status),
        )
    connection.close()
    with Mailbox.open(tmp_path) as mailbox:
        states = [(each.id, each.state, each.attempts, each.reason) for each in mailbox.entries(None, 9)]
        assert states == [
            ("o3", "failed", 2, "because"),
            ("o2", "queued", 2, "because"),
            ("o1", "delivered", 2, "because"),
            ("m", "received", 0, None),
        ]
        heads, _ = mailbox.lanes()
        assert [(each.id, each.address) for each in heads] == [("o2", A)]
    reader = sqlite3.connect(path)
    assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    reader.close()


async def _postponed(post: Any, session: Session, key: str = "o") -> bool:
    row = await post.row(session, key)
    return bool(row.delivery == "queued" and row.attempts > 0)


def _age(mailbox: Mailbox) -> None:
    """Everything in it waits since an hour."""
    with mailbox._write_outbound():
        mailbox._out.execute("UPDATE deliveries SET queued_at = ?", (_hour_ago(),))
    with mailbox._write_inbound():
        mailbox._in.execute("UPDATE messages_in SET received_at = ?", (_hour_ago(),))


def _hour_ago() -> str:
    return (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
