"""What every channel must do, as tests for whoever writes one.

Subclass `ChannelConformance` in a test module that has a fixture `harness` with a `ChannelHarness`. Needs pytest with
anyio's plugin.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import anyio
import pytest

from hermitcrab.channels.base import Channel, Delivery, Traits
from hermitcrab.errors import ChannelError
from hermitcrab.logic.kinds import checked
from hermitcrab.model.messages import Address

DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelHarness:
    """A channel that is connected to a platform, or to something that behaves like it."""

    channel: Channel
    chat: Address
    """A chat in which somebody is."""
    nowhere: Address
    """One that nothing can be delivered to now."""
    shown: Callable[[], list[Any]]
    """What people in `chat` see, oldest first: one item for each message."""


KINDS: dict[str, dict[str, Any]] = {
    "questions": {"type": "ask_question", "title": "Lunch", "question": "Where?", "options": ["here", "there"]},
    "cards": {"type": "card", "card": {"title": "Build", "description": "It failed."}},
}


class ChannelConformance:
    def delivery(self, harness: ChannelHarness, key: str, content: dict[str, Any] | None = None) -> Delivery:
        said = checked(content or {"text": f"words {key}"}, key)
        return Delivery(key=key, address=harness.chat, kind="chat", content=said)

    async def test_it_says_what_it_is(self, harness: ChannelHarness) -> None:
        assert harness.channel.type == harness.chat.channel_type
        assert isinstance(harness.channel.traits, Traits)

    async def test_messages_are_shown_in_order(self, harness: ChannelHarness) -> None:
        with anyio.fail_after(DEADLINE_S):
            ids = [await harness.channel.deliver(self.delivery(harness, f"k{number}")) for number in range(3)]
        assert len(harness.shown()) == 3
        assert all(each is None or isinstance(each, str) for each in ids)
        known = [each for each in ids if each is not None]
        assert len(set(known)) == len(known)

    async def test_a_key_that_comes_twice_is_shown_once_where_the_channel_says_so(
        self, harness: ChannelHarness
    ) -> None:
        with anyio.fail_after(DEADLINE_S):
            first = await harness.channel.deliver(self.delivery(harness, "same"))
            again = await harness.channel.deliver(self.delivery(harness, "same"))
        once = harness.channel.supports_idempotency
        assert (first == again) == once
        assert len(harness.shown()) == (1 if once else 2)

    async def test_what_cannot_be_delivered_is_a_channel_error(self, harness: ChannelHarness) -> None:
        lost = replace(self.delivery(harness, "lost"), address=harness.nowhere)
        with anyio.fail_after(DEADLINE_S), pytest.raises(ChannelError) as caught:
            await harness.channel.deliver(lost)
        assert caught.value.message
        assert harness.shown() == []

    async def test_a_delivery_that_is_called_off_keeps_no_other_back(self, harness: ChannelHarness) -> None:
        with anyio.move_on_after(0):
            await harness.channel.deliver(self.delivery(harness, "called-off"))
        with anyio.fail_after(DEADLINE_S):
            await harness.channel.deliver(self.delivery(harness, "next"))
        assert harness.shown()

    async def test_a_mark_that_somebody_writes_fails_as_a_channel_error_at_most(self, harness: ChannelHarness) -> None:
        for address in (harness.chat, harness.nowhere):
            with anyio.fail_after(DEADLINE_S), contextlib.suppress(ChannelError):
                await harness.channel.typing(address)

    @pytest.mark.parametrize("trait", sorted(KINDS))
    async def test_a_kind_that_it_says_it_has_is_shown(self, harness: ChannelHarness, trait: str) -> None:
        if not getattr(harness.channel.traits.shows, trait):
            pytest.skip(f"the channel has no {trait}: it is given words")
        with anyio.fail_after(DEADLINE_S):
            await harness.channel.deliver(self.delivery(harness, trait, KINDS[trait]))
        assert len(harness.shown()) == 1

    async def test_edits_and_reactions_refer_to_what_was_shown(self, harness: ChannelHarness) -> None:
        shows = harness.channel.traits.shows
        with anyio.fail_after(DEADLINE_S):
            target = await harness.channel.deliver(self.delivery(harness, "first"))
            if target is None and (shows.edits or shows.reactions):
                pytest.fail("a channel with edits or reactions tells the ids of its messages")
            for operation, has, more in (
                ("edit", shows.edits, {"text": "better"}),
                ("reaction", shows.reactions, {"emoji": "👍"}),
            ):
                if has:
                    content = {"operation": operation, "messageId": "first", **more}
                    made = self.delivery(harness, operation, content)
                    await harness.channel.deliver(replace(made, target=target))
        assert harness.shown()

    async def test_the_longest_text_that_it_takes_is_taken(self, harness: ChannelHarness) -> None:
        most = harness.channel.traits.shows.text_length or 5000
        with anyio.fail_after(DEADLINE_S):
            await harness.channel.deliver(self.delivery(harness, "long", {"text": "x" * most}))
        assert len(harness.shown()) == 1
