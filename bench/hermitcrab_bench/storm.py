"""Many wakes at once, of one session and then of many: whether any starts twice, and how late the event loop gets."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import anyio

from hermitcrab.app import Host
from hermitcrab.containers.slot import WakeOutcome
from hermitcrab.logic.lifecycle import Phase
from hermitcrab.model.ids import SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.testing.scratch import scratch_host, session_of
from hermitcrab_bench.figures import percentile
from hermitcrab_bench.lag import sampling
from hermitcrab_bench.live import add_sessions

LOOKED_EVERY_S = 0.05
STARTING = {Phase.ADMITTED, Phase.PREPARING, Phase.CREATED, Phase.STARTING}


async def run(*, engine: str = "bubblewrap", wakes: int = 200, sessions: int = 200) -> dict[str, Any]:
    """`wakes` of one session at once, then one wake for each of `sessions` others at once."""
    async with scratch_host(engine, max_running=sessions + 1, stop_grace_s=30) as (host, _):
        made = await add_sessions(host.store, sessions + 1)
        one, many = made[:1], made[1:]
        same = await _storm(host, one * wakes)
        same_containers = await _containers(host)
        spread = await _storm(host, many)
        containers = await _containers(host)
        generations = [(await session_of(host, session.id)).generation for session in made]
        began = time.monotonic()
        await host.runner.stop_all()
        stopped_ms = (time.monotonic() - began) * 1000
        return {
            # A second container of a session, or a second generation of it: either is a wake too many.
            "duplicates": sum(count - 1 for count in containers.values())
            + sum(generation - 1 for generation in generations if generation),
            "same_session_containers": sum(same_containers.values()),
            "containers": sum(containers.values()),
            "wakes": wakes + sessions,
            "failed": same["failed"] + spread["failed"],
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
        "failed": len(outcomes) - kinds["started"] - kinds["live"],
    }


async def _containers(host: Host) -> Counter[SessionId]:
    """How many containers the engine has for each session."""
    return Counter(view.session for view in await host.engine.containers())
