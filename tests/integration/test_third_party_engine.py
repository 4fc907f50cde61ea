"""An engine of somebody else's: a package that is merely installed, found by its entry point, and a host runs on it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hermitcrab.app import engine_names
from hermitcrab.errors import BadInputError
from hermitcrab.testing.scratch import add_chat, host_on, say

CODE = """
from hermitcrab.containers.images.desk import default_tag
from hermitcrab.testing.fake_engine import FakeEngine, FakeMachine
from hermitcrab.testing.scripted_runner import Runners

machine = FakeMachine()
runners = Runners(machine)


def tiny(options):
    return FakeEngine(options, machine=machine, behaviour=runners.behaviour, images=frozenset({default_tag()}))
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as an installer leaves it: a module, and what it says of itself beside it."""
    site = tmp_path / "site"
    about = site / "tiny_engine-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "tiny_engine.py").write_text(CODE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-engine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[hermitcrab.engines]\ntiny = tiny_engine:tiny\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "tiny_engine", raising=False)


async def test_a_message_is_answered_on_an_engine_that_somebody_else_wrote(installed: None, tmp_path: Path) -> None:
    assert "tiny" in engine_names()
    async with host_on(tmp_path / "home", "tiny") as (host, channel):
        _, address = await add_chat(host, "chat")
        receipt = await say(host, address, "one", "hello")
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert str(delivery.content["text"]).startswith("Echo: ")
        (view,) = host.runner.views()
        assert view.engine == "fake"


async def test_an_engine_that_is_not_installed_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="tiny") as caught:
        async with host_on(tmp_path / "home", "tiny"):
            pytest.fail("opened without an engine")
    assert "bubblewrap" in caught.value.hint
