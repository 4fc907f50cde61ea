"""One conversation of the self-test: says numbered messages, and hears the answers, over any number of hosts."""

from __future__ import annotations

import random
from collections.abc import Callable

import anyio

from hermitcrab.control.client import ControlClient
from hermitcrab.errors import BadInputError, HermitcrabError
from hermitcrab.selftest.tally import Tally
from hermitcrab.settings.home import Home

AGAIN_AFTER_S = 0.05


class Talker:
    def __init__(self, home: Home, group: str, *, seed: int, pause_s: float, heard: Callable[[], None]) -> None:
        self.group = group
        self.tally = Tally()
        self._home, self._pause_s, self._heard = home, pause_s, heard
        self._chance = random.Random(f"{seed}-{group}")  # noqa: S311  # reproducible, not secret
        self._seen: set[str] = set()
        self._news = anyio.Event()

    async def listen(self) -> None:
        """Hear what is delivered until cancelled. A delivery that is repeated under its key is shown once."""
        while True:
            try:
                async with ControlClient.connect(self._home) as client:
                    attachment = ""
                    async for event in client.stream("chat.attach", group=self.group):
                        if event["kind"] == "attached":
                            attachment = event["attachment"]
                        elif event["kind"] == "message":
                            if event["key"] not in self._seen:
                                self._seen.add(event["key"])
                                self._hear(event["content"].get("text", ""))
                            await client.call("chat.ack", attachment=attachment, key=event["key"])
            except HermitcrabError:
                await anyio.sleep(AGAIN_AFTER_S)  # The host is away; it is started again by whoever ended it.

    async def talk(self, *, until: anyio.Event, most: int | None = None) -> None:
        """Say one message after another, each as often as it takes until the host has taken it."""
        while not until.is_set() and (most is None or self.tally.said < most):
            number = self.tally.said + 1
            if not await self._say(number, until):
                return
            self.tally.said = number
            with anyio.move_on_after(self._chance.uniform(0.5, 1.5) * self._pause_s):
                await until.wait()

    async def _say(self, number: int, until: anyio.Event) -> bool:
        """False: it is not known whether the host has it, and there is no more time to ask again."""
        tried = False
        while True:
            if until.is_set() and not tried:
                return False
            tried = True
            try:
                async with ControlClient.connect(self._home) as client:
                    text = Tally.text(number)
                    await client.call("chat.send", group=self.group, id=f"{self.group}-{number}", text=text)
            except BadInputError:
                raise
            except HermitcrabError:
                await anyio.sleep(AGAIN_AFTER_S)
                continue
            return True

    async def complete(self) -> None:
        """Until everything that was said has come back."""
        while not self.tally.is_complete:
            await self._news.wait()

    def _hear(self, text: str) -> None:
        self.tally.hear(text)
        self._heard()
        self._news.set()
        self._news = anyio.Event()
