"""A whole host on the fake engine with scripted runners, which can be restarted and killed. For virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio

from hermitcrab.app import Host, open_host
from hermitcrab.containers.engine import EngineOptions
from hermitcrab.logic.spec import container_name
from hermitcrab.mailbox.counts import MailboxCounts
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import InstallationId, SessionId
from hermitcrab.model.messages import Address
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.settings.load import load
from hermitcrab.store import installation
from hermitcrab.store.database import Store
from hermitcrab.testing.fake_engine import FakeContainer, FakeEngine, FakeMachine
from hermitcrab.testing.scratch import CHANNEL, RecordingChannel, add_chat, say, session_of
from hermitcrab.testing.scripted_runner import Runners


class Simulation:
    """`await simulation.start()` before anything else. What is on the machine outlives the host, as it does outside."""

    def __init__(self, folder: Path, **containers: Any) -> None:
        self.home = Home(folder / "home")
        self._settings = containers
        self.machine = FakeMachine()
        self.runners = Runners(self.machine)
        self.chats: dict[str, tuple[Address, SessionId]] = {}
        self.said = 0
        self._engine: FakeEngine | None = None
        self._host: Host | None = None
        self._life: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()

    @property
    def host(self) -> Host:
        assert self._host is not None, "the host was not started"
        return self._host

    @property
    def engine(self) -> FakeEngine:
        assert self._engine is not None, "the host was not started"
        return self._engine

    @property
    def script(self) -> Any:
        return self.runners.script

    async def start(self) -> None:
        """A host on what the machine has. What is wrong with the engine stays wrong."""
        self.home.prepare()
        async with Store.open(self.home.database) as store:
            install: InstallationId = await store.write(installation.get_or_create)
        faults = self._engine.faults if self._engine else None
        self._engine = FakeEngine(
            EngineOptions(installation=install, folder=self.home.engine_folder("fake")),
            machine=self.machine,
            behaviour=self.runners.behaviour,
        )
        if faults is not None:
            self._engine.faults = faults
        self._leave = asyncio.Event()
        started = asyncio.Event()
        self._life = asyncio.get_running_loop().create_task(self._live(started))
        waiting = asyncio.get_running_loop().create_task(started.wait())
        await asyncio.wait({self._life, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._life.done():
            self._life.result()

    async def stop(self) -> None:
        """The host leaves in good order, and its containers with it."""
        await self.host.runner.close(keep_containers=False)
        await self.leave()

    async def leave(self) -> None:
        """The host leaves its containers behind."""
        assert self._life is not None
        self._leave.set()
        await self._life
        self._host = self._life = None

    async def crash(self) -> None:
        """The host goes in the middle of whatever it does."""
        assert self._life is not None
        self._life.cancel()
        await asyncio.wait({self._life})
        self._host = self._life = None

    async def add_session(self, name: str) -> SessionId:
        """A chat with an agent group of its own, its first message answered and its container ended."""
        group, address = await add_chat(self.host, name)
        receipt = await say(self.host, address, f"{name}-first", "first")
        session_id = SessionId(receipt.session_ids[0])
        self.chats[name] = (address, session_id)
        del group
        await self.answered()
        await self.host.runner.kill(session_id)
        return session_id

    async def add_sessions_of_one_group(self, names: list[str]) -> None:
        """Sessions of one agent group, one for each thread of its chat, without a container."""
        _, address = await add_chat(self.host, f"group-of-{names[0]}", threads=True)
        for name in names:
            thread = Address(channel_type=address.channel_type, platform_id=address.platform_id, thread_id=name)
            receipt = await say(self.host, thread, f"{name}-first", "first")
            self.chats[name] = (thread, SessionId(receipt.session_ids[0]))
        await self.answered()
        await self.host.runner.stop_all()

    async def say(self, name: str, text: str = "hello") -> str:
        """A message into that chat, on disk. Its id."""
        self.said += 1
        receipt = await say(self.host, self.chats[name][0], f"m-{self.said}", text)
        return receipt.row_ids[0]

    async def answered(self, *, within_s: float = 600.0) -> None:
        """Until nothing waits for an answer anywhere."""
        with anyio.fail_after(within_s):
            while sum(each.pending_triggers for each in await self.counts()):  # noqa: ASYNC110  # virtual time
                await anyio.sleep(1)

    async def counts(self) -> list[MailboxCounts]:
        found = []
        for _, session_id in self.chats.values():
            found.append(await self.host.mailboxes.run(await self.session(session_id), Mailbox.counts))
        return found

    async def session(self, session_id: SessionId) -> Session:
        return await session_of(self.host, session_id)

    def phase(self, name: str) -> str:
        """What `crab status` shows of it."""
        views = {view.session_id: view.phase for view in self.host.runner.views()}
        return views.get(self.chats[name][1], "absent")

    async def until_phase(self, name: str, *phases: str, within_s: float = 600.0) -> None:
        with anyio.fail_after(within_s):
            while self.phase(name) not in phases:  # noqa: ASYNC110  # virtual time
                await anyio.sleep(0.1)

    def container(self, name: str) -> FakeContainer | None:
        return self.machine.containers.get(container_name(self.host.installation, self.chats[name][1]))

    async def _live(self, started: asyncio.Event) -> None:
        settings = load(
            self.home.path,
            {
                "containers.engine": "bubblewrap",
                "agents.provider": "echo",
                **{f"containers.{key}": value for key, value in self._settings.items()},
            },
        )
        self.channel = RecordingChannel()
        async with open_host(
            self.home, settings, extra_channels={CHANNEL: self.channel}, keep_containers=True, engine=self._engine
        ) as self._host:
            started.set()
            await self._leave.wait()
