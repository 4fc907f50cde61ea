"""Chat platforms of a history, seen from the people's side: what they wrote, and what they were shown.

A platform outlives hosts. It brings a message again until the host has said that it has it, and sometimes after that.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hermitcrab.channels.base import Choice, Delivery, Traits
from hermitcrab.errors import ChannelError, HermitcrabError, NobodyThereError
from hermitcrab.logic.pieces import Shows
from hermitcrab.model.messages import Address, ChannelMessage
from hermitcrab.store.clock import timestamp
from hermitcrab.testing.histories.life import CURRENT, stop_if_dead

if TYPE_CHECKING:
    from hermitcrab.app import Host
    from hermitcrab.testing.histories.world import World

TEXT_LENGTH = 200
BRINGS_AGAIN_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class Shown:
    """One thing that people see."""

    id: str
    chat: str
    key: str
    content: dict[str, Any]
    at_s: float
    """When the host said it, by the latest that the clock of the day had shown until then."""
    target: str | None
    whole_files: bool


@dataclass(eq=False)
class Platform:
    type: str
    world: World
    has_keys: bool
    """It shows one key once."""
    reaches_operator: bool = False
    shown: list[Shown] = field(default_factory=list)
    calls: int = 0

    def __post_init__(self) -> None:
        self._by_key: dict[str, Shown] = {}
        self.ill = 0.0
        """How often a call goes wrong."""
        self.down = False

    def show(self, delivery: Delivery, at_s: float) -> str:
        if self.has_keys and (known := self._by_key.get(delivery.key)) is not None:
            return known.id
        made = Shown(
            id=f"{self.type}-{len(self.shown) + 1}",
            chat=_chat(delivery.address),
            key=delivery.key,
            content=delivery.content,
            at_s=at_s,
            target=delivery.target,
            whole_files=all(
                each.path.stat().st_size == each.bytes
                and hashlib.sha256(each.path.read_bytes()).hexdigest() == each.sha256
                for each in delivery.files
            ),
        )
        self.shown.append(made)
        self._by_key[delivery.key] = made
        self.world.note("shown", self.type, made.chat, delivery.key)
        self.world.was_shown(self, made)
        return made.id


class PlatformChannel:
    """Implements `channels.base.Channel` for one life of a host."""

    def __init__(self, platform: Platform) -> None:
        self._platform, self._world = platform, platform.world
        self.type = platform.type
        self.supports_idempotency = platform.has_keys
        self.supports_threads = True
        self.traits = Traits(
            shows=Shows(text_length=TEXT_LENGTH, edits=True, reactions=True, questions=True, files=True),
            reaches_operator=platform.reaches_operator,
        )

    async def deliver(self, delivery: Delivery) -> str | None:
        platform, world, dice = self._platform, self._world, self._world.dice
        stop_if_dead()
        platform.calls, at_s = platform.calls + 1, world.latest_s()
        world.note("delivers", self.type, delivery.key)
        world.step("channel.called")
        await asyncio.sleep(dice.random() * 0.05)
        stop_if_dead()
        if platform.down:
            raise ChannelError("the platform is away", transient=True, retry_after_s=dice.choice([None, 0.5, 20.0]))
        if dice.random() < platform.ill:
            return await self._go_wrong(delivery, at_s, dice.randrange(8))
        found = platform.show(delivery, at_s)
        world.step("channel.shown")
        await asyncio.sleep(dice.random() * 0.05)
        stop_if_dead()
        return found

    async def _go_wrong(self, delivery: Delivery, at_s: float, how: int) -> str | None:
        platform = self._platform
        match how:
            case 0 | 1:
                raise ChannelError("too much at once", transient=True)
            case 2:
                raise ChannelError("this chat is closed", transient=False)
            case 3:
                raise NobodyThereError("nobody is there")
            case 4:
                platform.show(delivery, at_s)
                raise RuntimeError("the connection broke after it was sent")
            case 5:
                raise RuntimeError("the connection broke before it was sent")
            case 6:
                platform.show(delivery, at_s)
                await asyncio.sleep(3600)
            case _:
                await asyncio.sleep(20)  # slow, and then it works
                stop_if_dead()
                return platform.show(delivery, at_s)
        return None

    async def typing(self, address: Address) -> None:
        del address


@dataclass(slots=True)
class Event:
    """What a platform has to tell the host."""

    message: ChannelMessage | None = None
    choice: Choice | None = None
    settled: tuple[str, str | None] | None = None


@dataclass(eq=False)
class Chat:
    """One conversation, and what of it the host was not told yet."""

    name: str
    platform: Platform
    address: Address
    events: deque[Event] = field(default_factory=deque)
    written: list[str] = field(default_factory=list)
    """Ids of all messages, in the order in which people wrote them."""
    accepted: dict[str, None] = field(default_factory=dict)
    """Of those, what the host has said that it has."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, key: str, text: str) -> None:
        self.written.append(key)
        self.tell(Event(message=self.message(key, text)))

    def message(self, key: str, text: str) -> ChannelMessage:
        content = {"text": text, "sender": "somebody", "senderId": f"{self.platform.type}:1"}
        return ChannelMessage(id=key, address=self.address, content=content, timestamp=timestamp())

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self.changed.set()

    async def bring(self, host: Host) -> None:
        """One event after the other, each until the host has it. For one life of a host."""
        world, life = self.platform.world, CURRENT.get()
        while life is not None and not life.dead:
            if not self.events:
                self.changed.clear()
                await self.changed.wait()
                continue
            event = self.events[0]
            try:
                await self._bring_one(host, event)
            except (HermitcrabError, OSError) as error:
                world.note("not-taken", self.name, type(error).__name__)
                await asyncio.sleep(BRINGS_AGAIN_AFTER_S)
                continue
            stop_if_dead()
            self.events.popleft()
            if event.message is not None:
                self.accepted[event.message.id] = None
                world.note("accepted", self.name, event.message.id)
                if world.dice.random() < 0.05:
                    self.events.append(event)  # It brings it again, some time later.

    async def _bring_one(self, host: Host, event: Event) -> None:
        if event.message is not None:
            receipt = await host.router.receive(event.message)
            assert receipt.accepted, receipt.reason
        elif event.choice is not None:
            await host.router.choose(event.choice)
        elif event.settled is not None:
            key, failed = event.settled
            await host.router.settled(key, failed=failed)


def _chat(address: Address) -> str:
    return "/".join(each for each in (address.platform_id, address.thread_id) if each)
