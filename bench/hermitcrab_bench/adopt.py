"""How long a host that comes back takes to have every live container again.

Two real `crab up` processes on one home. The first is killed without a word and leaves its containers running. The
clock runs from before the second is started until its control socket tells that every container is ready: the host
knows it as its own, its runner has dialled and was greeted, and what its mailbox has would be pushed. Then every
session is woken once more, outside of the time, and must be live without a start; and what runs is compared, by the
engine's own word, with what ran before.

The parts: `imports_ms` takes a process that only imports what a host does; `socket_ms` is when the control socket
answers, which a host opens when it has decided about every container; `host_cpu_ms` and `runners_cpu_ms` are the CPU
time that the host and all containers together have used by the end of the clock.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio

from hermitcrab.app import open_engine
from hermitcrab.control.client import ControlClient
from hermitcrab.model.container import ContainerView
from hermitcrab.model.ids import InstallationId
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.settings.load import load
from hermitcrab.store import installation
from hermitcrab.store.database import Store
from hermitcrab.testing.host_process import HostProcess
from hermitcrab.testing.scratch import NO_BUDGET_MB
from hermitcrab_bench.live import add_sessions

GRACE_S = 30.0
ADOPTED_WITHIN_S = 120.0
WOKEN_AT_ONCE = 16
_LOOK_AGAIN_S = 0.05
"""Each look is work for the host that is measured, the more so the more containers it has."""


async def run(*, engine: str = "bubblewrap", sessions: int = 300) -> dict[str, Any]:
    """`sessions` live containers, a host that is killed, and one that comes after it."""
    with tempfile.TemporaryDirectory(prefix="crab-bench-") as folder:
        home = Home(Path(folder) / "home")
        home.prepare()
        async with Store.open(home.database) as store:
            install = await store.write(installation.get_or_create)
            made = await add_sessions(store, sessions)
        host = HostProcess(
            home.path,
            engine=engine,
            env={
                "HERMITCRAB__CONTAINERS__MAX_RUNNING": str(sessions + 1),
                "HERMITCRAB__CONTAINERS__MEMORY_BUDGET_MB": str(NO_BUDGET_MB),
                "HERMITCRAB__CONTAINERS__STOP_GRACE_S": str(GRACE_S),
                "HERMITCRAB__LOGS__LEVEL": "warning",
            },
        )
        try:
            return {**await _measure(host, engine, install, made), "sessions": sessions, "engine": engine}
        finally:
            with anyio.CancelScope(shield=True):
                await host.kill()
                await _remove_all(home, engine, install)


async def _measure(host: HostProcess, engine: str, install: InstallationId, made: list[Session]) -> dict[str, Any]:
    await host.start()
    began = time.monotonic()
    await _wake_all(host.home, made)
    started_s = time.monotonic() - began
    before = await _containers(host.home, engine, install)
    await host.kill()
    imports_ms = await _imports_ms()
    runners_s = await _cpu_s(host.home, engine, install, before)

    began = time.monotonic()
    await host.start()
    answers_ms = (time.monotonic() - began) * 1000
    views = await _until_ready(host.home, len(made))
    adopt_ms = (time.monotonic() - began) * 1000
    host_s = host.cpu_s()
    runners_s = await _cpu_s(host.home, engine, install, before) - runners_s
    live = await _live(host.home, made)
    after = await _containers(host.home, engine, install)

    began = time.monotonic()
    code = await host.stop()
    stop_ms = (time.monotonic() - began) * 1000
    left = await _containers(host.home, engine, install)
    ready = {view["container"] for view in views if view["phase"] == "ready"}
    return {
        "adopt_ms": round(adopt_ms, 1),
        "imports_ms": round(imports_ms, 1),
        "socket_ms": round(answers_ms, 1),
        "host_cpu_ms": round(host_s * 1000),
        "runners_cpu_ms": round(runners_s * 1000),
        "live": live,
        "lost": sum(
            name not in ready or name not in after or _identity(after[name]) != _identity(view)
            for name, view in before.items()
        )
        + len(made)
        - len(before),
        "duplicates": len(after) - len({view.session for view in after.values()}),
        "ready": len(ready),
        "start_all_s": round(started_s, 2),
        "stop_all_ms": round(stop_ms, 1),
        "left": len(left),
        "exit_code": code,
    }


def _identity(view: ContainerView) -> tuple[object, ...]:
    """What must be the same before and after: the very process, of the same generation."""
    return view.session, view.generation, view.pid, view.id


async def _wake_all(home: Home, made: list[Session]) -> None:
    at_once = anyio.Semaphore(WOKEN_AT_ONCE)
    async with ControlClient.connect(home) as client, anyio.create_task_group() as tasks:

        async def wake(session: Session) -> None:
            async with at_once:
                outcome = await client.call("sessions.wake", session=session.id)
                if outcome["kind"] not in {"started", "live"}:
                    raise RuntimeError(f"session {session.id} did not start: {outcome}")

        for session in made:
            tasks.start_soon(wake, session)


async def _live(home: Home, made: list[Session]) -> int:
    """How many sessions have a container that can be given a message, without a start."""
    async with ControlClient.connect(home) as client:
        outcomes = [await client.call("sessions.wake", session=session.id) for session in made]
    return sum(outcome["kind"] == "live" for outcome in outcomes)


async def _imports_ms() -> float:
    began = time.monotonic()
    await anyio.run_process([sys.executable, "-c", "import hermitcrab.cli.hosting"])
    return (time.monotonic() - began) * 1000


async def _cpu_s(home: Home, engine: str, install: InstallationId, views: Mapping[str, ContainerView]) -> float:
    """What these containers have used so far; 0 where the engine counts none."""
    opened = open_engine(home, load(home.path, {"containers.engine": engine}), install)
    try:
        return sum([(await opened.stats(name)).cpu_s or 0.0 for name in views])
    finally:
        await opened.aclose()


async def _until_ready(home: Home, count: int) -> list[dict[str, Any]]:
    """The host's view of its containers, as soon as `count` are ready, or else after the time that they have."""
    views: list[dict[str, Any]] = []
    async with ControlClient.connect(home) as client:
        with anyio.move_on_after(ADOPTED_WITHIN_S):
            while True:
                views = (await client.call("status"))["containers"]
                if sum(view["phase"] == "ready" for view in views) >= count:
                    break
                await anyio.sleep(_LOOK_AGAIN_S)
    return views


async def _containers(home: Home, engine: str, install: InstallationId) -> Mapping[str, ContainerView]:
    opened = open_engine(home, load(home.path, {"containers.engine": engine}), install)
    try:
        return {view.name: view for view in await opened.containers()}
    finally:
        await opened.aclose()


async def _remove_all(home: Home, engine: str, install: InstallationId) -> None:
    """So that a benchmark that failed leaves nothing running either."""
    opened = open_engine(home, load(home.path, {"containers.engine": engine}), install)
    try:
        async with anyio.create_task_group() as tasks:
            for view in await opened.containers():
                tasks.start_soon(opened.remove, view.name)
    finally:
        await opened.aclose()
