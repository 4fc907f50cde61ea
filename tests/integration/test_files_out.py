"""A file that an agent makes in its container arrives in its chat, and lies on the host no longer than it must."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import anyio

from hermitcrab.channels.base import Delivery, Traits
from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.logic.pieces import Shows
from hermitcrab.testing.scratch import REPLY_WITHIN_S, add_chat, host_on, say, session_of

NeedEngine = Callable[[str], Mapping[str, str]]


async def test_a_file_of_an_agent_reaches_its_chat(tmp_path: Path, need_engine: NeedEngine) -> None:
    need_engine("bubblewrap")
    seen: list[bytes] = []
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        channel.traits = Traits(shows=Shows(files=True))
        show = channel.deliver

        async def deliver(delivery: Delivery) -> str | None:
            seen.extend(each.path.read_bytes() for each in delivery.files)
            return await show(delivery)

        channel.deliver = deliver  # type: ignore[method-assign]
        group, address = await add_chat(host, "chat")
        receipt = await say(host, address, "one", "first")
        await channel.answer_to(receipt.row_ids[0])
        # The echo provider says what it is told: here, to send a file of its own folder.
        data = bytes(range(256)) * 3000
        (host.home.groups / group.folder / "report.pdf").write_bytes(data)
        receipt = await say(host, address, "two", 'see <file path="report.pdf" /><file path="/etc/shadow" />')
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert seen == [data]
        assert [each.name for each in delivery.files] == ["report.pdf"]
        assert delivery.content["text"].startswith("Echo: see")
        assert "[shadow could not be sent: " in delivery.content["text"]
        session = await session_of(host, receipt.session_ids[0])
        outbox = session_folders(host.home, session).outbox
        with anyio.fail_after(REPLY_WITHIN_S):
            while list(outbox.iterdir()):  # noqa: ASYNC110
                await anyio.sleep(0.01)
