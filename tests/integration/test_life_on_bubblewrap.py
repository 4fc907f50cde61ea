"""Whatever happens in whatever order, on real sandboxes: fixed scripts of what the simulated lives do at random."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from hermitcrab.app import Host
from hermitcrab.logic.spec import container_name
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.container import ContainerSpec
from hermitcrab.model.ids import SessionId
from hermitcrab.model.messages import Address
from hermitcrab.store import deaths
from hermitcrab.testing.scratch import REPLY_WITHIN_S, add_chat, host_on, say, session_of

CHATS = ("one", "two", "three")
ACTIONS = ("say", "say", "wake", "stop", "restart", "die", "sweep")
LIVES_OF_A_HOST = 3
STEPS = 6


class Script:
    """One seed's. Two containers may run at a time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.addresses: dict[str, Address] = {}
        self.sessions: dict[str, SessionId] = {}
        self.said = 0
        self.made: set[tuple[str, int]] = set()
        """Session and generation of what the engine was told to make. A start that was called off before is no end."""

    def watch(self, host: Host, patched: pytest.MonkeyPatch) -> None:
        create = host.engine.create

        async def noted(spec: ContainerSpec) -> None:
            self.made.add((spec.session, spec.generation))
            await create(spec)

        patched.setattr(host.engine, "create", noted)

    async def begin(self, host: Host) -> None:
        for chat in CHATS:
            _, self.addresses[chat] = await add_chat(host, chat)
            await self.say(host, chat)

    async def say(self, host: Host, chat: str) -> None:
        self.said += 1
        receipt = await say(host, self.addresses[chat], f"m-{self.said}", "hello")
        self.sessions[chat] = SessionId(receipt.session_ids[0])

    async def step(self, host: Host) -> None:
        chat, action = self.random.choice(CHATS), self.random.choice(ACTIONS)
        session = await session_of(host, self.sessions[chat])
        match action:
            case "say":
                await self.say(host, chat)
            case "wake":
                with anyio.move_on_after(5):
                    await host.runner.wake(session)
            case "stop":
                await host.runner.kill(session.id)
            case "restart":
                await host.runner.restart(session, message="be new")
            case "die":
                view = await host.engine.inspect(container_name(host.installation, session.id))
                if view is not None and view.pid is not None:
                    with suppress(ProcessLookupError):  # It has ended since.
                        os.kill(view.pid, signal.SIGKILL)
            case "sweep":
                await host.reconciler.sweep()
        sessions = [view.session for view in await host.engine.containers()]
        assert len(sessions) == len(set(sessions))

    async def answered(self, host: Host) -> None:
        for chat in CHATS:
            session = await session_of(host, self.sessions[chat])
            host.runner.request(session)
            with anyio.fail_after(REPLY_WITHIN_S):
                while (await host.mailboxes.run(session, Mailbox.counts)).pending_triggers:  # noqa: ASYNC110
                    await anyio.sleep(0.05)


@pytest.mark.parametrize("seed", [1, 2])
async def test_everything_is_answered_and_every_end_certified_once(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(seed)
    options = {"max_running": 2, "stop_grace_s": 2.0, "drain_within_s": 1.0}
    for life in range(LIVES_OF_A_HOST):
        async with host_on(tmp_path / "home", "bubblewrap", keep=True, **options) as (host, _):
            script.watch(host, monkeypatch)
            if life == 0:
                await script.begin(host)
            for _step in range(STEPS):
                await script.step(host)
    async with host_on(tmp_path / "home", "bubblewrap", **options) as (host, _):
        script.watch(host, monkeypatch)
        await script.answered(host)
        await host.runner.close(keep_containers=False)
        assert await host.engine.containers() == []
        assert host.runner.admission().running == 0
        ends = [
            (each.session, each.generation)
            for each in await host.store.read(lambda connection: deaths.newest(connection, limit=1000))
        ]
        assert len(ends) == len(set(ends))
        assert script.made <= set(ends)
