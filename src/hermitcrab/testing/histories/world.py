"""The world of one history: a machine, platforms and runners, and in it one host after the other."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import random
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import anyio
from anyio import to_thread

from hermitcrab import app
from hermitcrab.app import Host, open_host
from hermitcrab.channels.base import Choice
from hermitcrab.containers.link import server as link
from hermitcrab.containers.materials import runner_source
from hermitcrab.errors import HermitcrabError
from hermitcrab.groups import materials, surroundings
from hermitcrab.logic import spec
from hermitcrab.model.container import ContainerSpec, ContainerStatus
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.testing import fake_engine, virtual_sockets
from hermitcrab.testing.fake_engine import Behaviour, FakeContainer, FakeEngine, FakeMachine, FakeProcess
from hermitcrab.testing.histories.engine import WorldEngine
from hermitcrab.testing.histories.homes import Template
from hermitcrab.testing.histories.life import CURRENT, Disk, Life, Threads, as_life, stop_if_dead, task_factory
from hermitcrab.testing.histories.platform import Chat, Event, Platform, PlatformChannel, Shown
from hermitcrab.testing.histories.runner import SimulatedRunner
from hermitcrab.testing.virtual_sockets import Weather
from hermitcrab.testing.virtual_time import Clocks, VirtualLoop
from hermitcrab_wire import faults, frames

LINK_BREAKS = 0.01
"""How often a piece of a link's bytes is the last one, perhaps in the middle of a frame."""

LATER_WORD = 0.03
"""How often a platform tells later what became of something that it had taken."""


class World:
    def __init__(self, loop: VirtualLoop, seed: int, template: Template) -> None:
        self.loop, self.seed, self.template = loop, seed, template
        self.dice = random.Random(seed)
        self.clocks = Clocks(loop)
        self._latest_s = 0.0
        self.context = contextvars.copy_context()
        """In which nothing is the host's."""
        self.home, self.files = template.home, template.files
        self.lines: list[str] = []
        self.wrong: list[str] = []
        """What must never happen, and did."""
        self.counts: Counter[str] = Counter()
        loop.network.weather = Weather(random.Random(seed + 1), breaks=LINK_BREAKS)
        self.machine = FakeMachine()
        self.machine.listeners.append(self._ended)
        self.runners: dict[str, SimulatedRunner] = {}
        """By the container's id."""
        self.made: list[tuple[str, int]] = []
        self.disk = Disk(self.step)
        self.threads = Threads(random.Random(seed + 4))
        self.platforms = {
            "keys": Platform("keys", self, has_keys=True),
            "plain": Platform("plain", self, has_keys=False),
            "desk": Platform("desk", self, has_keys=True, reaches_operator=True),
        }
        self.chats = [Chat(name, self.platforms[type_], address) for name, type_, address in template.chats]
        self.crash_in: int | None = None
        """Steps until the host dies."""
        self._fails_next: dict[str, list[Any]] = {}
        self._engine: WorldEngine | None = None
        self.life: Life | None = None
        self.host: Host | None = None
        self._lives = 0
        self._once: set[tuple[str, str]] = set()
        self._root: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._newest: dict[str, int] = {}
        """By session: the generation that was made last."""
        self.removed: list[ContainerSpec] = []
        self.completed_rows: set[tuple[str, str]] = set()
        self.committed_outs: set[tuple[str, str]] = set()
        self._state: dict[str, list[str | None]] = {}
        """By session: the state that it must have, and what was sent after it and may have arrived."""

    @property
    def engine(self) -> FakeEngine:
        assert self._engine is not None, "no host was started"
        return self._engine

    # What happened.

    def note(self, *words: object) -> None:
        self.lines.append(f"{self.loop.time():.6f} {' '.join(map(str, words))}")

    @property
    def digest(self) -> str:
        """The same for the same history."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    def latest_s(self) -> float:
        """The latest time of the day that a clock has shown: what was due once is due, whatever it is set to."""
        self._latest_s = max(self._latest_s, self.clocks.time())
        return self._latest_s

    def went_wrong(self, text: str) -> None:
        self.note("WRONG", text)
        self.wrong.append(text)

    # Hosts.

    async def start(self) -> None:
        """A new host on what there is. Returns when it runs, or has died of a crash that was due."""
        self._lives += 1
        self.life = life = Life(self._lives)
        self._leave = asyncio.Event()
        started = asyncio.Event()
        self.note("host", self._lives, "starts")
        faults_of_engine = self._engine.faults if self._engine is not None else None
        with as_life(life):
            self._engine = WorldEngine(self)
            if faults_of_engine is not None:
                self._engine.faults = faults_of_engine
            self._root = self.loop.create_task(self._live(started), context=contextvars.copy_context())
        waiting = self.loop.create_task(started.wait())
        await asyncio.wait({self._root, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if life.dead:
            await life.gone.wait()
        elif self._root.done():
            error = self._root.exception()
            if not isinstance(error, HermitcrabError):
                self._root.result()
            # As for a person who starts it: it says why it cannot, and is started again later.
            self.note("host", self._lives, "cannot start:", type(error).__name__)
            self.host = self.life = None

    async def leave(self, *, containers: bool) -> None:
        """In good order. `containers`: they end with it."""
        if self.host is None or self.life is None or self._root is None:
            return
        life, root = self.life, self._root
        self.note("host", life.number, "leaves")
        if containers:
            with as_life(life):
                closing = self.loop.create_task(self.host.runner.close(keep_containers=False))
            await asyncio.wait({closing})
        self._leave.set()
        await asyncio.wait({root})
        if life.dead:
            await life.gone.wait()
            return
        self.host = self.life = self._root = None
        root.result()

    def die(self, where: str) -> None:
        """The host process is killed."""
        life = self.life
        if life is None or life.dead:
            return
        self.note("host", life.number, "dies", where)
        self.counts["host-killed"] += 1
        self.crash_in = None
        left = [Path(each) for each in self.loop.network.addresses()]
        self.loop.network.silence()
        life.die()
        self.host = self.life = None
        assert self._engine is not None
        self._engine.forget()
        self.context.copy().run(lambda: self.loop.create_task(self._bury(life, left)))

    async def _bury(self, life: Life, left: list[Path]) -> None:
        await life.unwind()
        for each in left:
            # Its unwinding took the names away; a process that is killed leaves them.
            if each.parent.is_dir():
                each.touch()

    def step(self, name: str) -> None:
        """A host came to one of the places where it may die."""
        stop_if_dead()
        if self.crash_in is not None and CURRENT.get() is not None:
            self.crash_in -= 1
            if self.crash_in <= 0:
                self.die(f"at {name}")
                raise asyncio.CancelledError

    async def _live(self, started: asyncio.Event) -> None:
        channels = {name: PlatformChannel(each) for name, each in self.platforms.items()}
        async with open_host(
            self.home,
            self.template.settings[self.seed % len(self.template.settings)],
            extra_channels=channels,
            keep_containers=True,
            engine=self._engine,
            process=f"host-{self._lives}",
        ) as host:
            self.host = host
            async with anyio.create_task_group() as tasks:
                for chat in self.chats:
                    tasks.start_soon(chat.bring, host)
                started.set()
                await self._leave.wait()
                tasks.cancel_scope.cancel()

    # What runners tell, and what must hold of it.

    def behaviour(self, spec: ContainerSpec) -> Behaviour:
        container = self.machine.containers[spec.name]
        if container.id not in self.runners:
            self.runners[container.id] = SimulatedRunner(self, container)
        return self.runners[container.id]

    def bring_back(self, spec: ContainerSpec) -> None:
        """The engine runs that container as if it had never been removed, in the place of what came after it."""
        now = self.machine.containers.pop(spec.name, None)
        if now is not None and now.process is not None:
            now.process.exit(137)
        self.note("back", spec.name, spec.generation)
        self.machine.add(spec)
        container = self.machine.containers[spec.name]
        container.status, container.process = ContainerStatus.RUNNING, FakeProcess(container, self.machine.ended)
        self.behaviour(spec).start(container.process)

    def runner_of(self, container: FakeContainer) -> SimulatedRunner | None:
        return self.runners.get(container.id)

    def _ended(self, container: FakeContainer) -> None:
        self.note("ended", container.spec.name, container.spec.generation, container.exit)
        if (runner := self.runners.pop(container.id, None)) is not None:
            runner.ended()

    def created(self, spec: ContainerSpec) -> None:
        if (spec.session, spec.generation) in self.made:
            self.went_wrong(f"generation {spec.generation} of {spec.session} was made twice")
        self.made.append((spec.session, spec.generation))
        self._newest[spec.session] = max(spec.generation, self._newest.get(spec.session, 0))

    def started(self, spec: ContainerSpec) -> None:
        running = [each for each in self.machine.containers.values() if each.runs and each.spec.session == spec.session]
        if len(running) > 1:
            self.went_wrong(f"{spec.session} has {len(running)} containers")

    def welcomed(self, runner: SimulatedRunner, frame: frames.Welcome) -> None:
        if runner.generation < self._newest.get(runner.session, 0):
            self.went_wrong(f"generation {runner.generation} of {runner.session} was welcomed after a newer was made")
        known = self._state.get(runner.session)
        if known and frame.state.get("last") not in known:
            self.went_wrong(f"{runner.session} was welcomed with the state {frame.state.get('last')}, not {known}")

    def handed(self, runner: SimulatedRunner, row: dict[str, Any]) -> None:
        self.counts["rows-handed"] += 1
        if (runner.session, row["id"]) in self.completed_rows:
            self.went_wrong(f"row {row['id']} was handed out after its completion was acknowledged")
        if runner.generation < self._newest.get(runner.session, 0):
            self.went_wrong(f"row {row['id']} was handed to an old container")

    def completed(self, runner: SimulatedRunner, key: str) -> None:
        self.completed_rows.add((runner.session, key))

    def sets_state(self, runner: SimulatedRunner, value: str) -> None:
        self._state.setdefault(runner.session, [None]).append(value)

    def committed(self, runner: SimulatedRunner, key: str, frame: frames.Frame | None) -> None:
        if isinstance(frame, frames.SetState) and frame.value is not None:
            known = self._state[runner.session]
            del known[: known.index(frame.value)]
        else:
            self.committed_outs.add((runner.session, key))

    def refused(self, runner: SimulatedRunner, frame: frames.Refused) -> None:
        self.went_wrong(f"{runner.session}: {frame.id} was refused: {frame.code} {frame.text}")

    # What runners ask of the world.

    def first_time(self, key: str, verb: str) -> bool:
        """Whether this row's turn comes to that for the first time in any container."""
        if (key, verb) in self._once:
            return False
        self._once.add((key, verb))
        return True

    def thinks_s(self, verb: str) -> float:
        return 30.0 if verb == "slow" else 0.01 + self.dice.random() * 0.5

    def later_s(self, key: str) -> float:
        """The same for each attempt."""
        return 10.0 + random.Random(key).random() * 60

    def file_for(self, words: str, *, large: bool) -> str:
        """A file in the agent's folder, the same for the same words."""
        dice = random.Random(words)
        size = dice.randint(130_000, 300_000) if large else dice.randint(0, 6000)
        name = f"{words.replace(' ', '-')}.bin"
        (self.files / name).write_bytes(dice.randbytes(size))
        return name

    # What platforms tell.

    def was_shown(self, platform: Platform, shown: Shown) -> None:
        chat = next((each for each in self.chats if each.platform is platform), None)
        if chat is None:
            return
        if shown.content.get("type") == "ask_question":
            choice = Choice(key=shown.key, option=self.dice.randrange(2), user_id=f"{platform.type}:1")
            for _ in range(self.dice.choice([1, 1, 2])):
                chat.tell(Event(choice=choice))
        elif self.dice.random() < LATER_WORD:
            chat.tell(Event(settled=(shown.key, self.dice.choice([None, "the number is not in use"]))))

    # For a person who looks at it.

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """Everything that a host uses of its process and machine is this world's."""
        tokens = random.Random(self.seed + 2)
        with ExitStack() as stack:
            stack.enter_context(self.clocks.turned())
            for owner, name, value in (
                (to_thread, "run_sync", self.threads.run),
                (sqlite3, "connect", self.disk.connect),
                (faults, "point", self.step),
                (link, "bind_unix", virtual_sockets.bind),
                (app, "Gateway", NoGateway),
                (secrets, "token_hex", lambda count=32: tokens.randbytes(count).hex()),
                # What is the same in every history is worked out once, or is not what histories are about.
                (runner_source, "snapshot", self.template.once(runner_source.snapshot)),
                (surroundings, "group_documents", self.template.once(materials.group_documents, by=1)),
                (spec, "check", _no_check),
                (fake_engine, "check", _no_check),
            ):
                stack.enter_context(patch.object(owner, name, value))
            self.loop.set_task_factory(task_factory)
            self.loop.set_exception_handler(self._unforeseen)
            before = random.getstate()
            random.seed(self.seed)
            try:
                yield
            finally:
                random.setstate(before)
                self.loop.set_task_factory(None)

    def _unforeseen(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error that nobody took. What a dying host leaves half done is none."""
        del loop
        error = context.get("exception")
        if not isinstance(error, asyncio.CancelledError):
            self.went_wrong(f"nobody took an error: {context['message']}: {error!r}")


def _no_check(_spec: ContainerSpec) -> None:
    """Every container of a history has the same few mounts and limits; other tests have them checked."""


class NoGateway:
    """A door that leads nowhere: containers in a history ask nobody outside."""

    routes: dict[str, Any] = {}  # noqa: RUF012  # never changed

    def __init__(self, *_arguments: Any, **_more: Any) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        return None

    async def open(self, session: SessionId, generation: Generation, folder: Path) -> None:
        del session, generation, folder

    async def revoke(self, session: SessionId, generation: Generation) -> None:
        del session, generation
