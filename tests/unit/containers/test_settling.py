"""A session counts as settled as soon as nothing of it waits, so that the next host looks only where something does."""

from __future__ import annotations

import errno
import os
from typing import Any

import anyio
import pytest

from hermitcrab.channels.base import Delivery
from hermitcrab.containers import certificates
from hermitcrab.store import sessions
from hermitcrab.store.database import Store
from hermitcrab.testing.simulation import Simulation


class SlowChat:
    """Holds back what it is given until it is let go."""

    def __init__(self, simulation: Simulation) -> None:
        self.asked, self.let_go = anyio.Event(), anyio.Event()
        self._deliver = simulation.channel.deliver
        simulation.channel.deliver = self.deliver  # type: ignore[method-assign]

    async def deliver(self, delivery: Delivery) -> str | None:
        self.asked.set()
        await self.let_go.wait()
        return await self._deliver(delivery)


async def unsettled(simulation: Simulation) -> int:
    return await simulation.host.store.read(sessions.unsettled_count)


async def until_settled(simulation: Simulation) -> None:
    with anyio.fail_after(60):
        while await unsettled(simulation):  # noqa: ASYNC110  # virtual time
            await anyio.sleep(0.1)


async def answered_and_gone(simulation: Simulation) -> SlowChat:
    """An answer is on its way to a slow chat, and the container that gave it has ended."""
    chat = SlowChat(simulation)
    await simulation.say("chat")
    await simulation.answered()
    await chat.asked.wait()
    await simulation.host.runner.kill(simulation.chats["chat"][1])
    await simulation.until_phase("chat", "absent")
    return chat


def test_a_session_whose_last_delivery_comes_after_its_container_is_settled_then(play: Any) -> None:
    async def scenario(simulation: Simulation) -> None:
        await until_settled(simulation)
        chat = await answered_and_gone(simulation)
        assert await unsettled(simulation) == 1
        chat.let_go.set()
        await until_settled(simulation)

    play(scenario)


def test_a_host_that_leaves_settles_what_is_delivered_while_it_leaves(play: Any) -> None:
    async def scenario(simulation: Simulation) -> None:
        chat = SlowChat(simulation)
        await simulation.say("chat")
        await simulation.answered()
        await chat.asked.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(simulation.stop)
            await simulation.until_phase("chat", "absent")
            chat.let_go.set()
        async with Store.open(simulation.home.database) as store:
            assert await store.read(sessions.unsettled_count) == 0
        await simulation.start()

    play(scenario)


def test_what_a_host_that_leaves_could_not_deliver_is_left_to_the_next_one(play: Any) -> None:
    async def scenario(simulation: Simulation) -> None:
        await answered_and_gone(simulation)
        await simulation.stop()
        async with Store.open(simulation.home.database) as store:
            assert await store.read(sessions.unsettled_count) == 1
        await simulation.start()

    play(scenario)


def test_a_session_is_not_settled_while_a_certificate_of_it_is_owed(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, full = certificates.keep, True

    async def keep_if_there_is_room(*arguments: Any) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await keep(*arguments)

    async def scenario(simulation: Simulation) -> None:
        nonlocal full
        full = False
        await until_settled(simulation)
        full = True
        monkeypatch.setattr(certificates, "keep", keep_if_there_is_room)
        chat = await answered_and_gone(simulation)
        chat.let_go.set()
        await anyio.sleep(5)
        assert await unsettled(simulation) == 1
        await simulation.crash()
        full = False
        await simulation.start()
        session = await simulation.session(simulation.chats["chat"][1])
        ends = await simulation.host.runner.certificates(session)
        assert [each["generation"] for each in ends] == [1, 2]
        await until_settled(simulation)

    play(scenario)
