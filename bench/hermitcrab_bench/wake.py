"""How long a cold wake takes: from the message to the runner's hello, next to the engine's own create and start.

Each run begins without a container. The floor is measured in between: create and start, through the same adapter, of a
container of the same image that only sleeps and has no mounts.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from hermitcrab.app import Host
from hermitcrab.model.container import ContainerSpec, Limits
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.testing.scratch import add_chat, say, scratch_host, session_of
from hermitcrab_bench.figures import summary


async def run(*, engine: str = "bubblewrap", runs: int = 15) -> dict[str, Any]:
    """`runs` cold wakes, interleaved with as many floors."""
    async with scratch_host(engine) as (host, channel):
        _, address = await add_chat(host, "chat")
        wakes: list[float] = []
        floors: list[float] = []
        stages: dict[str, list[float]] = {}
        for number in range(runs + 1):
            began = time.monotonic()
            receipt = await say(host, address, f"m-{number}", "hello")
            replied, _ = await channel.answer_to(receipt.row_ids[0])
            session = await session_of(host, receipt.session_ids[0])
            timings = host.runner.timings(session.id)
            await host.runner.kill(session.id)
            floor = await _floor(host, number)
            if number == 0:
                continue  # The first run reads everything from the disk.
            wakes.append(timings["wake"])
            floors.append(floor)
            stages.setdefault("reply", []).append((replied - began) * 1000)
            for stage, value in timings.items():
                stages.setdefault(stage, []).append(value)
        return {
            **summary(wakes),
            **summary(floors, "floor_"),
            "over_floor_p50_ms": round(statistics.median(wakes) - statistics.median(floors), 2),
            "stages_p50_ms": {
                stage: summary(samples)["p50_ms"] for stage, samples in stages.items() if not stage.endswith("_kb")
            },
            "runner_rss_kb": max(stages["runner_rss_kb"]),
            "runs": runs,
            "engine": engine,
            "python": sys.version.split()[0],
        }


async def _floor(host: Host, number: int) -> float:
    name = f"crab-{host.installation}-floor-{number}"
    spec = ContainerSpec(
        name=name,
        installation=host.installation,
        session=SessionId(f"floor-{number}"),
        generation=Generation(1),
        image=host.images.default,
        argv=("sleep", "60"),
        env={"PATH": "/usr/bin:/bin"},
        mounts=(),
        limits=Limits(),
        uid=host.starter.uid,
        gid=host.starter.gid,
        workdir="/tmp",  # in the container
    )
    began = time.monotonic()
    try:
        await host.engine.create(spec)
        await host.engine.start(name)
        return (time.monotonic() - began) * 1000
    finally:
        await host.engine.remove(name)
