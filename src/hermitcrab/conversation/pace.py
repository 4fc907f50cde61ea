"""How much goes to each channel at once, and how fast: a slow or strict channel holds back its own messages only."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from hermitcrab.channels.base import Channel
from hermitcrab.logic.rate import Bucket, Rate
from hermitcrab.model.messages import Address

AT_ONCE = 32
"""Messages under way to one channel at the same time."""

CHATS_REMEMBERED = 4096
"""Chats of which it is known how fast they were written to; beyond, those that have rested are forgotten."""

Key = TypeVar("Key")


class Pace:
    def __init__(self, channels: Mapping[str, Channel], *, at_once: int = AT_ONCE) -> None:
        self._channels = channels
        self._at_once = {name: anyio.Semaphore(at_once) for name in channels}
        self._paused_until: dict[str, float] = {}
        self._by_channel: dict[str, Bucket] = {}
        self._by_chat: dict[tuple[str, str], Bucket] = {}

    def pause(self, channel_type: str, seconds: float) -> None:
        """Send nothing more through that channel for so long. What is under way goes on."""
        until = time.monotonic() + seconds
        self._paused_until[channel_type] = max(until, self._paused_until.get(channel_type, until))

    def paused(self) -> dict[str, float]:
        """Seconds that are left of each pause."""
        now = time.monotonic()
        self._paused_until = {each: until for each, until in self._paused_until.items() if until > now}
        return {each: until - now for each, until in self._paused_until.items()}

    @asynccontextmanager
    async def turn(self, address: Address | None) -> AsyncIterator[None]:
        """Wait until a message may be sent there; it is under way while the context is open."""
        channel = self._channels.get(address.channel_type) if address is not None else None
        if channel is None or address is None:
            yield
            return
        # The chat first: one that must wait long takes no place of the channel meanwhile.
        if (rate := channel.traits.chat_rate) is not None:
            await self._wait(self._by_chat, (channel.type, address.platform_id), rate)
            self._forget_rested(rate)
        if (rate := channel.traits.rate) is not None:
            await self._wait(self._by_channel, channel.type, rate)
        while True:
            async with self._at_once[channel.type]:
                # Only now: a pause may have begun while this waited for its place.
                if (left_s := self.paused().get(channel.type)) is None:
                    yield
                    return
            await anyio.sleep(left_s)

    async def _wait(self, buckets: dict[Key, Bucket], key: Key, rate: Rate) -> None:
        now = time.monotonic()
        buckets[key], wait_s = (buckets.get(key) or Bucket.full(rate, now)).take(rate, now)
        if wait_s > 0:
            await anyio.sleep(wait_s)

    def _forget_rested(self, rate: Rate) -> None:
        if len(self._by_chat) > CHATS_REMEMBERED:
            now = time.monotonic()
            self._by_chat = {key: each for key, each in self._by_chat.items() if not each.rested(rate, now)}
