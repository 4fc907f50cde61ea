"""A second host process on a home that has one, as a rule forbidden by a lock: for the storm of two hosts.

`python -m hermitcrab_bench.second_host HOME ENGINE SESSION WAKES` opens it and says `ready`; at a line on its standard
input it wakes the session WAKES times at once, says how that came out as JSON, and stays until its input ends. What it
has started ends with it.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import anyio
from anyio import to_thread
from anyio.abc import ByteReceiveStream
from anyio.streams.text import TextReceiveStream

from hermitcrab.app import Host
from hermitcrab.model.sessions import Session
from hermitcrab.observe.logs import configure_logs
from hermitcrab.testing.scratch import host_on, session_of


@asynccontextmanager
async def second_host(
    host: Host, session: Session, wakes: int, env: Mapping[str, str] | None = None
) -> AsyncIterator[Callable[[], Awaitable[dict[str, int]]]]:
    """A function that has another process wake the session, and gives its outcomes by kind. `env`: more settings."""
    command = [sys.executable, "-m", "hermitcrab_bench.second_host"]
    arguments = [str(host.home.path), host.settings.containers.engine, session.id, str(wakes)]
    async with await anyio.open_process(
        [*command, *arguments], stdin=PIPE, stdout=PIPE, stderr=None, env={**os.environ, **(env or {})}
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = _lines(process.stdout)
        if await anext(lines) != "ready":
            raise RuntimeError("the second host did not come up")

        async def wake() -> dict[str, int]:
            assert process.stdin is not None
            await process.stdin.send(b"go\n")
            found: dict[str, int] = json.loads(await anext(lines))
            return found

        yield wake
        await process.stdin.aclose()
        await process.wait()


async def _lines(stream: ByteReceiveStream) -> AsyncIterator[str]:
    pending = ""
    async for text in TextReceiveStream(stream):
        *whole, pending = (pending + text).split("\n")
        for line in whole:
            yield line


async def main(home: Path, engine: str, session_id: str, wakes: int) -> None:
    """See the module."""
    outcomes: Counter[str] = Counter()
    async with host_on(home, engine) as (host, _):
        session = await session_of(host, session_id)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await to_thread.run_sync(sys.stdin.readline)

        async def wake() -> None:
            outcomes[(await host.runner.wake(session)).kind] += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(wakes):
                tasks.start_soon(wake)
        sys.stdout.write(json.dumps(outcomes) + "\n")
        sys.stdout.flush()
        await to_thread.run_sync(sys.stdin.readline)


if __name__ == "__main__":
    configure_logs(level="error")
    anyio.run(main, Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
