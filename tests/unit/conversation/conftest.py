"""A deliverer over a real store and real mailboxes; only the channels are fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
import structlog
import structlog.testing

from hermitcrab.conversation.delivery import Deliverer
from hermitcrab.groups.creation import create_group
from hermitcrab.logic.retry import Backoff
from hermitcrab.logic.routing import EVERYTHING
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.groups import AgentGroup, MessagingGroup, Wiring
from hermitcrab.model.ids import MessageId, MessagingGroupId, SessionId, WiringId
from hermitcrab.model.messages import Address, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.settings.model import DeliverySettings
from hermitcrab.store import messaging_groups, sessions, wirings
from hermitcrab.store.database import Store
from hermitcrab.testing.fake_channel import FakeChannel

TIME = "2026-01-01T00:00:00.000Z"
AT_ONCE = Backoff(first_s=0.002, most_s=0.01)


@dataclass
class Post:
    """Sessions that say things, and the deliverer that carries them."""

    folder: Path
    store: Store
    mailboxes: Mailboxes
    deliverer: Deliverer
    channels: dict[str, FakeChannel]
    group: AgentGroup
    sessions: dict[str, Session] = field(default_factory=dict)

    async def session(self, chat: str, channel: str = "fake") -> Session:
        """The session of a chat, which is made and wired if need be."""
        name = f"{channel}-{chat}"
        if name in self.sessions:
            return self.sessions[name]
        mg = MessagingGroup(id=MessagingGroupId(f"mg-{name}"), channel_type=channel, platform_id=chat, name=name)
        wiring = Wiring(
            id=WiringId(f"mga-{name}"),
            messaging_group_id=mg.id,
            agent_group_id=self.group.id,
            engage_mode="pattern",
            engage_pattern=EVERYTHING,
        )
        made = Session(id=SessionId(f"sess-{name}"), agent_group_id=self.group.id, messaging_group_id=mg.id)

        def insert(connection: Any) -> Session:
            if messaging_groups.by_address(connection, Address(channel_type=channel, platform_id=chat)) is None:
                messaging_groups.insert(connection, mg)
                wirings.insert(connection, wiring)
            return sessions.find_or_insert(connection, made)

        self.sessions[name] = await self.store.write(insert)
        return self.sessions[name]

    async def say(self, session: Session, key: str, **changes: Any) -> OutboundRow:
        """A row of the agent's, as the link would commit it. Nothing is told to the deliverer yet."""
        channel, chat = session.id.removeprefix("sess-").split("-", 1)
        values: dict[str, Any] = {
            "kind": "chat",
            "timestamp": TIME,
            "content": {"text": key},
            "address": Address(channel_type=channel, platform_id=chat),
        }
        row = OutboundRow(id=MessageId(key), **(values | changes))
        (said,) = await self.mailboxes.run(session, lambda mailbox: mailbox.append([row]))
        return said

    async def row(self, session: Session, key: str) -> OutboundRow | None:
        return await self.mailboxes.run(session, lambda mailbox: mailbox.outbound(key))

    async def until(self, session: Session, key: str, *states: str) -> OutboundRow:
        """The row, once it is in one of these states."""

        async def arrived() -> OutboundRow | None:
            row = await self.row(session, key)
            return row if row is not None and row.delivery in states else None

        return await eventually(arrived)

    async def eventually(self, question: Callable[[], Awaitable[Any]]) -> Any:
        return await eventually(question)

    async def at_rest(self) -> None:
        """Until the deliverer keeps nothing in memory."""

        async def empty() -> bool:
            return not self.deliverer._outboxes

        await eventually(empty)


Found = TypeVar("Found")


async def eventually(question: Callable[[], Awaitable[Found | None]]) -> Found:
    """The first answer that is not empty: for what happens in a database and tells nobody here.

    The test's own timeout is the deadline.
    """
    while not (found := await question()):  # noqa: ASYNC110
        await anyio.sleep(0.002)
    return found


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Channels break here by the dozen, and drawing their tracebacks would take most of the time."""
    with structlog.testing.capture_logs():
        yield


OpenPost = Callable[..., Any]


@pytest.fixture
def open_post(tmp_path: Path) -> OpenPost:
    """`async with open_post(FakeChannel(), ...) as post`. The same folder again is the same host, restarted."""

    @asynccontextmanager
    async def opened(
        *channels: FakeChannel,
        settings: DeliverySettings | None = None,
        backoff: Backoff = AT_ONCE,
        folder: Path = tmp_path,
    ) -> AsyncIterator[Post]:
        by_type = {each.type: each for each in channels}
        async with Store.open(folder / "hermitcrab.db") as store:
            if (folder / "mailboxes").is_dir():
                from hermitcrab.store import agent_groups  # noqa: PLC0415

                (group,) = await store.read(agent_groups.all_groups)
            else:
                (folder / "mailboxes").mkdir()
                group = await create_group(store, folder="agent")
            async with Mailboxes(lambda session: folder / "mailboxes" / session.id) as mailboxes:
                deliverer = Deliverer(
                    store,
                    mailboxes,
                    by_type,
                    settings,
                    outbox_of=lambda session: folder / "outbox" / session.id,
                    backoff=backoff,
                )
                async with anyio.create_task_group() as tasks:
                    await tasks.start(deliverer.run)
                    yield Post(folder, store, mailboxes, deliverer, by_type, group)
                    tasks.cancel_scope.cancel()

    return opened
