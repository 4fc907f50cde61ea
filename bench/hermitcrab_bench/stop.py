"""How long it takes to end every container, all at once: no longer than the longest of them, whatever their number."""

from __future__ import annotations

import time
from typing import Any

import anyio

from hermitcrab.model.container import ContainerStatus
from hermitcrab.testing.scratch import scratch_host
from hermitcrab_bench.live import add_sessions

GRACE_S = 10.0


async def run(*, engine: str = "bubblewrap", sessions: int = 300) -> dict[str, Any]:
    """`sessions` live containers, ended together; each has `GRACE_S` to end itself."""
    async with scratch_host(engine, max_running=sessions + 1, stop_grace_s=GRACE_S) as (host, _):
        made = await add_sessions(host.store, sessions)
        async with anyio.create_task_group() as tasks:
            for session in made:
                tasks.start_soon(host.runner.wake, session)
        views = await host.engine.containers()
        running = sum(view.status is ContainerStatus.RUNNING for view in views)
        began = time.monotonic()
        await host.runner.stop_all()
        stop_ms = (time.monotonic() - began) * 1000
        return {
            "stop_ms": round(stop_ms, 1),
            "grace_ms": GRACE_S * 1000,
            "over_grace_ms": round(max(0.0, stop_ms - GRACE_S * 1000), 1),
            "running": running,
            "left": len(await host.engine.containers()),
            "sessions": sessions,
            "engine": engine,
        }
