from __future__ import annotations

import anyio
import pytest

from hermitcrab.channels.base import Delivery, Receipt
from hermitcrab.channels.terminal import runtime
from hermitcrab.channels.terminal.runtime import Attachment, Event, TerminalChannel
from hermitcrab.errors import BadInputError, ChannelError, NotFoundError
from hermitcrab.model.messages import Address, ChannelMessage

MAIN = Address(channel_type="terminal", platform_id="main")


class FakeRouter:
    def __init__(self) -> None:
        self.received: list[ChannelMessage] = []

    async def receive(self, message: ChannelMessage) -> Receipt:
        self.received.append(message)
        return Receipt(accepted=True, row_ids=("r-1",), session_ids=("s-1",))


def delivery(key: str = "out-1", text: str = "hello", address: Address = MAIN) -> Delivery:
    return Delivery(key=key, address=address, kind="chat", content={"text": text}, in_reply_to="in-1")


async def next_event(attachment: Attachment) -> Event:
    return await attachment.events.receive()


async def test_without_anybody_there_a_delivery_is_to_be_tried_later() -> None:
    with pytest.raises(ChannelError, match="nobody is at the terminal") as raised:
        await TerminalChannel().deliver(delivery())
    assert raised.value.transient


async def test_a_delivery_counts_when_the_client_has_shown_it() -> None:
    channel = TerminalChannel()
    shown: list[str | None] = []
    with channel.attach("main") as client:
        async with anyio.create_task_group() as tasks:

            async def deliver() -> None:
                shown.append(await channel.deliver(delivery()))

            tasks.start_soon(deliver)
            event = await next_event(client)
            assert event == {
                "kind": "message",
                "key": "out-1",
                "message_kind": "chat",
                "content": {"text": "hello"},
                "in_reply_to": "in-1",
            }
            assert shown == []
            assert channel.acknowledge(client.id, "out-1")
    assert len(shown) == 1
    assert shown[0]


async def test_the_same_key_again_is_not_shown_again() -> None:
    channel = TerminalChannel()
    with channel.attach("main") as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.deliver, delivery())
            await next_event(client)
            channel.acknowledge(client.id, "out-1")
        again = await channel.deliver(delivery())
        assert again is not None
        with pytest.raises(anyio.WouldBlock):
            client.events.receive_nowait()


async def test_a_client_that_shows_nothing_fails_the_attempt_at_its_deadline() -> None:
    channel = TerminalChannel(acknowledged_within_s=0)
    with channel.attach("main"), pytest.raises(ChannelError, match="showed") as raised:
        await channel.deliver(delivery())
    assert raised.value.transient


async def test_a_client_that_leaves_fails_the_attempt_at_once() -> None:
    channel = TerminalChannel(acknowledged_within_s=3600)
    failures: list[ChannelError] = []

    async def deliver() -> None:
        try:
            await channel.deliver(delivery())
        except ChannelError as error:
            failures.append(error)

    async with anyio.create_task_group() as tasks:
        with channel.attach("main") as client:
            tasks.start_soon(deliver)
            await next_event(client)
    assert [each.transient for each in failures] == [True]


async def test_who_comes_later_gets_what_the_first_has_not_shown_yet() -> None:
    channel = TerminalChannel()
    with channel.attach("main") as first:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.deliver, delivery())
            await next_event(first)
            with channel.attach("main") as second:
                assert (await next_event(second))["key"] == "out-1"
                assert channel.acknowledge(second.id, "out-1")


async def test_only_who_is_at_the_address_gets_it_and_may_acknowledge_it() -> None:
    channel = TerminalChannel()
    with channel.attach("main") as here, channel.attach("other") as elsewhere:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.deliver, delivery())
            await next_event(here)
            with pytest.raises(anyio.WouldBlock):
                elsewhere.events.receive_nowait()
            assert not channel.acknowledge(elsewhere.id, "out-1")
            assert not channel.acknowledge("attachment-99", "out-1")
            assert not channel.acknowledge(here.id, "out-2")
            assert channel.acknowledge(here.id, "out-1")


async def test_coming_is_told_so_that_what_waits_is_tried_at_once() -> None:
    channel, came = TerminalChannel(), list[str]()
    channel.connect(FakeRouter(), on_attached=came.append)
    with channel.attach("main"):
        assert came == ["main"]
        assert channel.attached("main") == 1
    assert channel.attached("main") == 0


async def test_typing_reaches_who_is_there_and_fails_for_nobody() -> None:
    channel = TerminalChannel()
    await channel.typing(MAIN)
    with channel.attach("main") as client:
        await channel.typing(MAIN)
        assert await next_event(client) == {"kind": "typing"}


async def test_a_client_that_reads_nothing_costs_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "EVENTS_WAITING", 4)
    channel = TerminalChannel()
    with channel.attach("main") as client:
        for _ in range(100):
            await channel.typing(MAIN)
        assert client.events.statistics().current_buffer_used == 4


async def test_what_a_person_says_goes_to_the_host_under_the_clients_id() -> None:
    channel, router = TerminalChannel(), FakeRouter()
    channel.connect(router, on_attached=lambda _: None)
    receipt = await channel.say(platform_id="main", message_id="term-1", text="hello\n", sender="ann")
    assert receipt.row_ids == ("r-1",)
    message = router.received[0]
    assert (message.id, message.address, message.is_mention) == ("term-1", MAIN, True)
    assert message.content == {"text": "hello\n", "sender": "ann", "senderId": "terminal:ann"}
    assert message.timestamp.endswith("Z")


@pytest.mark.parametrize(
    ("message_id", "text"),
    [("", "x"), ("x" * 101, "x"), ("a\nb", "x"), ("ok", "a\0b"), ("ok", "x" * 300_000), ("ok", " ")],
)
async def test_what_cannot_be_stored_never_reaches_the_host(message_id: str, text: str) -> None:
    channel, router = TerminalChannel(), FakeRouter()
    channel.connect(router, on_attached=lambda _: None)
    with pytest.raises(BadInputError):
        await channel.say(platform_id="main", message_id=message_id, text=text, sender="ann")
    assert router.received == []


async def test_before_the_host_is_there_nothing_is_taken() -> None:
    with pytest.raises(NotFoundError):
        await TerminalChannel().say(platform_id="main", message_id="a", text="b", sender="ann")
