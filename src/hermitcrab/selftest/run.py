"""A self-test from beginning to end: a scratch home, conversations, faults, and what it came to."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from hermitcrab.app import open_engine
from hermitcrab.containers.engine import Engine
from hermitcrab.control.client import ControlClient
from hermitcrab.selftest.acts import Acts, podman_service, small_disk
from hermitcrab.selftest.leftovers import leftovers
from hermitcrab.selftest.schedule import Fault, schedule
from hermitcrab.selftest.talker import Talker
from hermitcrab.settings.home import Home
from hermitcrab.settings.load import load
from hermitcrab.store import installation
from hermitcrab.store.database import Store
from hermitcrab.testing.host_process import HostProcess

ANSWERED_WITHIN_S = 240.0
"""After the last fault: every container may have to start once more, and backoff may have grown."""

TOLD_EVERY_S = 5.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    engine: str
    seed: int
    seconds: float
    sessions: int
    fault_every_s: float
    """On average. No faults at all for a plan of 0 seconds."""
    pause_s: float
    """Between two messages of one conversation, on average."""
    messages_at_least: int = 3
    """Of each conversation, whatever the time says."""


@dataclass(slots=True)
class Outcome:
    plan: Plan
    messages: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    """Whatever was left: containers, processes, sockets, folders, claims, ends without a certificate."""
    faults: dict[str, int] = field(default_factory=dict)
    impossible: list[str] = field(default_factory=list)
    """Faults that this machine or user cannot do."""
    exit_code: int = 0
    """Of the last host, which was asked to leave."""
    took_s: float = 0.0

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.out_of_order or self.orphans or self.exit_code)

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.is_good,
            "engine": self.plan.engine,
            "seed": self.plan.seed,
            "sessions": self.plan.sessions,
            "messages": self.messages,
            "lost": len(self.lost),
            "doubled": len(self.doubled),
            "out_of_order": len(self.out_of_order),
            "orphans": len(self.orphans),
            "exit_code": self.exit_code,
            "faults": self.faults,
            "impossible": self.impossible,
            "took_s": round(self.took_s, 1),
            "details": [*self.lost, *self.doubled, *self.out_of_order, *self.orphans][:100],
        }


async def run(plan: Plan, *, progress: Progress, keep_log: Path | None = None) -> Outcome:
    """Everything is made for the test and removed after it. `keep_log`: where the hosts' log is to be kept."""
    began = time.monotonic()
    outcome = Outcome(plan)
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crab-selftest-")))
        place = scratch / "disk"
        place.mkdir()
        disk = stack.enter_context(small_disk(place))
        service = await stack.enter_async_context(podman_service(scratch, plan.engine))
        home = Home(place / "home")
        home.prepare()
        environment = {"HERMITCRAB__LOGS__FORMAT": "json"}
        overrides: dict[str, Any] = {"containers.engine": plan.engine, "agents.provider": "echo"}
        if service is not None:
            environment["HERMITCRAB__CONTAINERS__PODMAN_SOCKET"] = str(service.socket)
            overrides["containers.podman_socket"] = str(service.socket)
        settings = load(home.path, overrides)
        log = keep_log or scratch / "host.log"
        host = HostProcess(home.path, engine=plan.engine, env=environment, log=log)
        stack.push_async_callback(host.kill)
        async with Store.open(home.database) as store:
            engine = open_engine(home, settings, await store.write(installation.get_or_create))
        stack.push_async_callback(engine.aclose)
        faults = Acts.possible(disk=disk, service=service) if plan.seconds else []
        outcome.impossible = sorted(fault for fault in Fault if plan.seconds and fault not in faults)
        acts = Acts(host, engine, disk=disk, service=service)
        talkers = await _converse(plan, home, acts, faults, progress)
        outcome.exit_code = await host.stop()
        _count(outcome, talkers)
        outcome.faults = {fault.value: count for fault, count in sorted(acts.done.items())}
        outcome.orphans = await leftovers(home, settings, log=log)
        if not outcome.is_good:
            await _clear(engine)
    outcome.took_s = time.monotonic() - began
    return outcome


async def _converse(plan: Plan, home: Home, acts: Acts, faults: list[Fault], progress: Progress) -> list[Talker]:
    heard = 0

    def hear() -> None:
        nonlocal heard
        heard += 1

    await acts.have_host()
    names = [f"chat-{number}" for number in range(plan.sessions)]
    async with ControlClient.connect(home) as client:
        for name in names:
            await client.call("groups.create", folder=name)
    talkers = [Talker(home, name, seed=plan.seed, pause_s=plan.pause_s, heard=hear) for name in names]
    over = anyio.Event()
    async with anyio.create_task_group() as listening:
        for talker in talkers:
            listening.start_soon(talker.listen)

        async def tell() -> None:
            began = time.monotonic()
            while True:
                await anyio.sleep(TOLD_EVERY_S)
                said = sum(talker.tally.said for talker in talkers)
                count = sum(acts.done.values())
                progress(f"{time.monotonic() - began:.0f} s: {said} messages said, {heard} answers, {count} faults")

        listening.start_soon(tell)
        async with anyio.create_task_group() as talking:
            for talker in talkers:
                talking.start_soon(_talk, talker, plan, over)
            async with anyio.create_task_group() as lasting:
                began = time.monotonic()
                for event in schedule(
                    plan.seed, seconds=plan.seconds, sessions=plan.sessions, every_s=plan.fault_every_s, faults=faults
                ):
                    await anyio.sleep(max(0.0, began + event.at_s - time.monotonic()))
                    await acts.do(event, lasting)
            over.set()
        progress("Everything is said; waiting for the last answers")
        with anyio.move_on_after(ANSWERED_WITHIN_S):
            for talker in talkers:
                await talker.complete()
        listening.cancel_scope.cancel()
    return talkers


async def _talk(talker: Talker, plan: Plan, over: anyio.Event) -> None:
    never = anyio.Event()
    await talker.talk(until=never, most=plan.messages_at_least)
    await talker.talk(until=over)


def _count(outcome: Outcome, talkers: list[Talker]) -> None:
    for talker in talkers:
        tally = talker.tally
        outcome.messages += tally.said
        outcome.lost += [f"{talker.group}: message {number} was not answered" for number in tally.lost]
        outcome.doubled += [f"{talker.group}: message {number} was answered again" for number in tally.doubled]
        outcome.out_of_order += [f"{talker.group}: message {number} came too late" for number in tally.out_of_order]


async def _clear(engine: Engine) -> None:
    """What a failed test left must not stay on the machine."""
    for view in await engine.containers():
        await engine.remove(view.name)
