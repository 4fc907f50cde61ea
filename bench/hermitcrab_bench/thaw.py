"""How long a frozen session takes to have its message: from the channel's call until the thawed runner was handed it.

The host freezes the sessions itself, after the shortest quiet; the engine is asked whether they are frozen. At the end
they stay frozen for a while, in which they must use no CPU at all.
"""

from __future__ import annotations

import time
from typing import Any

import anyio

from hermitcrab.app import Host
from hermitcrab.model.container import ContainerStatus
from hermitcrab.testing.scratch import say, scratch_host
from hermitcrab_bench.figures import summary
from hermitcrab_bench.live import LiveSession, live_sessions

QUIET_S = 0.2
FROZEN_WITHIN_S = 60.0
FROZEN_FOR_S = 3.0
"""Of a frozen session's CPU time."""

_LOOK_AGAIN_S = 0.1


async def run(*, engine: str = "bubblewrap", runs: int = 30, sessions: int = 10) -> dict[str, Any]:
    """`runs` thaws over `sessions` sessions, which freeze again between the rounds."""
    async with scratch_host(engine, max_running=sessions + 1, quiet_before_freeze_s=QUIET_S) as (host, channel):
        live = await live_sessions(host, channel, sessions)
        samples: dict[str, list[float]] = {"": [], "persisted_": [], "thaw_": [], "answer_": []}
        for number in range(runs):
            one = live[number % sessions]
            if number % sessions == 0:
                await _all_frozen(host, live)
            await _frozen(host, one)
            began = time.monotonic()
            receipt = await say(host, one.address, f"m-{number}", f"message {number}")
            persisted = time.monotonic()
            # Its thaw has been asked for; this joins it, and returns when the row was pushed.
            await host.runner.wake(one.session)
            pushed = time.monotonic()
            answered, _ = await channel.answer_to(receipt.row_ids[0])
            samples[""].append((pushed - began) * 1000)
            samples["persisted_"].append((persisted - began) * 1000)
            samples["thaw_"].append(host.runner.timings(one.session.id)["thaw"])
            samples["answer_"].append((answered - began) * 1000)
        await _all_frozen(host, live)
        frozen_cpu_ms = await _cpu_ms(host, live, FROZEN_FOR_S)
        containers = await host.engine.containers()
        figures = {name: value for prefix, each in samples.items() for name, value in summary(each, prefix).items()}
        return {
            **figures,
            "frozen_cpu_ms": frozen_cpu_ms,
            "frozen_for_s": FROZEN_FOR_S,
            "duplicates": len(containers) - len({view.session for view in containers}),
            "restarted": sum(view.generation != 1 for view in containers),
            "runs": runs,
            "sessions": sessions,
            "engine": engine,
        }


async def _cpu_ms(host: Host, live: list[LiveSession], seconds: float) -> float | None:
    """CPU time that all of them together used in that while, as the engine counts it; None: it counts none."""

    async def used() -> float | None:
        views = {view.session_id: view.container for view in host.runner.views()}
        found = [(await host.engine.stats(views[one.session.id])).cpu_s for one in live]
        return None if None in found else sum(each for each in found if each is not None)

    before = await used()
    await anyio.sleep(seconds)
    after = await used()
    return None if before is None or after is None else round((after - before) * 1000, 3)


async def _all_frozen(host: Host, live: list[LiveSession]) -> None:
    for one in live:
        await _frozen(host, one)


async def _frozen(host: Host, one: LiveSession) -> None:
    """Until the host says so and the engine too."""
    with anyio.fail_after(FROZEN_WITHIN_S):
        while True:
            (view,) = [each for each in host.runner.views() if each.session_id == one.session.id]
            if view.phase == "frozen":
                found = await host.engine.inspect(view.container)
                if found is not None and found.status is ContainerStatus.FROZEN:
                    return
            await anyio.sleep(_LOOK_AGAIN_S)
