"""Delivery under channels that misbehave: nothing lost, nothing doubled where that can be known, nobody else delayed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from hermitcrab.channels.base import Delivery, Traits
from hermitcrab.errors import StoreError
from hermitcrab.logic.pieces import Shows
from hermitcrab.logic.rate import Rate
from hermitcrab.logic.retry import Backoff
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import MessageId
from hermitcrab.model.messages import Address, InboundRow, OutFile
from hermitcrab.settings.model import DeliverySettings
from hermitcrab.testing.fake_channel import (
    FakeChannel,
    hangs,
    is_busy,
    is_empty,
    raises,
    refuses,
    shows_after,
    shows_and_hangs,
)

SHORT = DeliverySettings(attempt_deadline_s=0.05)


def fake(name: str = "fake", **options: Any) -> FakeChannel:
    return FakeChannel(type=name, **options)


async def test_rows_of_one_address_arrive_in_order_and_are_on_record(open_post: Any) -> None:
    channel = fake()
    async with open_post(channel) as post:
        session = await post.session("a")
        for number in range(20):
            await post.say(session, f"o{number}")
        post.deliverer.notify(session)
        await post.until(session, "o19", "delivered")
        assert channel.texts() == [f"o{number}" for number in range(20)]
        assert channel.most_under_way == 1
        row = await post.row(session, "o3")
        assert (row.attempts, row.platform_message_id) == (1, "fake-4")


async def test_the_same_words_under_the_same_row_id_in_two_sessions_are_two_messages(open_post: Any) -> None:
    channel = fake()
    async with open_post(channel) as post:
        for chat in ("a", "b"):
            session = await post.session(chat)
            await post.say(session, "out-1")
            post.deliverer.notify(session)
            await post.until(session, "out-1", "delivered")
        assert len(channel.shown) == 2


async def test_a_slow_address_holds_up_no_other_of_its_session_and_no_other_session(open_post: Any) -> None:
    slow, quick, answer = fake("slow"), fake("quick"), anyio.Event()
    slow.always(shows_after(slow, answer))
    async with open_post(slow, quick) as post:
        session, other = await post.session("a", "slow"), await post.session("b", "quick")
        await post.say(session, "held")
        await post.say(session, "held too")
        await post.say(session, "elsewhere", address=Address(channel_type="quick", platform_id="b"))
        await post.say(other, "others")
        for each in (session, other):
            post.deliverer.notify(each)
        await quick.until_shown(2)
        assert sorted(quick.texts()) == ["elsewhere", "others"]
        assert slow.texts() == []
        answer.set()
        await post.until(session, "held too", "delivered")
        assert slow.texts() == ["held", "held too"]


async def test_a_channel_that_has_all_it_takes_holds_up_no_other(open_post: Any) -> None:
    full, free, answer = fake("full"), fake("free"), anyio.Event()
    full.always(shows_after(full, answer))
    async with open_post(full, free) as post:
        for number in range(40):
            session = await post.session(f"{number}", "full")
            await post.say(session, "waits")
            await post.say(session, "passes", address=Address(channel_type="free", platform_id="z"))
            await post.session("z", "free")
            post.deliverer.notify(session)
        await free.until_shown(40)
        await full.until(lambda: full.under_way == 32)
        assert full.most_under_way == 32
        waiting = [(await post.row(each, "waits")).delivery for each in post.sessions.values() if "full" in each.id]
        # What the channel has no room for yet was not begun: a crash now leaves no doubt about it.
        assert waiting.count("sending") == 32
        assert waiting.count("queued") == 8
        answer.set()
        await full.until_shown(40)


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_transient_refusal_is_tried_again_and_holds_back_what_follows(open_post: Any, idempotent: bool) -> None:
    channel = fake(supports_idempotency=idempotent)
    channel.then(is_busy(), is_busy("still busy"))
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.say(session, "first")
        await post.say(session, "second")
        post.deliverer.notify(session)
        await post.until(session, "second", "delivered")
        assert channel.texts() == ["first", "second"]
        assert (await post.row(session, "first")).attempts == 3


async def test_a_platform_that_names_a_time_is_asked_again_only_then(open_post: Any) -> None:
    channel = fake()
    channel.then(is_busy(retry_after_s=0.3))
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.say(session, "o")
        began = anyio.current_time()
        post.deliverer.notify(session)
        await post.until(session, "o", "delivered")
        assert anyio.current_time() - began >= 0.29


async def test_a_refusal_for_good_is_the_end_and_what_follows_goes_on(open_post: Any) -> None:
    channel = fake()
    channel.then(refuses("no such chat"))
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.say(session, "first")
        await post.say(session, "second")
        post.deliverer.notify(session)
        await post.until(session, "second", "delivered")
        row = await post.row(session, "first")
        assert (row.delivery, row.attempts, row.reason) == ("failed", 1, "no such chat")


async def test_after_its_time_a_message_has_failed_and_the_next_one_gets_an_attempt(open_post: Any) -> None:
    channel = fake()
    channel.always(is_busy("down"))
    async with open_post(channel, settings=DeliverySettings(give_up_after_s=0)) as post:
        session = await post.session("a")
        await post.say(session, "first")
        await post.say(session, "second")
        post.deliverer.notify(session)
        row = await post.until(session, "second", "failed")
        assert row.reason == "down; given up after 1 attempts in 0 s"
        assert (await post.row(session, "first")).delivery == "failed"


async def test_what_waits_for_somebody_to_come_never_fails(open_post: Any) -> None:
    channel = fake()
    channel.always(is_empty())
    async with open_post(channel, settings=DeliverySettings(give_up_after_s=0)) as post:
        session = await post.session("a")
        await post.say(session, "o")
        post.deliverer.notify(session)
        await channel.until(lambda: len(channel.calls) >= 4)
        channel.always(None)
        post.deliverer.notify_waiting(lambda address: address.platform_id == "a")
        await post.until(session, "o", "delivered")


BROKEN = [
    ValueError("boom"),
    asyncio.CancelledError("of something of its own"),
    SystemExit(3),
    GeneratorExit(),
    ExceptionGroup("several", [OSError("one"), ValueError("two")]),
    ValueError("half a surrogate \ud800 and \0"),
    RecursionError(),
]


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_channel_that_raises_anything_costs_its_own_message(
    open_post: Any, error: BaseException, idempotent: bool
) -> None:
    bad, good = fake("bad", supports_idempotency=idempotent), fake("good")
    bad.always(raises(error), chat="a")
    async with open_post(bad, good) as post:
        broken, sound, other = (
            await post.session("a", "bad"),
            await post.session("b", "bad"),
            await post.session("c", "good"),
        )
        for session in (broken, sound, other):
            await post.say(session, "o")
            post.deliverer.notify(session)
        row = await post.until(broken, "o", "failed")
        assert row.attempts == (5 if idempotent else 1)
        assert row.reason is not None
        row.reason.encode()
        await post.until(sound, "o", "delivered")
        await post.until(other, "o", "delivered")


@pytest.mark.parametrize("answer", [17, "x" * 100_000, "\ud800", {"id": 1}, True, ""])
async def test_an_answer_that_is_no_id_loses_nothing(open_post: Any, answer: Any) -> None:
    channel = fake()

    async def behave(_delivery: Any) -> Any:
        return answer

    channel.always(behave)
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.say(session, "o")
        post.deliverer.notify(session)
        row = await post.until(session, "o", "delivered")
        assert row.platform_message_id == ("17" if answer == 17 else None)


async def test_no_answer_in_time_is_repeated_under_the_same_key_where_there_is_one(open_post: Any) -> None:
    channel = fake()
    channel.then(shows_and_hangs(channel))
    async with open_post(channel, settings=SHORT) as post:
        session = await post.session("a")
        await post.say(session, "o")
        post.deliverer.notify(session)
        assert (await post.until(session, "o", "delivered")).attempts == 2
        assert len({each.key for each in channel.calls}) == 1
        assert channel.texts() == ["o"]


async def test_no_answer_in_time_is_no_reason_to_show_it_twice(open_post: Any) -> None:
    channel = fake(supports_idempotency=False)
    channel.then(shows_and_hangs(channel))
    async with open_post(channel, settings=SHORT) as post:
        session = await post.session("a")
        await post.say(session, "o")
        await post.say(session, "next")
        post.deliverer.notify(session)
        await post.until(session, "next", "delivered")
        row = await post.row(session, "o")
        assert row.delivery == "failed"
        assert "may have arrived" in (row.reason or "")
        assert channel.texts() == ["o", "next"]


async def test_a_place_that_was_not_granted_is_refused_at_the_moment_of_sending(open_post: Any) -> None:
    channel = fake()
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.session("granted")
        await post.say(session, "o1", address=Address(channel_type="fake", platform_id="granted"))
        await post.say(session, "o2", address=Address(channel_type="fake", platform_id="stranger"))
        await post.say(session, "o3", address=None)
        post.deliverer.notify(session)
        for key, state in (("o1", "delivered"), ("o2", "refused"), ("o3", "refused")):
            await post.until(session, key, state)
        await post.store.write(lambda connection: connection.execute("DELETE FROM destinations"))
        await post.say(session, "o4", address=Address(channel_type="fake", platform_id="granted"))
        post.deliverer.notify(session)
        row = await post.until(session, "o4", "refused")
        assert row.reason == "the agent has no destination fake:granted"
        assert channel.texts() == ["o1"]


async def test_a_channel_that_is_not_set_up_is_waited_for(open_post: Any) -> None:
    async with open_post() as post:
        session = await post.session("a")
        await post.say(session, "o")
        post.deliverer.notify(session)

        async def tried() -> bool:
            return bool((await post.row(session, "o")).attempts >= 3)

        await post.eventually(tried)
    channel = fake()
    async with open_post(channel) as post:
        session = await post.session("a")
        post.deliverer.notify(session)
        await post.until(session, "o", "delivered")


async def test_a_message_for_later_waits_for_its_time_and_holds_nothing_back(
    open_post: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = fake()
    async with open_post(channel) as post:
        session = await post.session("a")
        with monkeypatch.context() as stands_still:
            # Its time does not come in the midst of this, however long it takes.
            now = time.time()
            stands_still.setattr(time, "time", lambda: now)
            at = datetime.fromtimestamp(now, UTC) + timedelta(seconds=0.4)
            after = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            await post.say(session, "later", deliver_after=after)
            await post.say(session, "now")
            assert (await post.row(session, "later")).delivery == "scheduled"
            post.deliverer.notify(session)
            await post.until(session, "now", "delivered")
            assert channel.texts() == ["now"]
        await post.until(session, "later", "delivered")
        assert datetime.now(UTC) >= at


async def test_a_message_whose_time_comes_does_not_make_one_that_was_postponed_wait_for_ever(open_post: Any) -> None:
    channel = fake()
    channel.then(is_busy(retry_after_s=0.4))
    async with open_post(channel) as post:
        session = await post.session("a")
        after = (datetime.now(UTC) + timedelta(seconds=0.15)).isoformat(timespec="milliseconds")
        await post.say(session, "later", deliver_after=after.replace("+00:00", "Z"))
        await post.say(session, "now")
        post.deliverer.notify(session)
        await post.until(session, "now", "delivered")
        assert channel.texts() == ["later", "now"]


async def test_a_clock_that_is_set_back_makes_nothing_wait_longer(
    open_post: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = fake()
    channel.then(is_busy(retry_after_s=0.1))
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.say(session, "o")
        post.deliverer.notify(session)
        await channel.until(lambda: len(channel.calls) == 1)
        await post.until(session, "o", "queued")
        right = time.time
        monkeypatch.setattr(time, "time", lambda: right() - 3600)
        await post.until(session, "o", "delivered")


async def test_a_channel_and_a_chat_are_written_to_no_faster_than_they_take_it(open_post: Any) -> None:
    channel = fake(traits=Traits(rate=Rate(per_s=200, burst=2), chat_rate=Rate(per_s=20, burst=1)))
    async with open_post(channel) as post:
        began = time.monotonic()
        for chat in ("a", "b", "c"):
            session = await post.session(chat)
            for number in range(3):
                await post.say(session, f"{chat}{number}")
            post.deliverer.notify(session)
        await channel.until_shown(9)
        last: dict[str, float] = {each.delivery.address.platform_id: each.at for each in channel.shown}
        # The third message of each chat waits for two of its places, whatever else this machine does.
        assert all(at - began >= 2 / 20 for at in last.values())


EVERYTHING = Shows(edits=True, reactions=True, cards=True, questions=True, files=True)


async def test_kinds_reach_a_channel_that_has_them_with_the_platforms_own_ids(open_post: Any) -> None:
    channel = fake(traits=Traits(shows=EVERYTHING))
    async with open_post(channel) as post:
        session = await post.session("a")
        heard = InboundRow(
            id=MessageId("77@mg-fake-a"),
            kind="chat",
            timestamp="2026-01-01T00:00:00Z",
            content={"text": "hi"},
            address=Address(channel_type="fake", platform_id="a"),
        )
        await post.mailboxes.run(session, lambda mailbox: mailbox.accept(heard))
        await post.say(session, "words", in_reply_to="77@mg-fake-a")
        await post.say(session, "edit", content={"operation": "edit", "messageId": "words", "text": "better"})
        await post.say(session, "react", content={"operation": "reaction", "messageId": "77@mg-fake-a", "emoji": "+1"})
        await post.say(session, "foreign", content={"operation": "reaction", "messageId": "p-9", "emoji": "+1"})
        await post.say(session, "ghost", content={"operation": "edit", "messageId": "never", "text": "x"})
        await post.say(session, "card", kind="chat-sdk", content={"type": "card", "card": {"title": "T"}})
        post.deliverer.notify(session)
        await post.until(session, "card", "delivered")
        told = {each.delivery.key.split("/")[1]: each.delivery for each in channel.shown}
        assert told["words"].reply_to == "77"
        assert told["edit"].target == "fake-1"
        assert told["react"].target == "77"
        assert told["foreign"].target == "p-9"
        assert told["card"].content == {"type": "card", "card": {"title": "T"}}


async def test_an_edit_of_what_never_arrived_fails_and_says_so(open_post: Any) -> None:
    channel = fake(traits=Traits(shows=EVERYTHING))
    channel.then(refuses())
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.say(session, "words")
        await post.say(session, "edit", content={"operation": "edit", "messageId": "words", "text": "better"})
        post.deliverer.notify(session)
        row = await post.until(session, "edit", "failed")
        assert row.reason == "the message that it is about was never delivered"


async def test_a_long_text_goes_in_parts_and_another_attempt_goes_on_where_one_ended(open_post: Any) -> None:
    channel = fake(traits=Traits(shows=Shows(text_length=20)))
    text = "one two three four five six seven eight nine ten eleven twelve"
    channel.then(channel.show, channel.show, is_busy())
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.say(session, "long", content={"text": text})
        await post.say(session, "next")
        post.deliverer.notify(session)
        await post.until(session, "next", "delivered")
        assert "".join(channel.texts()) == text + "next"
        assert all(len(each) <= 20 for each in channel.texts())
        keys = [each.delivery.key for each in channel.shown[:-1]]
        assert keys == ["sess-fake-a/long", *(f"sess-fake-a/long#{n}" for n in range(2, len(keys) + 1))]
        row = await post.row(session, "long")
        assert (row.platform_message_id, row.attempts) == ("fake-1", 2)


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_host_that_dies_between_two_parts_loses_and_doubles_none(open_post: Any, idempotent: bool) -> None:
    channel = fake(supports_idempotency=idempotent, traits=Traits(shows=Shows(text_length=20)))
    channel.then(channel.show, shows_and_hangs(channel))
    text = "one two three four five six seven eight nine ten eleven twelve"
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.say(session, "long", content={"text": text})
        post.deliverer.notify(session)
        await channel.until_shown(2)
    _another_process()
    async with open_post(channel) as post:
        session = await post.session("a")
        post.deliverer.notify(session)
        row = await post.until(session, "long", "delivered", "unknown-after-crash")
        if idempotent:
            assert "".join(channel.texts()) == text
        else:
            assert row.delivery == "unknown-after-crash"
            assert len(channel.shown) == 2


async def test_files_reach_the_channel_and_are_removed_once_they_have(open_post: Any, tmp_path: Path) -> None:
    channel = fake(traits=Traits(shows=EVERYTHING))
    seen: list[bytes] = []

    async def show(delivery: Delivery) -> str | None:
        seen.extend(each.path.read_bytes() for each in delivery.files)
        return await channel.show(delivery)

    channel.always(show)
    channel.then(is_busy())
    async with open_post(channel) as post:
        session = await post.session("a")
        folder = tmp_path / "outbox" / session.id
        folder.mkdir(parents=True)
        (folder / "1-abc").write_bytes(b"%PDF")
        file = OutFile(handle="1-abc", name="report.pdf", bytes=4, sha256="made up")
        lost = replace(file, handle="1-gone")
        await post.say(session, "o", content={"text": "here", "files": ["report.pdf"]}, files=(file,))
        await post.say(session, "gone", content={"text": "", "files": ["report.pdf"]}, files=(lost,))
        post.deliverer.notify(session)
        await post.until(session, "o", "delivered")
        assert seen == [b"%PDF"]
        assert channel.shown[0].delivery.files[0].name == "report.pdf"
        row = await post.until(session, "gone", "failed")
        assert row.reason == "a file of it is not on the disk any more"
        await post.at_rest()
        assert list(folder.iterdir()) == []
        kept = await post.mailboxes.run(session, lambda mailbox: mailbox.kept_files())
        assert kept == {"1-gone"}


class Unwritable:
    """Stands before `Mailboxes.run`: the first calls that would write fail."""

    def __init__(self, post: Any, names: tuple[str, ...], times: int) -> None:
        self._run, self._names, self.left = post.mailboxes.run, names, times
        self.session: Any = None
        post.mailboxes.run = self.run

    async def run(self, session: Any, function: Any) -> Any:
        def work(mailbox: Mailbox) -> Any:
            for name in self._names:
                real = getattr(mailbox, name)

                def failing(*args: Any, real: Any = real, **named: Any) -> Any:
                    if self.left > 0 and (self.session is None or session is self.session):
                        self.left -= 1
                        raise StoreError("outbound.db cannot be written: disk I/O error")
                    return real(*args, **named)

                setattr(mailbox, name, failing)
            try:
                return function(mailbox)
            finally:
                for name in self._names:
                    delattr(mailbox, name)

        return await self._run(session, work)


@pytest.mark.parametrize("names", [("begin_in_lane",), ("delivered",), ("lanes",), ("interrupted",), ("waits_in",)])
@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_mailbox_that_cannot_be_written_for_a_while_loses_and_doubles_nothing(
    open_post: Any, names: tuple[str, ...], idempotent: bool
) -> None:
    channel = fake(supports_idempotency=idempotent)
    async with open_post(channel) as post:
        session, other = await post.session("a"), await post.session("b")
        for key in ("o1", "o2"):
            await post.say(session, key)
        await post.say(other, "o")
        broken = Unwritable(post, names, times=3)
        broken.session = session
        for each in (session, other):
            post.deliverer.notify(each)
        await post.until(session, "o2", "delivered")
        await post.until(other, "o", "delivered")
        assert broken.left == 0
        assert channel.texts("a") == ["o1", "o2"]
        assert len(channel.calls) == 3


async def test_what_was_just_said_is_sent_without_looking_for_it(open_post: Any) -> None:
    channel = fake()
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.say(session, "o1")
        post.deliverer.notify(session)
        await post.until(session, "o1", "delivered")
        await post.at_rest()
        looks = Unwritable(post, ("lanes",), times=1)
        looks.session = session
        for keys in (["o2"], ["o3", "o4"]):
            post.deliverer.notify(session, [await post.say(session, key) for key in keys])
        await post.until(session, "o4", "delivered")
        assert channel.texts("a") == ["o1", "o2", "o3", "o4"]
        assert looks.left == 1
        await post.at_rest()


async def test_what_was_just_said_waits_behind_what_is_postponed_at_its_address(open_post: Any) -> None:
    channel = fake()
    async with open_post(channel, backoff=Backoff(first_s=3600, most_s=3600)) as post:
        session = await post.session("a")
        await post.say(session, "o1")
        post.deliverer.notify(session)
        await post.until(session, "o1", "delivered")
        channel.always(is_empty())
        post.deliverer.notify(session, [await post.say(session, "o2")])
        await post.until(session, "o2", "queued")
        await post.eventually(lambda: _waits(post))
        channel.always(None)
        post.deliverer.notify(session, [await post.say(session, "o3")])
        assert channel.texts("a") == ["o1"]
        post.deliverer.notify_waiting(lambda _: True)
        await post.until(session, "o3", "delivered")
        assert channel.texts("a") == ["o1", "o2", "o3"]


async def _waits(post: Any) -> bool:
    return any(outbox.waiting for outbox in post.deliverer._outboxes.values())


async def test_what_was_under_way_when_the_host_died_is_settled_by_the_rule(open_post: Any) -> None:
    keyed, keyless = fake("keyed"), fake("keyless", supports_idempotency=False)
    for channel in (keyed, keyless):
        channel.always(shows_and_hangs(channel))
    async with open_post(keyed, keyless) as post:
        for channel in ("keyed", "keyless"):
            session = await post.session("a", channel)
            await post.say(session, "o1")
            await post.say(session, "o2")
            post.deliverer.notify(session)
        await keyed.until_shown(1)
        await keyless.until_shown(1)
    for channel in (keyed, keyless):
        channel.always(None)
    _another_process()
    async with open_post(keyed, keyless) as post:
        for channel in ("keyed", "keyless"):
            session = await post.session("a", channel)
            post.deliverer.notify(session)
            await post.until(session, "o2", "delivered")
        assert (await post.row(await post.session("a", "keyed"), "o1")).delivery == "delivered"
        assert (await post.row(await post.session("a", "keyless"), "o1")).delivery == "unknown-after-crash"
        assert keyed.texts() == keyless.texts() == ["o1", "o2"]


async def test_a_host_that_leaves_in_good_order_waits_for_what_is_under_way(open_post: Any) -> None:
    channel, answer = fake(supports_idempotency=False), anyio.Event()
    channel.always(shows_after(channel, answer))
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.say(session, "o1")
        await post.say(session, "o2")
        post.deliverer.notify(session)
        await channel.until(lambda: channel.under_way == 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: post.deliverer.close(within_s=10))
            await anyio.wait_all_tasks_blocked()
            answer.set()
        assert (await post.row(session, "o1")).delivery == "delivered"
        assert (await post.row(session, "o2")).delivery == "queued"
        assert channel.texts() == ["o1"]


async def test_a_host_that_leaves_does_not_wait_for_ever(open_post: Any) -> None:
    channel = fake()
    channel.always(hangs())
    async with open_post(channel) as post:
        session = await post.session("a")
        await post.say(session, "o")
        post.deliverer.notify(session)
        await channel.until(lambda: channel.under_way == 1)
        await post.deliverer.close(within_s=0.05)


async def test_nothing_is_kept_of_a_session_that_has_nothing_to_deliver(open_post: Any) -> None:
    channel = fake()
    async with open_post(channel) as post:
        for number in range(20):
            session = await post.session(f"c{number}")
            await post.say(session, "o")
            post.deliverer.notify(session)
        await channel.until_shown(20)
        await post.at_rest()


async def test_a_message_that_failed_is_told_to_its_agent_and_to_the_operator_once(open_post: Any) -> None:
    channel, terminal = fake(), fake("terminal", traits=Traits(reaches_operator=True))
    channel.always(refuses("the bot was blocked"))
    async with open_post(channel, terminal) as post:
        session = await post.session("a")
        await post.say(session, "secret words")
        post.deliverer.notify(session)
        await post.until(session, "secret words", "failed")
        await terminal.until_shown(1)
        assert terminal.texts() == ["A message to fake:a could not be delivered: the bot was blocked."]
        (word,) = await post.mailboxes.run(session, lambda mailbox: mailbox.pending(limit=9))
        assert word.kind == "system"
        assert not word.trigger
        assert word.content["status"] == "failed"
        assert word.content["result"]["reason"] == "the bot was blocked"
        assert word.content["result"]["text"] == "secret words"
        # It starts no container, and a restart tells nothing again.
        assert not await post.mailboxes.run(session, lambda mailbox: mailbox.has_work())
    async with open_post(channel, terminal) as post:
        session = await post.session("a")
        post.deliverer.notify(session)
        await post.say(session, "again")
        post.deliverer.notify(session)
        await post.until(session, "again", "failed")
        await terminal.until_shown(2)
        assert len(await post.mailboxes.run(session, lambda mailbox: mailbox.pending(limit=9))) == 2


async def test_a_notice_that_cannot_be_delivered_either_begins_no_loop(open_post: Any) -> None:
    channel, terminal = fake(), fake("terminal", traits=Traits(reaches_operator=True))
    channel.always(refuses())
    terminal.always(refuses())
    async with open_post(channel, terminal) as post:
        session = await post.session("a")
        await post.say(session, "o")
        post.deliverer.notify(session)
        await post.until(session, "notice-o", "failed")
        await post.at_rest()
        assert len(channel.calls) == len(terminal.calls) == 1


async def test_an_end_of_which_nobody_was_told_before_a_crash_is_told_at_the_next_start(open_post: Any) -> None:
    channel = fake()
    async with open_post(channel) as post:
        session = await post.session("a")
        row = await post.say(session, "o")
        await post.mailboxes.run(session, lambda mailbox: mailbox.refused(row.id, "not granted", tell=True))
        # Hosts look only where something waits.
        assert (await post.mailboxes.run(session, Mailbox.counts)).undelivered == 1
    async with open_post(channel) as post:
        session = await post.session("a")
        post.deliverer.notify(session)
        found = await post.eventually(lambda: post.mailboxes.run(session, lambda mailbox: mailbox.pending(limit=9)))
        assert found[0].id == "undelivered-o"
        await post.at_rest()
        assert (await post.mailboxes.run(session, Mailbox.counts)).undelivered == 0


@pytest.mark.parametrize("step", ["untold", "accept", "told"])
async def test_of_what_failed_while_nothing_could_be_written_those_concerned_hear_later(
    open_post: Any, step: str
) -> None:
    channel, terminal = fake(), fake("terminal", traits=Traits(reaches_operator=True))
    channel.always(refuses("the bot was blocked"))
    async with open_post(channel, terminal) as post:
        session = await post.session("a")
        await post.say(session, "o")
        broken = Unwritable(post, (step,), times=3)
        post.deliverer.notify(session)
        await terminal.until_shown(1)
        await post.at_rest()
        assert broken.left == 0
        (word,) = await post.mailboxes.run(session, lambda mailbox: mailbox.pending(limit=9))
        assert word.id == "undelivered-o"
        assert len(terminal.calls) == 1


def _another_process() -> None:
    """What follows is another host's: the mark of who sends changes."""
    from hermitcrab.mailbox.mailboxes import Mailboxes  # noqa: PLC0415

    signature = Mailboxes.__init__.__kwdefaults__
    signature["process"] = f"{signature['process']}+"


async def test_a_limit_for_the_whole_channel_pauses_all_of_its_chats_and_no_other_channel(open_post: Any) -> None:
    channel, other = fake(), fake("other")
    channel.then(is_busy("slow down", retry_after_s=3600, limits="channel"))
    async with open_post(channel, other) as post:
        first, second, elsewhere = (
            await post.session("a"),
            await post.session("b"),
            await post.session("c", channel="other"),
        )
        await post.say(first, "first")
        post.deliverer.notify(first)

        async def postponed() -> bool:
            return (await post.row(first, "first")).reason == "slow down"

        await post.eventually(postponed)
        assert 3500 < post.deliverer.paused()["fake"] <= 3600
        for session, key in ((second, "second"), (elsewhere, "third")):
            await post.say(session, key)
            post.deliverer.notify(session)
        await other.until_shown(1)
        assert list(post.deliverer.paused()) == ["fake"]
        row = await post.row(second, "second")
        # It waits before it counts as an attempt.
        assert (row.delivery, row.attempts) == ("queued", 0)
        assert len(channel.calls) == 1


async def test_a_paused_channel_goes_on_by_itself_with_everything_in_order(open_post: Any) -> None:
    channel = fake()
    channel.then(is_busy(retry_after_s=0.2, limits="channel"))
    async with open_post(channel) as post:
        sessions = [await post.session(chat) for chat in ("a", "b")]
        for session in sessions:
            for number in range(2):
                await post.say(session, f"{session.id}-{number}")
            post.deliverer.notify(session)
        await channel.until_shown(4)
        for session, chat in zip(sessions, ("a", "b"), strict=True):
            assert channel.texts(chat) == [f"{session.id}-0", f"{session.id}-1"]
        assert post.deliverer.paused() == {}


async def test_a_limit_for_one_chat_pauses_no_other(open_post: Any) -> None:
    channel = fake()
    channel.then(is_busy(retry_after_s=3600))
    async with open_post(channel) as post:
        first, second = await post.session("a"), await post.session("b")
        await post.say(first, "first")
        post.deliverer.notify(first)
        await channel.until(lambda: len(channel.calls) == 1 and channel.under_way == 0)
        await post.say(second, "second")
        post.deliverer.notify(second)
        await channel.until_shown(1)
        assert channel.texts() == ["second"]
        assert post.deliverer.paused() == {}
