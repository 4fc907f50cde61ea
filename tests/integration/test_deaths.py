"""A real container's end is in the index of deaths and in its session's folder, whoever ended it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio

from hermitcrab.store import deaths
from hermitcrab.testing.scratch import REPLY_WITHIN_S, add_chat, host_on, say, session_of


async def test_ends_on_command_and_by_a_signal_are_told_with_their_cause(
    need_engine: Callable[[str], Mapping[str, str]], tmp_path: Path
) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        _, address = await add_chat(host, "chat")
        receipt = await say(host, address, "one", "hello")
        await channel.answer_to(receipt.row_ids[0])
        session = await session_of(host, receipt.session_ids[0])
        await host.runner.kill(session.id)
        receipt = await say(host, address, "two", "hello")
        await channel.answer_to(receipt.row_ids[0])
        (container,) = await host.engine.containers()
        assert container.pid is not None
        os.kill(container.pid, signal.SIGKILL)
        with anyio.fail_after(REPLY_WITHIN_S):
            while len(found := await host.store.read(lambda each: deaths.newest(each, limit=10))) < 2:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        kept = await host.runner.certificates(session)
    assert [(each.session, each.generation) for each in found] == [(session.id, 2), (session.id, 1)]
    assert found[1].cause == "stopped"
    assert found[0].cause != "stopped"
    assert found[0].exit_code == 128 + signal.SIGKILL
    assert [each["cause"] for each in kept] == [each.cause for each in reversed(found)]
