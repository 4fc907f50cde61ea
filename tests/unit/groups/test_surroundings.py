"""What runners are told at hello: looked up for many together, and never older than the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

from hermitcrab.groups.creation import create_group
from hermitcrab.groups.images import GroupImages
from hermitcrab.groups.skills import SkillShelf
from hermitcrab.groups.surroundings import GroupSurveyor
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.groups import AgentGroup, MessagingGroup
from hermitcrab.model.ids import MessagingGroupId, SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import Settings
from hermitcrab.store import messaging_groups
from hermitcrab.store import sessions as session_queries
from hermitcrab.store.database import Store

CONFIG = ContainerConfig(assistant_name="Crusty")


@dataclass(frozen=True, slots=True)
class Surveyed:
    store: Store
    surveyor: GroupSurveyor
    group: AgentGroup
    sessions: list[Session]


@asynccontextmanager
async def surveyed(folder: Path, count: int) -> AsyncIterator[Surveyed]:
    """A group with so many sessions, each in a thread of one chat."""
    home, settings = Home(folder), Settings()
    async with Store.open(folder / "store.db") as store:
        group = await create_group(store, folder="threads")
        chat = MessagingGroup(id=MessagingGroupId("mg"), channel_type="fake", platform_id="place")
        made = [
            Session(
                id=SessionId(f"sess-{number}"),
                agent_group_id=group.id,
                messaging_group_id=chat.id,
                thread_id=f"thread-{number}",
            )
            for number in range(count)
        ]

        def insert(connection: Connection) -> None:
            messaging_groups.insert(connection, chat)
            for each in made:
                session_queries.insert(connection, each)

        await store.write(insert)
        images = GroupImages(store, home, settings, engine="bubblewrap", default=None)
        surveyor = GroupSurveyor(store, settings, SkillShelf(home), images=images, package_cache=folder / "cache")
        yield Surveyed(store, surveyor, group, made)


def test_what_was_foreseen_is_what_would_be_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with surveyed(tmp_path, 3) as here:
            read = [await here.surveyor.surroundings(each, here.group, CONFIG) for each in here.sessions]
            await here.surveyor.foresee(here.sessions, here.group, CONFIG)
            assert [await here.surveyor.surroundings(each, here.group, CONFIG) for each in here.sessions] == read
            assert [each.home_address.thread_id for each in read if each.home_address] == [
                "thread-0",
                "thread-1",
                "thread-2",
            ]

    asyncio.run(scenario())


def test_what_was_foreseen_is_read_again_after_a_write(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with surveyed(tmp_path, 1) as here:
            (session,) = here.sessions
            await here.surveyor.foresee(here.sessions, here.group, CONFIG)
            await here.store.write(
                lambda connection: connection.execute("UPDATE messaging_groups SET platform_id = 'moved'")
            )
            told = await here.surveyor.surroundings(session, here.group, CONFIG)
            assert told.home_address is not None
            assert told.home_address.platform_id == "moved"

    asyncio.run(scenario())


def test_what_was_foreseen_with_another_config_is_not_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with surveyed(tmp_path, 1) as here:
            (session,) = here.sessions
            await here.surveyor.foresee(here.sessions, here.group, CONFIG)
            told = await here.surveyor.surroundings(session, here.group, ContainerConfig(assistant_name="Sandy"))
            assert told.config["assistant_name"] == "Sandy"

    asyncio.run(scenario())
