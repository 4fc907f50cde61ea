"""What a runner is handed at its greeting: whatever waits, also what came while it was being greeted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread

from hermitcrab.containers.link.exchange import Exchange, Outward, Surroundings
from hermitcrab.containers.link.server import Connection
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import AgentGroupId, Generation, MessageId, SessionId
from hermitcrab.model.messages import Address, InboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.settings.sockets import bind_unix, connect_unix
from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab.testing.links import serving
from hermitcrab_wire import codec, frames
from hermitcrab_wire.codec import LineBuffer
from hermitcrab_wire.limits import PROTOCOL
from hermitcrab_wire.parsing import parse

T = TypeVar("T")

CHAT = Address(channel_type="fake", platform_id="a")
SESSION = Session(id=SessionId("one"), agent_group_id=AgentGroupId("ag"), messaging_group_id=None)


class Watched(Mailboxes):
    """Mailboxes that say when a look is over, before whoever looked goes on."""

    looks = 0
    after_a_look: Callable[[], Awaitable[None]] | None = None

    async def run(self, session: Session, function: Callable[[Mailbox], T]) -> T:
        self.looks += 1
        return await super().run(session, function)

    async def look(self, session: Session, function: Callable[[Mailbox], T]) -> T:
        found = await super().look(session, function)
        self.looks += 1
        then, self.after_a_look = self.after_a_look, None
        if then is not None:
            await then()
        return found


@asynccontextmanager
async def linked(folder: Path) -> AsyncIterator[tuple[Watched, Exchange]]:
    async def surroundings() -> Surroundings:
        return Surroundings(config={}, destinations=[], home_address=CHAT)

    async with Watched(lambda _session: folder / "mailbox") as mailboxes:
        exchange = Exchange(
            SESSION,
            Generation(1),
            mailboxes=mailboxes,
            outbox=folder / "outbox",
            surroundings=surroundings,
            outward=Outward(
                ready=lambda _hello: None,
                said=lambda _rows: None,
                working=lambda: None,
                farewell=lambda _reason: None,
                offended=lambda _text: None,
                gone=lambda: None,
            ),
        )
        async with serving(folder, exchange):
            yield mailboxes, exchange


async def greeted(folder: Path, *, resumes: bool, rows: int) -> list[frames.Frame]:
    """What a runner hears first, up to so many rows after the welcome."""

    def dial() -> list[frames.Frame]:
        hello = frames.Hello(protocol=1, generation=1, provider="echo", version="test", resumes=resumes)
        return heard_by(folder, hello, lambda heard: bool(heard) and len(rows_in(heard)) >= rows)

    return await to_thread.run_sync(dial)


def heard_by(folder: Path, hello: frames.Hello, enough: Callable[[list[frames.Frame]], bool]) -> list[frames.Frame]:
    """What a runner hears that begins with this hello, until it is enough or the host hangs up. Blocks."""
    buffer, heard = LineBuffer(), list[frames.Frame]()
    with connect_unix(folder / "link.sock") as connection:
        connection.settimeout(DEADLINE_S)
        connection.sendall(codec.encode(hello.to_json()))
        while not enough(heard) and (data := connection.recv(65536)):
            heard += [parse(codec.decode(line), frames.FROM_HOST) for line in buffer.feed(data)]
    return heard


def row(key: str) -> InboundRow:
    return InboundRow(
        id=MessageId(key), kind="chat", timestamp="2026-01-01T00:00:00.000Z", content={"text": key}, address=CHAT
    )


def rows_in(heard: list[frames.Frame]) -> list[str]:
    return [each["id"] for frame in heard if isinstance(frame, frames.Inbound) for each in frame.rows]


@pytest.mark.parametrize("resumes", [False, True])
def test_what_waits_is_handed_over(tmp_path: Path, *, resumes: bool) -> None:
    async def scenario() -> None:
        async with linked(tmp_path) as (mailboxes, _):
            await mailboxes.run(SESSION, lambda mailbox: mailbox.accept(row("early")))
            assert rows_in(await greeted(tmp_path, resumes=resumes, rows=1)) == ["early"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("generation", "protocol", "code"),
    [(0, PROTOCOL, "stale-generation"), (2, PROTOCOL, "stale-generation"), (1, PROTOCOL + 1, "protocol")],
)
def test_who_is_of_another_generation_or_speaks_another_protocol_is_told_so_and_handed_nothing(
    tmp_path: Path, generation: int, protocol: int, code: str
) -> None:
    async def scenario() -> None:
        async with linked(tmp_path) as (mailboxes, exchange):
            await mailboxes.run(SESSION, lambda mailbox: mailbox.accept(row("waits")))
            hello = frames.Hello(protocol=protocol, generation=generation, provider="echo", version="test")
            heard = await to_thread.run_sync(heard_by, tmp_path, hello, lambda _heard: False)
            assert [each.code for each in heard if isinstance(each, frames.Refused)] == [code]
            assert len(heard) == 1
            assert not exchange.connected
            assert rows_in(await greeted(tmp_path, resumes=False, rows=1)) == ["waits"], "its own gets in after it"

    asyncio.run(scenario())


def test_a_link_is_served_whatever_has_the_number_of_the_descriptor_that_its_address_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as opened:

        def bind_and_open(folder: Path, name: str, mode: int) -> socket.socket:
            """While one session's socket is served, other sessions' files are opened."""
            bound = bind_unix(folder, name, mode)
            opened.enter_context(Path("/dev/null").open())
            return bound

        async def scenario() -> None:
            async with linked(tmp_path) as (mailboxes, _):
                await mailboxes.run(SESSION, lambda mailbox: mailbox.accept(row("early")))
                assert rows_in(await greeted(tmp_path, resumes=False, rows=1)) == ["early"]

        monkeypatch.setattr("hermitcrab.containers.link.server.bind_unix", bind_and_open)
        asyncio.run(scenario())


def test_what_comes_between_the_look_into_the_mailbox_and_the_welcome_is_handed_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with linked(tmp_path) as (mailboxes, exchange):

            async def a_message_comes() -> None:
                accepted = await mailboxes.run(SESSION, lambda mailbox: mailbox.accept(row("between")))
                assert accepted is not None
                await exchange.offer(accepted)

            mailboxes.after_a_look = a_message_comes
            assert rows_in(await greeted(tmp_path, resumes=True, rows=1)) == ["between"]

    asyncio.run(scenario())


def test_a_session_in_which_nothing_waits_is_looked_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with linked(tmp_path) as (mailboxes, exchange):
            heard = await greeted(tmp_path, resumes=True, rows=0)
            assert [type(each) for each in heard] == [frames.Welcome]
            assert mailboxes.looks == 1  # and none after the welcome
            while exchange.connected:
                await anyio.lowlevel.checkpoint()
            assert not exchange.has_work

    asyncio.run(scenario())


def test_a_runner_that_an_earlier_host_greeted_hears_what_was_seen_ahead(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with linked(tmp_path) as (mailboxes, _):
            await mailboxes.run(SESSION, lambda mailbox: mailbox.set_state("key", "value"))
        async with linked(tmp_path) as (mailboxes, _):
            await mailboxes.foresee([SESSION])
            (welcome,) = await greeted(tmp_path, resumes=True, rows=0)
            assert isinstance(welcome, frames.Welcome)
            assert welcome.state == {"key": "value"}
            assert mailboxes.looks == 0

    asyncio.run(scenario())


def test_what_came_after_the_mailbox_was_seen_ahead_is_handed_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with linked(tmp_path) as (mailboxes, _):
            await mailboxes.run(SESSION, lambda mailbox: mailbox.state())
        async with linked(tmp_path) as (mailboxes, _):
            await mailboxes.foresee([SESSION])
            await mailboxes.run(SESSION, lambda mailbox: mailbox.accept(row("after")))
            assert rows_in(await greeted(tmp_path, resumes=True, rows=1)) == ["after"]

    asyncio.run(scenario())


def test_what_waited_when_the_mailbox_was_seen_ahead_is_handed_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with linked(tmp_path) as (mailboxes, _):
            await mailboxes.run(SESSION, lambda mailbox: mailbox.accept(row("before")))
        async with linked(tmp_path) as (mailboxes, _):
            await mailboxes.foresee([SESSION])
            assert rows_in(await greeted(tmp_path, resumes=True, rows=1)) == ["before"]

    asyncio.run(scenario())


async def test_what_follows_while_a_peer_does_not_read_is_held_together_and_arrives_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_unix_connection(sock=ours)
    lying: list[int] = []
    write = writer.write

    def watched(data: bytes) -> None:
        lying.append(writer.transport.get_write_buffer_size())
        write(data)

    monkeypatch.setattr(writer, "write", watched)
    connection = Connection(writer)
    sent = [str(number) for number in range(20_000)]
    for each in sent:
        assert connection.send(frames.Refused(code="x", text=each))
    assert not any(lying), "nothing is added piece by piece to what lies there"

    def hear() -> list[str]:
        buffer, heard = LineBuffer(), list[str]()
        with theirs:
            theirs.settimeout(DEADLINE_S)
            while len(heard) < len(sent):
                heard += [str(codec.decode(line)["text"]) for line in buffer.feed(theirs.recv(65536))]
        return heard

    assert await to_thread.run_sync(hear) == sent
    connection.cut()
