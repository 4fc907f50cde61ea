"""Many wakes at once: of one session, from two host processes, and then of many sessions.

Whether anything starts twice, how many starts are under way together, and how late the event loop gets.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import anyio

from hermitcrab.app import Host
from hermitcrab.containers.lifecycle.slot import WakeOutcome
from hermitcrab.logic.lifecycle import Phase
from hermitcrab.model.container import ContainerStatus, ContainerView
from hermitcrab.model.ids import SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.testing.scratch import scratch_host, session_of
from hermitcrab_bench.figures import percentile
from hermitcrab_bench.lag import sampling
from hermitcrab_bench.live import add_sessions
from hermitcrab_bench.second_host import second_host

LOOKED_EVERY_S = 0.05
STARTING = {Phase.ADMITTED, Phase.PREPARING, Phase.CREATED, Phase.STARTING}
LIVE_WITHIN_S = 120.0


async def run(*, engine: str = "bubblewrap", wakes: int = 200, sessions: int = 200) -> dict[str, Any]:
    """`wakes` of one session at once, half of them in a second host; then one for each of `sessions` others at once."""
    async with scratch_host(engine, max_running=sessions + 1, stop_grace_s=30) as (host, _):
        made = await add_sessions(host.store, sessions + 1)
        same = await _of_one(host, made[0], wakes)
        await _live_here(host, made[0])
        spread = await _storm(host, made[1:])
        containers = await _containers(host)
        generations = [(await session_of(host, session.id)).generation for session in made[1:]]
        began = time.monotonic()
        await host.runner.stop_all()
        stopped_ms = (time.monotonic() - began) * 1000
        return {
            # Two containers of one session at the same time, or a second generation where one would do.
            "duplicates": same["most_at_once"]
            - 1
            + sum(count - 1 for count in containers.values())
            + sum(generation - 1 for generation in generations if generation),
            "same_session_containers": same["containers"],
            "containers": sum(containers.values()),
            "wakes": wakes + sessions,
            "failed": spread["failed"],
            "loop_lag_p99_ms": max(same["lag_p99_ms"], spread["lag_p99_ms"]),
            "same_session": same,
            "many_sessions": spread,
            "starts_at_once": spread["starts_at_once"],
            "starts_allowed": host.settings.containers.concurrent_starts,
            "stop_all_ms": round(stopped_ms, 1),
            "left": len(await host.engine.containers()),
            "sessions": sessions,
            "engine": engine,
        }


async def _live_here(host: Host, session: Session) -> None:
    """The second host has left and may have had it, which this one learns from its first vain claim."""
    with anyio.fail_after(LIVE_WITHIN_S):
        while (await host.runner.wake(session)).kind not in {"started", "live"}:  # noqa: ASYNC110  # each is a try
            await anyio.sleep(LOOKED_EVERY_S)


async def _of_one(host: Host, session: Session, wakes: int) -> dict[str, Any]:
    """Half of the wakes here and half in another process on the same home and engine.

    Whichever host comes second finds the generation claimed: its wakes wait, and it looks again soon if a message waits
    there. It may then replace what the other one started. There must never be two.
    """
    most, done = 0, anyio.Event()

    async def look() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len(await _running(host)))
            await anyio.sleep(LOOKED_EVERY_S / 5)

    async with second_host(host, session, wakes // 2) as second, anyio.create_task_group() as looking:
        looking.start_soon(look)
        theirs: dict[str, int] = {}

        async def wake_there() -> None:
            theirs.update(await second())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wake_there)
            found = await _storm(host, [session] * (wakes - wakes // 2))
        with anyio.fail_after(LIVE_WITHIN_S):
            while not (views := await _running(host)):  # noqa: ASYNC110  # either host may bring it
                await anyio.sleep(LOOKED_EVERY_S)
        most = max(most, len(views))
        done.set()
    return {
        **found,
        "processes": 2,
        "outcomes_there": theirs,
        "most_at_once": most,
        "containers": len(views),
        "generation": views[0].generation,
    }


async def _storm(host: Host, woken: list[Session]) -> dict[str, Any]:
    outcomes: list[WakeOutcome] = []
    most = 0

    async def wake(session: Session) -> None:
        outcomes.append(await host.runner.wake(session))

    async def look() -> None:
        nonlocal most
        while True:
            most = max(most, sum(view.phase in STARTING for view in host.runner.views()))
            await anyio.sleep(LOOKED_EVERY_S)

    async with sampling() as lags, anyio.create_task_group() as looking:
        looking.start_soon(look)
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for session in woken:
                tasks.start_soon(wake, session)
        took_ms = (time.monotonic() - began) * 1000
        looking.cancel_scope.cancel()
    kinds = Counter(outcome.kind for outcome in outcomes)
    return {
        "took_ms": round(took_ms, 1),
        "lag_p50_ms": round(percentile(lags, 50), 2),
        "lag_p99_ms": round(percentile(lags, 99), 2),
        "lag_max_ms": round(max(lags, default=0.0), 2),
        "starts_at_once": most,
        "outcomes": dict(kinds),
        "failed": len(outcomes) - kinds["started"] - kinds["live"] - kinds["waiting"],
    }


async def _running(host: Host) -> list[ContainerView]:
    return [view for view in await host.engine.containers() if view.status is ContainerStatus.RUNNING]


async def _containers(host: Host) -> Counter[SessionId]:
    """How many containers the engine has for each session."""
    return Counter(view.session for view in await host.engine.containers())
