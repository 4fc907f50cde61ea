"""What bad sessions cost the others: round trips of many sessions with three bad ones among them, and without.

One of the three has a damaged mailbox, one a mailbox that somebody holds locked, and one is talked to without a pause.
All is real but the containers, which live in this process: mailboxes on disk, links, delivery. Quiet and disturbed
rounds take turns on one host, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import random
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.errors import HermitcrabError
from hermitcrab.model.messages import Address
from hermitcrab.model.sessions import Session
from hermitcrab.testing.scratch import NO_BUDGET_MB, add_chat, say, session_of
from hermitcrab.testing.simulation import Simulation
from hermitcrab_bench.figures import summary

AT_ONCE = 8
"""Sessions that are talked to at the same time."""

BAD_EVERY_S = 0.02
"""How often somebody writes to the damaged and to the locked one."""

MET_WITHIN_S = 60.0
"""A short round may be over before anybody has met the damage."""

IN_A_GROUP = 100


class _Bad:
    """The three, and what is wrong with them while a round is disturbed."""

    def __init__(self, simulation: Simulation, sessions: list[Session], addresses: list[Address]) -> None:
        self._simulation = simulation
        self._damaged, self._locked, self._busy = sessions
        self._addresses = addresses
        self.tried = self.answered = self.set_aside = 0

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Somebody writes to each of them all the time; those who fail try the next message."""
        home, mailboxes = self._simulation.home, self._simulation.host.mailboxes
        database = session_folders(home, self._damaged).mailbox / "outbound.db"
        await mailboxes.withhold(self._damaged.id, "it is being damaged")  # Closed: what is open lives in a cache.
        good = await to_thread.run_sync(database.read_bytes)
        await to_thread.run_sync(database.write_bytes, b"\0" * len(good))
        mailboxes.give_back(self._damaged.id)
        lock = session_folders(home, self._locked).mailbox / "inbound.db"
        with closing(sqlite3.connect(lock, isolation_level=None, check_same_thread=False)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            async with anyio.create_task_group() as tasks:
                for address in self._addresses[:2]:
                    tasks.start_soon(self._bother, address)
                tasks.start_soon(self._chat, self._addresses[2])
                yield
                with anyio.move_on_after(MET_WITHIN_S):
                    while self._damaged.id not in mailboxes.set_aside:  # noqa: ASYNC110  # nobody tells of that
                        await anyio.sleep(BAD_EVERY_S)
                self.set_aside += self._damaged.id in mailboxes.set_aside
                holder.execute("ROLLBACK")  # First: a write that waits for it is not called off.
                tasks.cancel_scope.cancel()
        await to_thread.run_sync(database.write_bytes, good)
        mailboxes.release(self._damaged.id)

    async def _bother(self, address: Address) -> None:
        async def once(number: int) -> None:
            with suppress(HermitcrabError):  # As it should.
                await say(self._simulation.host, address, f"bad-{number}", "hello?")

        async with anyio.create_task_group() as tasks:
            while True:
                self.tried += 1
                tasks.start_soon(once, self.tried)
                await anyio.sleep(BAD_EVERY_S)

    async def _chat(self, address: Address) -> None:
        while True:
            receipt = await say(self._simulation.host, address, f"busy-{self.answered}", "and then?")
            await self._simulation.channel.answer_to(receipt.row_ids[0])
            self.answered += 1


async def run(*, sessions: int = 1000, rounds: int = 3) -> dict[str, Any]:
    """`rounds` quiet and as many disturbed ones; in each, every good one of `sessions` says one thing."""
    with tempfile.TemporaryDirectory(prefix="crab-bench-") as folder:
        simulation = Simulation(
            Path(folder),
            max_running=sessions + 1,
            memory_budget_mb=NO_BUDGET_MB,
            concurrent_starts=16,
            quiet_before_freeze_s=86_400,
            quiet_before_stop_s=86_400,
        )
        await simulation.start()
        try:
            addresses = await _addresses(simulation, sessions)
            found = await _talk(simulation, addresses, "warm")
            bad = _Bad(simulation, [await session_of(simulation.host, each) for each in found.ids[:3]], addresses[:3])
            others = addresses[3:]
            quiet: list[float] = []
            disturbed: list[float] = []
            for number in range(rounds):
                quiet += (await _talk(simulation, others, f"quiet-{number}")).times_ms
                async with bad.at_work():
                    disturbed += (await _talk(simulation, others, f"disturbed-{number}")).times_ms
            before, after = summary(quiet), summary(disturbed)
            return {
                "p50_ratio": round(after["p50_ms"] / before["p50_ms"], 3),
                "p99_ratio": round(after["p99_ms"] / before["p99_ms"], 3),
                "quiet": before,
                "disturbed": after,
                "answered": len(quiet) + len(disturbed),
                "messages_to_the_bad": bad.tried,
                "rounds_with_damage": bad.set_aside,
                "answers_of_the_busy": bad.answered,
                "sessions": sessions,
                "rounds": rounds,
            }
        finally:
            await simulation.stop()


async def _addresses(simulation: Simulation, count: int) -> list[Address]:
    """Of sessions to be: threads in the chats of a few agent groups."""
    made: list[Address] = []
    while len(made) < count:
        _, chat = await add_chat(simulation.host, f"chats-{len(made)}", threads=True)
        made += [
            Address(channel_type=chat.channel_type, platform_id=chat.platform_id, thread_id=str(number))
            for number in range(min(IN_A_GROUP, count - len(made)))
        ]
    return made


class _Talk:
    def __init__(self, count: int) -> None:
        self.times_ms: list[float] = []
        self.ids: list[str] = [""] * count


async def _talk(simulation: Simulation, addresses: list[Address], key: str) -> _Talk:
    """One message to each of them in an order of chance, `AT_ONCE` at a time, and its answer."""
    talk = _Talk(len(addresses))
    order = list(range(len(addresses)))
    random.shuffle(order)

    async def person() -> None:
        while order:
            number = order.pop()
            began = time.monotonic()
            receipt = await say(simulation.host, addresses[number], f"{key}-{number}", key)
            at, _ = await simulation.channel.answer_to(receipt.row_ids[0])
            talk.times_ms.append((at - began) * 1000)
            talk.ids[number] = receipt.session_ids[0]

    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(person)
    return talk
