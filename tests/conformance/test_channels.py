"""Every channel keeps the same promises: the fake, and those that ship."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from hermitcrab.channels.base import Traits
from hermitcrab.channels.terminal.runtime import TerminalChannel
from hermitcrab.logic.pieces import Shows
from hermitcrab.model.messages import Address
from hermitcrab.testing.channel_conformance import ChannelConformance, ChannelHarness
from hermitcrab.testing.fake_channel import FakeChannel, refuses

ALL = Shows(edits=True, reactions=True, cards=True, questions=True, files=True, text_length=100)


ONE_EACH = {
    name: Shows(**{name: True}, text_length=100) for name in ("edits", "reactions", "cards", "questions", "files")
}
PLATFORMS = {"everything": ALL, "words alone": Shows(), "short words": Shows(text_length=20), **ONE_EACH}


class TestFakeChannel(ChannelConformance):
    @pytest.fixture(params=["with keys", "without keys", *PLATFORMS])
    def harness(self, request: pytest.FixtureRequest) -> ChannelHarness:
        shows = PLATFORMS.get(request.param, ALL)
        channel = FakeChannel(supports_idempotency=request.param != "without keys", traits=Traits(shows=shows))
        channel.always(refuses(), chat="nowhere")
        return ChannelHarness(
            channel=channel,
            chat=Address(channel_type="fake", platform_id="a"),
            nowhere=Address(channel_type="fake", platform_id="nowhere"),
            shown=lambda: channel.shown,
        )


class TestTerminal(ChannelConformance):
    @pytest.fixture
    async def harness(self) -> AsyncIterator[ChannelHarness]:
        channel = TerminalChannel()
        shown: list[Any] = []
        with channel.attach("a") as client:

            async def attend() -> None:
                async for event in client.events:
                    if event["kind"] == "message":
                        shown.append(event)
                        channel.acknowledge(client.id, event["key"])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(attend)
                yield ChannelHarness(
                    channel=channel,
                    chat=Address(channel_type="terminal", platform_id="a"),
                    nowhere=Address(channel_type="terminal", platform_id="nobody"),
                    shown=lambda: shown,
                )
                tasks.cancel_scope.cancel()
