"""A self-test from beginning to end: a scratch home, conversations, faults, and what it came to."""

from __future__ import annotations

import functools
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from hermitcrab.app import open_engine
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.images.desk import default_tag
from hermitcrab.control.client import ControlClient
from hermitcrab.errors import EngineError, Failure, HermitcrabError, HostUnreachableError
from hermitcrab.observe.supervision import isolated
from hermitcrab.selftest.acts import Acts
from hermitcrab.selftest.daemons import Daemon, own_daemon
from hermitcrab.selftest.disk import small_disk
from hermitcrab.selftest.growth import Holdings, files_of, growth, holdings, too_much
from hermitcrab.selftest.jumping_clock import JumpingClock
from hermitcrab.selftest.leftovers import leftovers
from hermitcrab.selftest.outcome import Outcome, Phase, Plan, Progress
from hermitcrab.selftest.schedule import Fault, schedule
from hermitcrab.selftest.talker import Talker
from hermitcrab.settings.home import Home
from hermitcrab.settings.load import load
from hermitcrab.settings.model import Settings
from hermitcrab.store import installation
from hermitcrab.store.database import Store
from hermitcrab.testing.host_process import HostProcess

TOLD_EVERY_S = 0.5
LOOKED_EVERY_S = 1.0

Tell = Callable[[Progress], None]


async def run(plan: Plan, *, tell: Tell, keep_log: Path | None = None) -> Outcome:
    """Everything is made for the test and removed after it. `keep_log`: where the hosts' log is to be kept.

    Raises HermitcrabError when there is nothing to test: an engine that cannot be used, a host that does not start.
    """
    began = time.monotonic()
    async with _prepared(plan, keep_log) as scratch:
        test = _Test(plan, scratch, tell)
        await test.run()
    test.outcome.took_s = time.monotonic() - began
    return test.outcome


class _Scratch:
    """All that is made for one test."""

    def __init__(self, home: Home, settings: Settings, engine: Engine, host: HostProcess, acts: Acts) -> None:
        self.home, self.settings, self.engine, self.host, self.acts = home, settings, engine, host, acts
        self.faults: list[Fault] = []
        """Those that are possible here."""


@asynccontextmanager
async def _prepared(plan: Plan, keep_log: Path | None) -> AsyncIterator[_Scratch]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crab-selftest-")))
        place = folder / "disk"
        place.mkdir()
        disk = stack.enter_context(small_disk(place))
        home = Home(place / "home")
        home.prepare()
        told: dict[str, Any] = {"containers.engine": plan.engine, "agents.provider": "echo"}
        environment = {"HERMITCRAB__LOGS__FORMAT": "json"}
        daemon = None
        if plan.has_faults:
            # Without faults it is the machine's own service that is to be tried.
            daemon = await stack.enter_async_context(own_daemon(folder, load(home.path, told).containers))
        if daemon is not None:
            told[f"containers.{plan.engine}_socket"] = str(daemon.socket)
            environment[f"HERMITCRAB__CONTAINERS__{plan.engine.upper()}_SOCKET"] = str(daemon.socket)
        settings = load(home.path, told)
        clock = JumpingClock(folder / "clock")
        host = HostProcess(
            home.path,
            engine=plan.engine,
            env=environment,
            log=keep_log or folder / "host.log",
            program=("hermitcrab.selftest.jumping_clock", str(clock.path)),
        )
        async with Store.open(home.database) as store:
            engine = open_engine(home, settings, await store.write(installation.get_or_create))
        stack.push_async_callback(_clear, host, engine, daemon)
        await _require(engine, settings.containers.image)
        scratch = _Scratch(home, settings, engine, host, Acts(host, engine, disk=disk, daemon=daemon, clock=clock))
        scratch.faults = Acts.possible(disk=disk, daemon=daemon) if plan.has_faults else []
        yield scratch


async def _require(engine: Engine, image: str | None) -> None:
    """Raises EngineError when the engine cannot be used, which no conversation need wait to find out."""
    await engine.capabilities()
    for finding in await engine.preflight():
        if finding.level == "error":
            raise EngineError(Failure.RUNTIME_UNAVAILABLE, f"{finding.subject}: {finding.text}", hint=finding.fix)
    await engine.ensure_image(image if image or engine.name == "bubblewrap" else default_tag())


async def _clear(host: HostProcess, engine: Engine, daemon: Daemon | None) -> None:
    """What a test that failed or was broken off has left must not stay on the machine."""
    with anyio.CancelScope(shield=True):
        await host.kill()
        if daemon is not None:
            await isolated(daemon.start)  # It may have been ended a moment ago.
        try:
            left = await engine.containers()
        except EngineError:
            left = []  # Whoever ran the test hears from the test itself that it cannot be asked.
        for view in left:
            await isolated(engine.remove, view.name)
        await engine.aclose()


class _Test:
    def __init__(self, plan: Plan, scratch: _Scratch, tell: Tell) -> None:
        self.outcome = Outcome(plan)
        self._plan, self._scratch, self._acts = plan, scratch, scratch.acts
        self._home = scratch.home
        names = [f"chat-{number}" for number in range(plan.sessions)]
        self._talkers = [Talker(scratch.home, name, seed=plan.seed, pause_s=plan.pause_s) for name in names]
        self._tell = tell
        self._phase: Phase = "preparing"
        self._phase_began = time.monotonic()

    async def run(self) -> None:
        """Talk, and look what the host holds; then the same with faults, and compare."""
        async with anyio.create_task_group() as listening:
            listening.start_soon(self._tell_how_far)
            await self._acts.have_host()
            async with ControlClient.connect(self._home) as client:
                for talker in self._talkers:
                    await client.call("groups.create", folder=talker.group)
            for talker in self._talkers:
                listening.start_soon(talker.listen)
            self._enter("talking")
            await self._round()
            before = await self._at_rest(None)
            await self._leave()
            files = files_of(self._home)
            await self._acts.have_host()
            if self._plan.has_faults:
                self._enter("faults")
                await self._faulty_time()
            self._enter("last answers")
            await self._round()
            self.outcome.cut_off = await self._cut_off()
            self._enter("comparing")
            after = await self._at_rest(before)
            self._enter("leaving")
            await self._leave()
            self._enter("looking around")
            self._count()
            self._compare(before, after, files)
            self.outcome.orphans += await leftovers(self._home, self._scratch.settings, log=self._scratch.host.log)
            listening.cancel_scope.cancel()

    def _enter(self, phase: Phase) -> None:
        self._phase, self._phase_began = phase, time.monotonic()
        self._report()

    def _report(self) -> None:
        done = self._acts.done
        self._tell(
            Progress(
                phase=self._phase,
                said=sum(talker.tally.said for talker in self._talkers),
                heard=sum(len(talker.tally.heard) for talker in self._talkers),
                faults=done.total(),
                last_fault=self._acts.last or "",
                since_s=time.monotonic() - self._phase_began,
            )
        )

    async def _tell_how_far(self) -> None:
        while True:
            self._report()
            await anyio.sleep(TOLD_EVERY_S)

    async def _round(self) -> None:
        """A few messages in each conversation, and all answers to what was said."""
        never = anyio.Event()
        async with anyio.create_task_group() as talking:
            for talker in self._talkers:
                most = talker.tally.said + self._plan.messages_at_least
                talking.start_soon(functools.partial(talker.talk, until=never, most=most))
        with anyio.move_on_after(self._plan.answered_within_s):
            async with anyio.create_task_group() as looking:
                looking.start_soon(self._until_nothing_waits, looking.cancel_scope)
                for talker in self._talkers:
                    await talker.complete()
                looking.cancel_scope.cancel()

    async def _until_nothing_waits(self, waiting: anyio.CancelScope) -> None:
        """Call off the wait for answers when the host has none to give any more: what was not heard by then is lost."""
        while True:
            await anyio.sleep(LOOKED_EVERY_S)
            try:
                async with ControlClient.connect(self._home) as client:
                    found = await client.call("delivery.doctor")
            except HostUnreachableError:
                continue  # It is away, and comes back.
            if not found["waiting"] and not found["under_way"]:
                waiting.cancel()
                return

    async def _faulty_time(self) -> None:
        plan, over = self._plan, anyio.Event()
        events = schedule(
            plan.seed,
            seconds=plan.seconds,
            sessions=plan.sessions,
            every_s=plan.fault_every_s,
            faults=self._scratch.faults,
        )
        async with anyio.create_task_group() as talking:
            for talker in self._talkers:
                talking.start_soon(functools.partial(talker.talk, until=over))
            async with anyio.create_task_group() as lasting:
                began = time.monotonic()
                for event in events:
                    await anyio.sleep(max(0.0, began + event.at_s - time.monotonic()))
                    await self._acts.do(event, lasting)
                await anyio.sleep(max(0.0, began + plan.seconds - time.monotonic()))
            over.set()
        self._acts.undo()
        self.outcome.impossible = sorted(fault for fault in Fault if fault not in self._scratch.faults)

    async def _at_rest(self, before: Holdings | None) -> Holdings:
        """What the host holds without a container: as soon as that is no more than before, or after a while."""
        async with ControlClient.connect(self._home) as client, anyio.create_task_group() as stopping:
            for session in await self._sessions(client):
                stopping.start_soon(functools.partial(client.call, "sessions.stop", session=session))
        found = await holdings(self._home)
        with anyio.move_on_after(self._plan.at_rest_within_s):
            while before is not None and too_much(growth(before, found)):
                await anyio.sleep(1)
                found = await holdings(self._home)
        return found

    async def _cut_off(self) -> list[str]:
        """Ask each container for an answer of the gateway."""
        found: list[str] = []
        async with ControlClient.connect(self._home) as client:
            for session in await self._sessions(client):
                try:
                    status = (await client.call("session.ask", session=session, subject="evidence"))["answer"][
                        "gateway"
                    ]
                except HermitcrabError as error:
                    status = error.message
                if not isinstance(status, int):
                    found.append(f"the container of {session} does not get to the gateway: {status}")
        return found

    async def _sessions(self, client: ControlClient) -> list[str]:
        """Those that have a container."""
        return [each["session_id"] for each in (await client.call("status"))["containers"]]

    async def _leave(self) -> None:
        try:
            code = await self._scratch.host.stop()
        except subprocess.TimeoutExpired:
            self.outcome.orphans.append("the host did not leave when it was asked to")
            await self._scratch.host.kill()
        else:
            self.outcome.exit_code = self.outcome.exit_code or code

    def _count(self) -> None:
        outcome, acts = self.outcome, self._acts
        for talker in self._talkers:
            tally = talker.tally
            outcome.messages += tally.said
            outcome.lost += [f"{talker.group}: message {number} was not answered" for number in tally.lost]
            outcome.doubled += [f"{talker.group}: message {number} was answered again" for number in tally.doubled]
            outcome.out_of_order += [f"{talker.group}: message {number} came too late" for number in tally.out_of_order]
        outcome.faults = {fault.value: count for fault, count in sorted(acts.done.items())}
        outcome.passed_over = {fault.value: count for fault, count in sorted(acts.passed_over.items())}

    def _compare(self, before: Holdings, after: Holdings, files: frozenset[str]) -> None:
        fresh = sorted(files_of(self._home) - files)
        self.outcome.growth = {**growth(before, after), "files": len(fresh)}
        self.outcome.grown = [*too_much(self.outcome.growth), *(f"{path} is new in the home" for path in fresh)]
