"""A real host in this process on a scratch home, with a channel that records what it is given."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from hermitcrab.app import Host, open_host
from hermitcrab.channels.base import Delivery, Receipt, Traits
from hermitcrab.groups.creation import create_group
from hermitcrab.logic.routing import EVERYTHING
from hermitcrab.model.groups import AgentGroup, MessagingGroup, Wiring
from hermitcrab.model.ids import MessagingGroupId, WiringId
from hermitcrab.model.messages import Address, ChannelMessage
from hermitcrab.model.sessions import Session
from hermitcrab.observe.supervision import isolated
from hermitcrab.settings.home import Home
from hermitcrab.settings.load import load
from hermitcrab.store import messaging_groups, sessions, wirings

CHANNEL = "recording"
REPLY_WITHIN_S = 300.0
"""For whatever a test waits for. Nothing takes this long unless something is wrong, on the busiest machine."""

CLEARED_WITHIN_S = 60.0

NO_BUDGET_MB = 1_048_576
"""How many containers run there is whoever measures to say, not this machine's memory."""


class RecordingChannel:
    """Implements `channels.base.Channel`; notes the moment of each delivery."""

    type = CHANNEL
    supports_idempotency = True
    supports_threads = False
    traits = Traits()

    def __init__(self) -> None:
        self.delivered: dict[str, tuple[float, Delivery]] = {}
        """By the id of the row that was answered."""
        self._waiting: dict[str, anyio.Event] = {}
        self._next = anyio.Event()

    async def deliver(self, delivery: Delivery) -> str | None:
        now = time.monotonic()
        key = delivery.in_reply_to or delivery.key
        self.delivered.setdefault(key, (now, delivery))
        self._next.set()
        self._next = anyio.Event()
        if (event := self._waiting.pop(key, None)) is not None:
            event.set()
        return delivery.key

    async def typing(self, address: Address) -> None:
        del address

    async def next_delivery(self) -> None:
        """Until something is delivered."""
        await self._next.wait()

    async def answer_to(self, row_id: str) -> tuple[float, Delivery]:
        """The moment and the message, as soon as there is one."""
        if row_id not in self.delivered:
            event = self._waiting.setdefault(row_id, anyio.Event())
            with anyio.fail_after(REPLY_WITHIN_S):
                await event.wait()
        return self.delivered[row_id]


@asynccontextmanager
async def scratch_host(
    engine: str, overrides: dict[str, Any] | None = None, **containers: Any
) -> AsyncIterator[tuple[Host, RecordingChannel]]:
    """A host with the echo provider on `engine`, on a home that is removed afterwards."""
    containers.setdefault("memory_budget_mb", NO_BUDGET_MB)
    with tempfile.TemporaryDirectory(prefix="crab-scratch-") as folder:
        async with host_on(Path(folder) / "home", engine, overrides, **containers) as (host, channel):
            yield host, channel


@asynccontextmanager
async def host_on(
    path: Path, engine: str, overrides: dict[str, Any] | None = None, *, keep: bool = False, **containers: Any
) -> AsyncIterator[tuple[Host, RecordingChannel]]:
    """A host with the echo provider on the home `path`. `keep`: its containers go on when it leaves.

    When the block fails, nothing is left of what it launched by itself: that would go on beside all tests that follow.
    """
    home = Home(path)
    home.prepare()
    settings = load(
        home.path,
        {
            "containers.engine": engine,
            "agents.provider": "echo",
            **{f"containers.{stage}_deadline_s": REPLY_WITHIN_S for stage in ("create", "start", "hello")},
            **{f"containers.{key}": value for key, value in containers.items()},
            **(overrides or {}),
        },
    )
    channel = RecordingChannel()
    async with open_host(home, settings, extra_channels={CHANNEL: channel}, keep_containers=keep) as host:
        try:
            yield host, channel
        except BaseException:
            if not keep:
                with anyio.move_on_after(CLEARED_WITHIN_S, shield=True):
                    await isolated(_clear_away, host)
            raise


async def _clear_away(host: Host) -> None:
    for each in await host.engine.containers():
        await host.engine.remove(each.name)


async def add_chat(host: Host, name: str, *, threads: bool = False) -> tuple[AgentGroup, Address]:
    """An agent group with a chat of the recording channel wired to it. `threads`: each has a session of its own."""
    group = await create_group(host.store, folder=name)
    address = Address(channel_type=CHANNEL, platform_id=name)
    chat = MessagingGroup(
        id=MessagingGroupId(f"mg-{name}"), channel_type=CHANNEL, platform_id=name, name=name, is_group=threads
    )
    wiring = Wiring(
        id=WiringId(f"mga-{name}"),
        messaging_group_id=chat.id,
        agent_group_id=group.id,
        engage_mode="pattern",
        engage_pattern=EVERYTHING,
        session_mode="per-thread" if threads else "shared",
    )

    def insert(connection: Any) -> None:
        messaging_groups.insert(connection, chat)
        wirings.insert(connection, wiring)

    await host.store.write(insert)
    return group, address


async def say(host: Host, address: Address, key: str, text: str) -> Receipt:
    """One message into the chat; returns when it is on disk."""
    return await host.router.receive(
        ChannelMessage(
            id=key,
            address=address,
            content={"text": text, "sender": "somebody", "senderId": "recording:1"},
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
    )


async def session_of(host: Host, session_id: str) -> Session:
    found = await host.store.read(lambda connection: sessions.by_id(connection, session_id))  # type: ignore[arg-type]
    if found is None:
        raise LookupError(session_id)
    return found


async def process_rss_kb(pid: int) -> int:
    """Resident memory of one process."""

    def read() -> int:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0

    return await to_thread.run_sync(read)
