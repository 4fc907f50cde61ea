"""One conversation of the self-test: says numbered messages, and hears the answers, over any number of hosts."""

from __future__ import annotations

import random

import anyio

from hermitcrab.control.client import ControlClient
from hermitcrab.errors import BadInputError, HermitcrabError
from hermitcrab.selftest.tally import Tally
from hermitcrab.settings.home import Home

AGAIN_AFTER_S = 0.05


class Talker:
    def __init__(self, home: Home, group: str, *, seed: int, pause_s: float) -> None:
        self.group = group
        self.tally = Tally()
        self._home, self._pause_s = home, pause_s
        self._chance = random.Random(f"{seed}-{group}")  # noqa: S311  # reproducible, not secret
        self._seen: set[str] = set()
        self._news = anyio.Event()
        self._client: ControlClient | None = None
        """The connection on which it hears, while there is one."""

    async def listen(self) -> None:
        """Hear what is delivered until cancelled. A delivery that is repeated under its key is shown once."""
        while True:
            try:
                async with ControlClient.connect(self._home) as client:
                    await self._listen(client)
            except HermitcrabError:
                await anyio.sleep(AGAIN_AFTER_S)  # The host is away; it is started again by whoever ended it.

    async def _listen(self, client: ControlClient) -> None:
        attachment = ""
        try:
            async for event in client.stream("chat.attach", group=self.group):
                if event["kind"] == "attached":
                    attachment, self._client = event["attachment"], client
                elif event["kind"] == "message":
                    if event["key"] not in self._seen:
                        self._seen.add(event["key"])
                        self._hear(event["content"].get("text", ""))
                    await client.call("chat.ack", attachment=attachment, key=event["key"])
        finally:
            self._client = None

    async def talk(self, *, until: anyio.Event, most: int | None = None) -> None:
        """Say one message after another, each as often as it takes until the host has taken it.

        Until the event is set, or until `most` have been said in all.
        """
        while not until.is_set() and (most is None or self.tally.said < most):
            number = self.tally.said + 1
            if not await self._say(number, until):
                return
            self.tally.said = number
            with anyio.move_on_after(self._chance.uniform(0.5, 1.5) * self._pause_s):
                await until.wait()

    async def _say(self, number: int, until: anyio.Event) -> bool:
        """False: it was never said, and there is no more time for it."""
        tried = False
        while tried or not until.is_set():
            client = self._client
            if client is not None:
                tried = True
                try:
                    key, text = f"{self.group}-{number}", Tally.text(number)
                    await client.call("chat.send", group=self.group, id=key, text=text)
                except BadInputError:
                    raise
                except HermitcrabError:
                    pass  # The host may have it or not, so that it is said again under the same id.
                else:
                    return True
            await anyio.sleep(AGAIN_AFTER_S)
        return False

    async def complete(self) -> None:
        """Until everything that was said has come back."""
        while not self.tally.is_complete:
            await self._news.wait()

    def _hear(self, text: str) -> None:
        self.tally.hear(text)
        self._news.set()
        self._news = anyio.Event()
