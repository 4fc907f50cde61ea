"""A second host process on a home that has one, as a rule forbidden by a lock: for the storm of two hosts.

`python -m hermitcrab_bench.second_host HOME ENGINE SESSION WAKES` opens it and says `ready`; at a line on its standard
input it wakes the session WAKES times at once, says how that came out as JSON, and stays until its input ends. What it
has started ends with it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import anyio
from anyio import to_thread

from hermitcrab.observe.logs import configure_logs
from hermitcrab.testing.scratch import host_on, session_of


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
