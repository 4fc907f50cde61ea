"""A scratch host leaves nothing behind, also when what is done with it fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hermitcrab.errors import sole
from hermitcrab.testing.intruder import intrude
from hermitcrab.testing.scratch import host_on


async def test_what_a_block_that_fails_has_launched_is_removed(
    need_engine: Callable[[str], Mapping[str, str]], tmp_path: Path
) -> None:
    need_engine("bubblewrap")
    processes: list[int | None] = []

    async def fails() -> None:
        async with host_on(tmp_path / "home", "bubblewrap") as (host, _):
            intruder = await intrude(host, "chat")
            await intruder.launch("time.sleep(600)")
            view = await host.engine.inspect(intruder.name)
            assert view is not None
            processes.append(view.pid)
            raise LookupError("in the middle")

    with pytest.raises(ExceptionGroup) as caught:
        await fails()
    assert isinstance(sole(caught.value), LookupError)
    (process,) = processes
    assert process is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
