"""The method `deaths` over a real store and real session folders."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hermitcrab.containers import certificates
from hermitcrab.containers.certificates import Certificate
from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.control.client import ControlClient
from hermitcrab.control.host import ControlledHost
from hermitcrab.control.server import serving
from hermitcrab.control.session_methods import SessionMethods
from hermitcrab.errors import BadInputError, NotFoundError
from hermitcrab.groups.creation import create_group
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.store import sessions
from hermitcrab.store.database import Store


class Scene:
    def __init__(self, home: Home, store: Store, client: ControlClient) -> None:
        self.home, self.store, self.client = home, store, client

    async def session(self, name: str) -> Session:
        group = await create_group(self.store, folder=name)
        session = Session(id=SessionId(f"s-{name}"), agent_group_id=group.id, messaging_group_id=None)
        await self.store.write(lambda connection: sessions.insert(connection, session))
        return session

    async def die(self, session: Session, generation: int, cause: str = "exited") -> None:
        certificate = Certificate(
            session=session.id,
            generation=Generation(generation),
            cause=cause,
            text="It ended.",
            ended_at="2026-01-01T00:00:00+00:00",
            log=[f"last words of {session.id} {generation}"],
        )
        await certificates.keep(self.store, session_folders(self.home, session).certificates, certificate)

    async def deaths(self, **params: object) -> list[dict[str, Any]]:
        return [each async for each in self.client.stream("deaths", **params)]


@asynccontextmanager
async def on_stage(path: Path) -> AsyncIterator[Scene]:
    home = Home(path / "home")
    home.prepare()
    async with Store.open(home.database) as store:
        host = cast("ControlledHost", SimpleNamespace(home=home, store=store))
        async with (
            serving(home.run, {"deaths": SessionMethods(host).deaths}),
            ControlClient.connect(home) as client,
        ):
            yield Scene(home, store, client)


async def test_ends_of_every_session_come_newest_first(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        ann, bob = await scene.session("ann"), await scene.session("bob")
        await scene.die(ann, 1)
        await scene.die(bob, 1, "hung")
        await scene.die(ann, 2)
        found = await scene.deaths()
        assert [(each["session"], each["generation"]) for each in found] == [(ann.id, 2), (bob.id, 1), (ann.id, 1)]
        assert found[1]["cause"] == "hung"
        assert not any("log" in each for each in found)
        assert len(await scene.deaths(limit=2)) == 2


async def test_one_session_is_named_by_id_or_group_and_has_only_its_own(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        ann, bob = await scene.session("ann"), await scene.session("bob")
        await scene.die(ann, 1)
        await scene.die(bob, 1)
        await scene.die(bob, 2)
        assert [each["generation"] for each in await scene.deaths(session="bob")] == [2, 1]
        assert [each["session"] for each in await scene.deaths(session=ann.id)] == [ann.id]
        assert [each["generation"] for each in await scene.deaths(session="bob", limit=1)] == [2]


async def test_last_lines_come_when_asked_for(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        ann, bob = await scene.session("ann"), await scene.session("bob")
        await scene.die(ann, 1)
        await scene.die(bob, 4)
        for params in ({}, {"session": "bob"}):
            found = await scene.deaths(logs=True, **params)
            assert found[0]["log"] == [f"last words of {bob.id} 4"]
        assert (await scene.deaths(logs=True))[1]["log"] == [f"last words of {ann.id} 1"]


async def test_an_end_certified_again_after_a_crash_is_told_once_as_at_first(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        ann = await scene.session("ann")
        await scene.die(ann, 1, "out-of-memory")
        await scene.die(ann, 1, "vanished")
        assert [each["cause"] for each in await scene.deaths()] == ["out-of-memory"]
        assert [each["cause"] for each in await scene.deaths(session="ann")] == ["out-of-memory"]


async def test_an_end_whose_session_is_unknown_is_still_listed(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        ann = await scene.session("ann")
        await scene.die(ann, 1)
        await scene.store.write(lambda connection: connection.execute("DELETE FROM sessions"))
        assert [each["log"] for each in await scene.deaths(logs=True)] == [[]]


async def test_they_can_be_asked_for_by_cause_and_time(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        ann, bob = await scene.session("ann"), await scene.session("bob")
        await scene.die(ann, 1, "hung")
        await scene.die(ann, 2)
        await scene.die(bob, 1, "hung")
        assert [each["session"] for each in await scene.deaths(cause="hung")] == [bob.id, ann.id]
        assert [each["generation"] for each in await scene.deaths(session="ann", cause="hung")] == [1]
        for session in (None, "ann"):
            assert await scene.deaths(session=session, since="2026-01-01T00:00:01+00:00") == []
            assert len(await scene.deaths(session=session, since="2026-01-01", cause="exited")) == 1
        with pytest.raises(BadInputError, match="sadness"):
            await scene.deaths(cause="sadness")
        with pytest.raises(BadInputError, match="no moment"):
            await scene.deaths(since="yesterday\0")


async def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        with pytest.raises(NotFoundError, match="nobody"):
            await scene.deaths(session="nobody")
        with pytest.raises(BadInputError, match="limit"):
            await scene.deaths(limit=0)
