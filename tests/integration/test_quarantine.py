"""A message that ends real containers: set aside, shown, and released by a person at the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hermitcrab.cli import sessions as commands
from hermitcrab.control.methods import methods
from hermitcrab.control.server import serving
from hermitcrab.errors import NotFoundError
from hermitcrab.testing.scratch import add_chat, host_on, say


async def test_it_is_shown_where_it_was_set_aside_and_tried_again_when_a_person_says_so(
    need_engine: Callable[[str], Mapping[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_engine("bubblewrap")
    home = tmp_path / "home"
    async with host_on(home, "bubblewrap", quarantine_after=1) as (host, channel):
        _, address = await add_chat(host, "chat")
        receipt = await say(host, address, "poison", "/exit 7")
        (session, *_), (key, *_) = receipt.session_ids, receipt.row_ids
        _, notice = await channel.answer_to(key)
        assert notice.content["text"].startswith(
            "I have set your message aside: 1 container ended the same way (exited)"
        )
        receipt = await say(host, address, "next", "are you well?")
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert delivery.content["text"] == "Echo: are you well?"
        async with serving(host.home.run, methods(host)):
            await commands.show(session, home=host.home)
            shown = capsys.readouterr().out
            assert "/exit 7" in shown
            assert f"crab sessions release {session} MESSAGE" in shown
            await commands.show(session, json=True, home=host.home)
            (aside,) = json.loads(capsys.readouterr().out)["quarantined"]
            assert (aside["id"], aside["tries"]) == (key, 1)
            channel.delivered.clear()
            assert await commands.release(session, f"{session}/{key}", home=host.home) == 0
            # It is the same poison: tried once more, and set aside again.
            _, notice = await channel.answer_to(key)
            assert notice.content["text"].startswith("I have set your message aside")
            assert await commands.release(session, receipt.row_ids[0], json=True, home=host.home) == 1
            assert '"completed"' in capsys.readouterr().out
            with pytest.raises(NotFoundError, match="no message"):
                await commands.release(session, "nobody\0", home=host.home)
