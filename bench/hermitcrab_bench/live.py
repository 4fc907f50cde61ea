"""Sessions to measure with: new ones without a message, or live ones that have answered. For the modules beside it."""

from __future__ import annotations

from dataclasses import dataclass
from sqlite3 import Connection

import anyio

from hermitcrab.app import Host
from hermitcrab.groups.creation import create_group
from hermitcrab.model.groups import MessagingGroup
from hermitcrab.model.ids import MessagingGroupId, SessionId
from hermitcrab.model.messages import Address
from hermitcrab.model.sessions import Session
from hermitcrab.store import messaging_groups
from hermitcrab.store import sessions as session_queries
from hermitcrab.store.database import Store
from hermitcrab.testing.scratch import CHANNEL, RecordingChannel, add_chat, say, session_of


@dataclass(frozen=True, slots=True)
class LiveSession:
    session: Session
    address: Address


async def live_sessions(host: Host, channel: RecordingChannel, count: int) -> list[LiveSession]:
    """`count` sessions of as many groups and chats, all of which have answered once."""
    addresses = [(await add_chat(host, f"chat-{number}"))[1] for number in range(count)]
    found: dict[int, LiveSession] = {}
    at_once = anyio.Semaphore(2 * host.settings.containers.concurrent_starts)

    async def warm(number: int) -> None:
        async with at_once:
            receipt = await say(host, addresses[number], f"warm-{number}", "hello")
            await channel.answer_to(receipt.row_ids[0])
            found[number] = LiveSession(await session_of(host, receipt.session_ids[0]), addresses[number])

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(warm, number)
    return [found[number] for number in range(count)]


async def add_sessions(store: Store, count: int) -> list[Session]:
    """`count` sessions of one group, each a thread of one chat, in which nothing was said yet."""
    group = await create_group(store, folder="threads")
    chat = MessagingGroup(id=MessagingGroupId("mg-threads"), channel_type=CHANNEL, platform_id="threads")

    def insert(connection: Connection) -> list[Session]:
        messaging_groups.insert(connection, chat)
        return [
            session_queries.find_or_insert(
                connection,
                Session(
                    id=SessionId(f"sess-{number}"),
                    agent_group_id=group.id,
                    messaging_group_id=chat.id,
                    thread_id=f"thread-{number}",
                ),
            )
            for number in range(count)
        ]

    return await store.write(insert)
