"""A chat platform that does what a test wants: takes messages, refuses them, is slow, breaks, or forgets to answer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import anyio

from hermitcrab.channels.base import Delivery, Traits
from hermitcrab.errors import ChannelError, NobodyThereError
from hermitcrab.model.messages import Address

Behaviour = Callable[[Delivery], Awaitable[str | None]]
"""What one call of `deliver` does. It returns the platform's id of the message, or raises."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One message that people see."""

    id: str
    delivery: Delivery
    at: float
    """On the monotonic clock."""


@dataclass(eq=False)
class FakeChannel:
    """Implements `channels.base.Channel`. What people see is in `shown`, in the order in which it came."""

    type: str = "fake"
    supports_idempotency: bool = True
    supports_threads: bool = False
    traits: Traits = field(default_factory=Traits)
    shown: list[Shown] = field(default_factory=list)
    calls: list[Delivery] = field(default_factory=list)
    """Every call, whatever came of it."""
    typed: list[Address] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    def __post_init__(self) -> None:
        self._next: deque[Behaviour] = deque()
        self._for_chat: dict[str, Behaviour] = {}
        self._always: Behaviour | None = None
        self._changed = anyio.Event()

    # What it does.

    def then(self, *behaviours: Behaviour) -> None:
        """The next calls do these, one each; later ones take messages again."""
        self._next.extend(behaviours)

    def always(self, behaviour: Behaviour | None, *, chat: str | None = None) -> None:
        """Every call does this, or every call for one chat. None: it takes messages again."""
        if chat is None:
            self._always = behaviour
        elif behaviour is None:
            self._for_chat.pop(chat, None)
        else:
            self._for_chat[chat] = behaviour

    async def show(self, delivery: Delivery) -> str | None:
        """Take a message. One whose key is known is shown once, if the platform has keys."""
        if self.supports_idempotency:
            for each in self.shown:
                if each.delivery.key == delivery.key:
                    return each.id
        made = Shown(f"{self.type}-{len(self.shown) + 1}", delivery, time.monotonic())
        self.shown.append(made)
        return made.id

    # What the host calls.

    async def deliver(self, delivery: Delivery) -> str | None:
        self.calls.append(delivery)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self._tell()
        try:
            behaviour = self._for_chat.get(delivery.address.platform_id)
            if behaviour is None and self._next:
                behaviour = self._next.popleft()
            return await (behaviour or self._always or self.show)(delivery)
        finally:
            self.under_way -= 1
            self._tell()

    async def typing(self, address: Address) -> None:
        self.typed.append(address)
        self._tell()

    # What a test asks.

    def texts(self, chat: str | None = None) -> list[str]:
        """The words that people see, in one chat or in all."""
        return [
            str(each.delivery.content.get("text"))
            for each in self.shown
            if chat is None or each.delivery.address.platform_id == chat
        ]

    async def until(self, holds: Callable[[], bool], *, within_s: float = 300.0) -> None:
        """Wait until something holds that depends on what this channel was given."""
        with anyio.fail_after(within_s):
            while not holds():
                await self._changed.wait()

    async def until_shown(self, count: int) -> None:
        await self.until(lambda: len(self.shown) >= count)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def refuses(reason: str = "the chat does not exist") -> Behaviour:
    """For good."""

    async def behave(_delivery: Delivery) -> str | None:
        raise ChannelError(reason, transient=False)

    return behave


def is_busy(
    reason: str = "try again later",
    *,
    retry_after_s: float | None = None,
    limits: Literal["chat", "channel"] = "chat",
) -> Behaviour:
    """For now: this chat, or the whole channel."""

    async def behave(_delivery: Delivery) -> str | None:
        raise ChannelError(reason, transient=True, retry_after_s=retry_after_s, limits=limits)

    return behave


def is_empty() -> Behaviour:
    """Nobody is there."""

    async def behave(_delivery: Delivery) -> str | None:
        raise NobodyThereError("nobody is there")

    return behave


def raises(error: BaseException) -> Behaviour:
    """What no channel should."""

    async def behave(_delivery: Delivery) -> str | None:
        raise error

    return behave


def hangs(until: anyio.Event | None = None) -> Behaviour:
    """It does not answer, or only after `until`."""

    async def behave(_delivery: Delivery) -> str | None:
        await (until.wait() if until is not None else anyio.sleep_forever())
        return None

    return behave


def shows_and_hangs(channel: FakeChannel) -> Behaviour:
    """People see the message, and the host never hears of it."""

    async def behave(delivery: Delivery) -> str | None:
        await channel.show(delivery)
        await anyio.sleep_forever()
        return None

    return behave


def shows_after(channel: FakeChannel, event: anyio.Event) -> Behaviour:
    """It takes its time."""

    async def behave(delivery: Delivery) -> str | None:
        await event.wait()
        return await channel.show(delivery)

    return behave
