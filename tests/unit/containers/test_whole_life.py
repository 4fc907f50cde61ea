"""The whole life of containers, by whatever happens in whatever order, and what always holds.

A real host (router, mailboxes, link, gateway, reconciling) on the fake engine, in virtual time: an hour takes as long as
its work. Every run ends with all faults mended, and then everything that waits must be answered.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hermitcrab.containers.lifecycle.slot import SessionView
from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import ContainerSpec, ContainerStatus, EngineEvent
from hermitcrab.model.ids import InstallationId
from hermitcrab.store import deaths
from hermitcrab.testing.fake_engine import FakeContainer, FakeMachine
from hermitcrab.testing.simulation import Simulation
from hermitcrab.testing.virtual_time import VirtualLoop, work_in_place

T = TypeVar("T")

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Nothing of this outlives the test, and a disk that syncs is most of its time."""

CHATS = ("one", "two", "three")
LIVES = int(os.environ.get("HERMITCRAB_LIVES", "20"))
"""How many are lived. Without the variable the same ones each time; with it, others."""

chats = st.sampled_from(CHATS)
METHODS = ("create", "start", "inspect", "stop", "remove", "freeze", "thaw", "ensure_image", "containers", "logs")
FAILURES = (Failure.RUNTIME_UNAVAILABLE, Failure.UNKNOWN, Failure.RESOURCES_EXHAUSTED)


class Life(RuleBasedStateMachine):
    """Chats of two agent groups; there is room for two containers."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="crab-life-", dir=MEMORY)))
        self.stack.enter_context(work_in_place())
        self.runner = self.stack.enter_context(asyncio.Runner(loop_factory=VirtualLoop))
        self.simulation = Simulation(
            folder,
            memory_budget_mb=2 * 256,
            quiet_before_freeze_s=20.0,
            quiet_before_stop_s=60.0,
            hello_deadline_s=10.0,
            drain_within_s=2.0,
            stop_grace_s=2.0,
        )
        self.made: list[tuple[str, int]] = []
        self.foreign: ContainerSpec | None = None
        self.stopped: set[str] = set()
        """Chats whose container a person stopped, and that nobody spoke to since: they may rest with what waits."""
        self.words = 0
        self.old: dict[str, int] = {}
        """By a word for a fresh container: the generation that there was when it was left."""
        _count_made(self.simulation.machine, self.made)

    def do(self, work: Awaitable[T]) -> T:
        async def settled() -> T:
            result = await work
            await anyio.sleep(0.01)
            return result

        return self.runner.run(settled())

    @initialize()
    def begin(self) -> None:
        async def begin() -> None:
            await self.simulation.start()
            await self.simulation.add_session("one")
            await self.simulation.add_sessions_of_one_group(["two", "three"])

        self.do(begin())

    # What people do.

    @rule(chat=chats)
    def say(self, chat: str) -> None:
        self.stopped.discard(chat)
        self.do(self.simulation.say(chat))

    @rule(chat=chats)
    def wake(self, chat: str) -> None:
        async def wake() -> None:
            session = await self.simulation.session(self.simulation.chats[chat][1])
            with anyio.move_on_after(30):  # It may wait for room without end.
                outcome = await self.simulation.host.runner.wake(session)
                assert outcome.kind in {"live", "started", "thawed", "waiting", "called-off", "failed"}
                assert (outcome.failure is not None) == (outcome.kind == "failed")

        self.do(wake())

    @rule(chat=chats)
    def stop(self, chat: str) -> None:
        self.stopped.add(chat)
        self.do(self.simulation.host.runner.kill(self.simulation.chats[chat][1]))

    @rule(chat=chats)
    def restart_with_a_word(self, chat: str) -> None:
        async def restart() -> None:
            session = await self.simulation.session(self.simulation.chats[chat][1])
            self.words += 1
            word = f"be new {self.words}"
            container = self.simulation.container(chat)
            self.old[word] = container.spec.generation if container is not None else 0
            await self.simulation.host.runner.restart(session, message=word)

        self.do(restart())

    # What happens to containers.

    @rule(chat=chats, code=st.sampled_from([0, 1, 137]))
    def die(self, chat: str, code: int) -> None:
        container = self.simulation.container(chat)

        async def die() -> None:
            if container is not None and container.process is not None:
                container.process.exit(code)

        self.do(die())

    @rule(chat=chats)
    def hear_late_of_an_end(self, chat: str) -> None:
        container = self.simulation.container(chat)

        async def tell() -> None:
            if container is not None:
                self.simulation.engine.tell(EngineEvent(kind="ended", name=container.spec.name))

        self.do(tell())

    @rule(chat=chats)
    def somebody_removes_it(self, chat: str) -> None:
        async def remove() -> None:
            container = self.simulation.container(chat)
            if container is not None and not self.simulation.engine.faults.unavailable:
                if container.process is not None:
                    container.process.exit(137)
                self.simulation.machine.containers.pop(container.spec.name, None)

        self.do(remove())

    # What goes wrong, and is mended again.

    @rule(flag=st.sampled_from(["says_hello", "beats", "answers", "obeys"]), value=st.booleans())
    def runners_are(self, flag: str, value: bool) -> None:
        setattr(self.simulation.script, flag, value)

    @rule(flag=st.sampled_from(["unavailable", "drop_events", "die_after_start", "cannot_kill"]), value=st.booleans())
    def the_engine_is(self, flag: str, value: bool) -> None:
        setattr(self.simulation.engine.faults, flag, value)

    @rule(method=st.sampled_from(METHODS), failure=st.sampled_from(FAILURES), times=st.integers(1, 3))
    def the_next_calls_fail(self, method: str, failure: Failure, times: int) -> None:
        errors = [EngineError(failure, f"{method} fails as the test wants it") for _ in range(times)]
        self.simulation.engine.faults.fail_next[method] = errors

    @rule()
    def somebody_else_has_a_container(self) -> None:
        """Another installation's, under a name of ours: it is not to be touched."""
        ours = next(iter(self.simulation.machine.containers.values()), None)
        if ours is not None and self.foreign is None:
            self.foreign = replace(ours.spec, name="hermitcrab-of-somebody-else", installation=InstallationId("other"))
            self.simulation.machine.add(self.foreign)

    # Time, and the host.

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 35.0, 130.0]))
    def time_goes_on(self, seconds: float) -> None:
        self.do(anyio.sleep(seconds))

    @rule()
    def reconcile(self) -> None:
        self.do(self.simulation.host.reconciler.sweep())

    @rule(how=st.sampled_from(["crash", "leave", "stop"]))
    def the_host_begins_anew(self, how: str) -> None:
        async def anew() -> None:
            await getattr(self.simulation, how)()
            await self.simulation.start()

        self.do(anew())

    # What always holds.

    @invariant()
    def each_session_has_one_container_and_no_older_one_is_attended(self) -> None:
        if not self.simulation.chats:
            return
        views = self.do(self._views())
        running = [each for each in self._ours() if each.status is not ContainerStatus.EXITED]
        assert max(Counter(each.spec.session for each in running).values(), default=0) <= 1
        for each in running:
            view = views.get(each.spec.session)
            if view is not None and view.phase in {"ready", "frozen", "draining"}:
                assert view.generation == each.spec.generation

    @invariant()
    def what_is_anothers_is_left_alone(self) -> None:
        if self.foreign is not None:
            container = self.simulation.machine.containers[self.foreign.name]
            assert (container.spec, container.status) == (self.foreign, ContainerStatus.CREATED)

    def teardown(self) -> None:
        try:
            if self.simulation.chats:
                self.do(self._mended())
        finally:
            self.stack.close()

    async def _mended(self) -> None:
        simulation = self.simulation
        faults, script = simulation.engine.faults, simulation.script
        faults.unavailable = faults.drop_events = faults.die_after_start = faults.cannot_kill = False
        faults.fail_next.clear()
        script.says_hello = script.beats = script.answers = script.obeys = True
        simulation.runners.wake_up()
        for chat in self.stopped:
            simulation.host.runner.request(await simulation.session(simulation.chats[chat][1]))
        await simulation.answered(within_s=1800)
        for _, generation, text in simulation.script.received:
            assert generation > self.old.get(text, 0), "an old container was handed a word for the fresh one"
        with anyio.fail_after(1200):
            while self._ours() or simulation.host.runner.views():
                await simulation.host.runner.stop_all()
                await anyio.sleep(5)
        assert simulation.host.runner.admission().running == 0
        assert simulation.runners.tasks == 0
        await self._every_end_is_certified_once()
        await simulation.stop()
        leaked = asyncio.all_tasks() - {asyncio.current_task()}
        await anyio.sleep(3)
        leaked = {task for task in leaked if not task.done()}
        assert not leaked, leaked

    async def _every_end_is_certified_once(self) -> None:
        simulation = self.simulation
        indexed = Counter(
            (each.session, each.generation)
            for each in await simulation.host.store.read(lambda connection: deaths.newest(connection, limit=1000))
        )
        written: Counter[tuple[str, int]] = Counter()
        for _, session_id in simulation.chats.values():
            session = await simulation.session(session_id)
            for each in await simulation.host.runner.certificates(session):
                written[session_id, each["generation"]] += 1
        assert max(indexed.values(), default=0) <= 1
        assert max(written.values(), default=0) <= 1, written
        missing = set(self.made) - set(indexed)
        assert not missing, f"ended without a certificate: {missing}"

    async def _views(self) -> dict[str, SessionView]:
        return {view.session_id: view for view in self.simulation.host.runner.views()}

    def _ours(self) -> list[FakeContainer]:
        return [each for each in self.simulation.machine.containers.values() if each.spec is not self.foreign]


def _count_made(machine: FakeMachine, made: list[tuple[str, int]]) -> None:
    add = machine.add

    def counted(spec: ContainerSpec) -> None:
        add(spec)
        if spec.installation != "other":
            made.append((spec.session, spec.generation))

    machine.add = counted  # type: ignore[method-assign]


Life.TestCase.settings = settings(
    max_examples=LIVES,
    phases=[HypothesisPhase.generate],
    derandomize="HERMITCRAB_LIVES" not in os.environ,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLife = Life.TestCase


@pytest.fixture(autouse=True)
def without_asyncios_words() -> Iterator[None]:
    """Hosts are torn down here by the dozen; elsewhere, what asyncio says is looked at."""
    log = logging.getLogger("asyncio")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
