"""An engine in memory, which keeps the same promises as the real ones and breaks them when a test says so.

What outlives a host is on a `FakeMachine`: a second `FakeEngine` on the same machine is what a host sees after a
restart. A container's main process is a `Behaviour`, which the test chooses.
"""

from __future__ import annotations

import itertools
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.lowlevel

from hermitcrab.containers.engine import EngineOptions
from hermitcrab.containers.engines.feed import RESYNC, EventFeed
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.spec_check import check
from hermitcrab.model.container import (
    Capabilities,
    ContainerSpec,
    ContainerStats,
    ContainerStatus,
    ContainerView,
    EngineEvent,
    ExitRecord,
    Finding,
)
from hermitcrab.model.ids import InstallationId

_STARTED_AT = "2026-01-01T00:00:00.000+00:00"
_FIRST_PID = 10_000_000
"""Beyond what any kernel gives to a process: who looks there finds nobody."""


class FakeProcess:
    """The main process of a fake container, in the hands of its behaviour or of a test."""

    def __init__(self, container: FakeContainer, ended: Callable[[FakeContainer], None]) -> None:
        self._container = container
        self._ended = ended
        self.spec = container.spec
        self.signals: list[signal.Signals] = []

    def write(self, line: str) -> None:
        self._container.lines.append(line)

    def exit(self, code: int, *, oom_killed: bool = False) -> None:
        """End. A second end changes nothing."""
        if self._container.exit is None:
            self._container.exit = ExitRecord(exit_code=code, oom_killed=oom_killed, finished_at=_STARTED_AT)
            self._container.status = ContainerStatus.EXITED
            self._ended(self._container)


class Behaviour:
    """A main process that runs on and, like any pid 1 without handlers, takes no notice of SIGTERM."""

    def start(self, process: FakeProcess) -> None:
        """It was started."""

    def signal(self, process: FakeProcess, number: signal.Signals) -> None:
        """It was sent a signal that can be handled."""


@dataclass(frozen=True, slots=True)
class Speaks(Behaviour):
    """Writes its lines and runs on."""

    lines: tuple[str, ...] = ()

    def start(self, process: FakeProcess) -> None:
        for line in self.lines:
            process.write(line)


@dataclass(frozen=True, slots=True)
class Exits(Behaviour):
    """Writes its lines and ends at once."""

    code: int = 0
    lines: tuple[str, ...] = ()
    oom_killed: bool = False

    def start(self, process: FakeProcess) -> None:
        for line in self.lines:
            process.write(line)
        process.exit(self.code, oom_killed=self.oom_killed)


@dataclass(frozen=True, slots=True)
class Obeys(Behaviour):
    """Runs on, and ends when it is asked to."""

    code: int = 0
    lines: tuple[str, ...] = ()

    def start(self, process: FakeProcess) -> None:
        for line in self.lines:
            process.write(line)

    def signal(self, process: FakeProcess, number: signal.Signals) -> None:
        if number is signal.SIGTERM:
            process.exit(self.code)


@dataclass(slots=True)
class FakeContainer:
    spec: ContainerSpec
    id: str
    pid: int
    status: ContainerStatus = ContainerStatus.CREATED
    exit: ExitRecord | None = None
    lines: list[str] = field(default_factory=list)
    process: FakeProcess | None = None
    is_going: bool = False
    """Removed, but its name is not free yet."""
    thawed: anyio.Event = field(default_factory=anyio.Event)
    """Set when it is thawed; a new one for each time that it is frozen."""

    @property
    def runs(self) -> bool:
        return self.status in {ContainerStatus.RUNNING, ContainerStatus.FROZEN}


class FakeMachine:
    """What outlives a host: the containers and, for the hosts that listen, their ends."""

    def __init__(self) -> None:
        self.containers: dict[str, FakeContainer] = {}
        self.listeners: list[Callable[[FakeContainer], None]] = []
        self._numbers = itertools.count(1)

    def add(self, spec: ContainerSpec) -> None:
        number = next(self._numbers)
        self.containers[spec.name] = FakeContainer(spec=spec, id=f"fake-{number}", pid=_FIRST_PID + number)

    def ended(self, container: FakeContainer) -> None:
        for listener in list(self.listeners):
            listener(container)


@dataclass(slots=True)
class Faults:
    """What goes wrong, until the test mends it."""

    unavailable: bool = False
    """Every call says `runtime-unavailable`."""
    gate: anyio.Event | None = None
    """Every call waits for it: an engine that is slow, for exactly as long as a test wants."""
    fail_next: dict[str, list[EngineError]] = field(default_factory=dict)
    """By the method's name: errors for its next calls."""
    names_stay_in_use: bool = False
    """Removed containers keep their names until `FakeEngine.finish_removals`."""
    drop_events: bool = False
    """Ends are not told."""
    die_after_start: bool = False
    """Whatever is started ends right after with exit code 1."""
    cannot_kill: bool = False


class FakeEngine:
    """Counts its calls by method in `calls`; goes wrong as `faults` says."""

    name = "fake"

    def __init__(
        self,
        options: EngineOptions | None = None,
        *,
        machine: FakeMachine | None = None,
        behaviour: Callable[[ContainerSpec], Behaviour] | None = None,
        images: frozenset[str | None] = frozenset({None}),
    ) -> None:
        self.installation = options.installation if options else InstallationId("fake")
        self.machine = machine or FakeMachine()
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        self.images = images
        self._behaviour = behaviour or (lambda _spec: Obeys())
        self._feed = EventFeed()
        self._ends: dict[str, anyio.Event] = {}
        self.machine.listeners.append(self._on_end)

    async def capabilities(self) -> Capabilities:
        await self._enter("capabilities")
        return Capabilities(engine=self.name, version="1")

    async def preflight(self) -> list[Finding]:
        self.calls["preflight"] += 1
        if self.faults.unavailable:
            return [Finding(subject="fake", level="error", text="The engine does not answer", fix="Mend it.")]
        return [Finding(subject="fake", level="ok", text="ready")]

    async def ensure_image(self, image: str | None) -> None:
        await self._enter("ensure_image")
        self._check_image(image)

    async def python(self, image: str | None) -> tuple[int, int]:
        await self._enter("python")
        self._check_image(image)
        return sys.version_info[:2]

    async def create(self, spec: ContainerSpec) -> None:
        await self._enter("create")
        check(spec)
        self._check_image(spec.image)
        if spec.installation != self.installation:
            raise EngineError(Failure.SPEC_INVALID, f"{spec.name} belongs to another installation")
        _check_sources(spec)
        if spec.name in self.machine.containers:
            raise EngineError(Failure.NAME_IN_USE, f"There is a container {spec.name} already")
        self.machine.add(spec)

    async def start(self, name: str) -> None:
        await self._enter("start")
        container = self._must_find(name)
        if container.runs:
            return
        if container.status is ContainerStatus.EXITED:
            raise EngineError(Failure.STARTED_THEN_DIED, f"The container {name} has ended already")
        container.status = ContainerStatus.RUNNING
        container.process = FakeProcess(container, self.machine.ended)
        self._behaviour(container.spec).start(container.process)
        if self.faults.die_after_start:
            container.process.exit(1)

    async def freeze(self, name: str) -> None:
        await self._enter("freeze")
        container = self._must_run(name)
        if container.status is not ContainerStatus.FROZEN:
            container.status, container.thawed = ContainerStatus.FROZEN, anyio.Event()

    async def thaw(self, name: str) -> None:
        await self._enter("thaw")
        _thaw(self._must_run(name))

    async def stop(self, name: str, *, grace_s: float) -> None:
        await self._enter("stop")
        container = self._find(name)
        if container is None or container.process is None or not container.runs:
            return
        _thaw(container)
        ended = self._ends.setdefault(container.id, anyio.Event())
        if grace_s > 0:
            container.process.signals.append(signal.SIGTERM)
            self._behaviour(container.spec).signal(container.process, signal.SIGTERM)
            with anyio.move_on_after(grace_s):
                if container.runs:
                    await ended.wait()
        self._kill(container)

    async def remove(self, name: str) -> None:
        await self._enter("remove")
        container = self._find(name)
        if container is None:
            return
        self._kill(container)
        if self.faults.names_stay_in_use:
            container.is_going = True
        else:
            del self.machine.containers[name]

    async def inspect(self, name: str) -> ContainerView | None:
        await self._enter("inspect")
        container = self._find(name)
        return None if container is None else _view(container)

    async def containers(self) -> list[ContainerView]:
        await self._enter("containers")
        return [_view(each) for each in self.machine.containers.values() if self._is_seen(each)]

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        await self._enter("events")
        async with self._feed.subscribe() as listener:
            yield listener

    async def logs(self, name: str, *, lines: int) -> list[str]:
        await self._enter("logs")
        container = self._find(name)
        return [] if container is None or lines <= 0 else container.lines[-lines:]

    async def stats(self, name: str) -> ContainerStats:
        await self._enter("stats")
        if not self._must_find(name).runs:
            return ContainerStats(memory_bytes=None, cpu_s=None, pids=None)
        return ContainerStats(memory_bytes=1024 * 1024, cpu_s=0.1, pids=1)

    async def aclose(self) -> None:
        if self._on_end in self.machine.listeners:
            self.machine.listeners.remove(self._on_end)
        self._feed.close()

    def process(self, name: str) -> FakeProcess:
        """The main process of a started container, for a test to write, end or look at."""
        process = self.machine.containers[name].process
        assert process is not None, f"{name} was not started"
        return process

    def tell(self, event: EngineEvent) -> None:
        """An event, true or not, early or late."""
        self._feed.publish(event)

    def lose_events(self) -> None:
        """What a broken event stream looks like from outside: ends may have been missed."""
        self._feed.publish(RESYNC)

    def finish_removals(self) -> None:
        for name in [name for name, each in self.machine.containers.items() if each.is_going]:
            del self.machine.containers[name]

    async def _enter(self, method: str) -> None:
        """Every call passes here: counted, held up and broken as the faults say."""
        self.calls[method] += 1
        if self.faults.gate is not None:
            await self.faults.gate.wait()
        if self.faults.unavailable:
            raise EngineError(Failure.RUNTIME_UNAVAILABLE, "The fake engine does not answer", hint="Mend it.")
        if errors := self.faults.fail_next.get(method):
            raise errors.pop(0)
        await anyio.lowlevel.checkpoint()

    def _check_image(self, image: str | None) -> None:
        if image not in self.images:
            raise EngineError(Failure.IMAGE_UNAVAILABLE, f"There is no image {image}")

    def _is_seen(self, container: FakeContainer) -> bool:
        return container.spec.installation == self.installation and not container.is_going

    def _find(self, name: str) -> FakeContainer | None:
        container = self.machine.containers.get(name)
        if container is None or container.is_going:
            return None
        if not self._is_seen(container):
            raise EngineError(Failure.NAME_IN_USE, f"The container {name} is another installation's")
        return container

    def _must_find(self, name: str) -> FakeContainer:
        container = self._find(name)
        if container is None:
            raise EngineError(Failure.UNKNOWN, f"There is no container {name}")
        return container

    def _must_run(self, name: str) -> FakeContainer:
        container = self._must_find(name)
        if not container.runs:
            raise EngineError(Failure.UNKNOWN, f"The container {name} does not run")
        return container

    def _kill(self, container: FakeContainer) -> None:
        if not container.runs or container.process is None:
            return
        if self.faults.cannot_kill:
            raise EngineError(Failure.UNKNOWN, f"The container {container.spec.name} cannot be killed")
        container.process.exit(128 + signal.SIGKILL)

    def _on_end(self, container: FakeContainer) -> None:
        if (ended := self._ends.pop(container.id, None)) is not None:
            ended.set()
        if self._is_seen(container) and not self.faults.drop_events:
            self._feed.publish(EngineEvent(kind="ended", name=container.spec.name))


def _thaw(container: FakeContainer) -> None:
    container.status = ContainerStatus.RUNNING
    container.thawed.set()


def _check_sources(spec: ContainerSpec) -> None:
    for mount in spec.mounts:
        if not Path(mount.source).exists():
            raise EngineError(Failure.SPEC_INVALID, f"{mount.source} does not exist")


def _view(container: FakeContainer) -> ContainerView:
    spec = container.spec
    return ContainerView(
        name=spec.name,
        id=container.id,
        session=spec.session,
        generation=spec.generation,
        spec_hash=spec.spec_hash,
        status=container.status,
        pid=container.pid if container.runs else None,
        exit=container.exit,
        created_at=_STARTED_AT,
    )
