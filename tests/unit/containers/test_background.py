"""Tasks beside the runner of containers, and the end of them."""

from __future__ import annotations

import anyio

from hermitcrab.containers.lifecycle.background import Background


async def test_nothing_is_begun_once_it_was_called_off() -> None:
    background = Background()
    begun: list[str] = []

    async def begin(name: str) -> None:
        begun.append(name)

    async def stays_for_its_last_words() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            background.spawn(begin, "after")
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()

    async with anyio.create_task_group() as tasks:
        background.open(tasks)
        assert background.takes_work
        background.spawn(begin, "before")
        tasks.start_soon(stays_for_its_last_words)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
        assert not background.takes_work
    assert begun == ["before"]
