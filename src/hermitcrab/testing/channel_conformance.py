"""What every channel must do, as tests for whoever writes one.

Subclass `ChannelConformance` in a test module that has a fixture `harness` with a `ChannelHarness`. Needs pytest with
anyio's plugin.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from hermitcrab.channels.base import Channel, Delivery, SentFile, Traits
from hermitcrab.errors import ChannelError
from hermitcrab.logic.kinds import checked
from hermitcrab.logic.pieces import pieces
from hermitcrab.model.messages import Address

DEADLINE_S = 300.0


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


EVERY_KIND: dict[str, dict[str, Any]] = {
    "words": {"text": "some words"},
    "markdown": {"markdown": "**some** words"},
    "many words": {"text": "word " * 400},
    "an edit": {"operation": "edit", "messageId": "first", "text": "better words"},
    "a reaction": {"operation": "reaction", "messageId": "first", "emoji": "👍"},
    "a question": {"type": "ask_question", "title": "Lunch", "question": "Where?", "options": ["here", "there"]},
    "a card": {"type": "card", "card": {"title": "Build", "children": ["It failed."]}},
    "a card with words of its own": {"type": "card", "card": {}, "fallbackText": "The build failed."},
    "a file": {"text": "see", "files": ["notes.txt"]},
    "a file alone": {"text": "", "files": ["notes.txt"]},
}
"""Everything that an agent can say, as it is kept."""


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

    @pytest.mark.parametrize("kind", sorted(EVERY_KIND))
    async def test_whatever_an_agent_says_people_see_it_in_the_way_that_the_channel_can(
        self, harness: ChannelHarness, kind: str, tmp_path: Path
    ) -> None:
        """As the host hands it over: in parts that are short enough, and in words where the channel lacks the kind."""
        shows = harness.channel.traits.shows
        with anyio.fail_after(DEADLINE_S):
            target = await harness.channel.deliver(self.delivery(harness, "first"))
            before = len(harness.shown())
            (tmp_path / "handle").write_text("notes")
            digest = hashlib.sha256(b"notes").hexdigest()
            file = SentFile(name="notes.txt", path=tmp_path / "handle", bytes=5, sha256=digest)
            parts = pieces(checked(EVERY_KIND[kind], "said"), shows)
            for number, content in enumerate(parts):
                made = self.delivery(harness, f"said#{number}")
                refers = "operation" in content
                await harness.channel.deliver(
                    replace(
                        made,
                        content=content,
                        target=target if refers else None,
                        files=(file,) if "files" in content else (),
                    )
                )
        assert parts
        refer = {"an edit": shows.edits, "a reaction": shows.reactions}.get(kind, False)
        # An edit or a reaction changes what is there, where the channel has such; all else is seen by itself.
        assert refer or len(harness.shown()) >= before + len(parts)

    async def test_the_longest_text_that_it_takes_is_taken(self, harness: ChannelHarness) -> None:
        most = harness.channel.traits.shows.text_length or 5000
        with anyio.fail_after(DEADLINE_S):
            await harness.channel.deliver(self.delivery(harness, "long", {"text": "x" * most}))
        assert len(harness.shown()) == 1
