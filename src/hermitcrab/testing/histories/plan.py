"""What happens in a history, by its seed: people write, things break and are mended, time passes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio

from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import ContainerStatus, EngineEvent

if TYPE_CHECKING:
    from hermitcrab.testing.histories.world import World

STEPS = (2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7, 8, 10, 26)
"""How many things happen in a history, each of these as often. Short ones find what is wrong with the least work: what
two faults do to each other shows in a few steps. Some are long, for what takes many."""

VERBS = (
    *["echo"] * 8,
    *["mid"] * 2,
    *["edit"] * 2,
    *["hang-up"] * 2,
    "file",
    "large",
    "long",
    "later",
    "react",
    "ask",
    "elsewhere",
    "state",
    "state",
    "slow",
    "die",
    "die",
    "hang",
    "fail",
)
SLOW = 0.2
"""How often a history is of a machine that is slow in all that it does, until everything is mended."""

POISON = 0.25
"""How often a history has one message that ends every container."""

_METHODS = ("create", "start", "inspect", "stop", "remove", "freeze", "thaw", "ensure_image", "containers", "logs")
_FAILURES = (Failure.RUNTIME_UNAVAILABLE, Failure.UNKNOWN, Failure.RESOURCES_EXHAUSTED)

Act = Callable[["Plan"], Any]


class Plan:
    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = random.Random(world.seed + 3)
        self._written = 0
        self._furthest_s = 0.0
        """How far the clock was ever set forward."""
        self._steps = self.dice.choice(STEPS)
        self._poison_at = self.dice.randrange(self._steps) if self.dice.random() < POISON else -1
        self._to_mend: list[Callable[[], None]] = []
        """What goes right again by itself."""
        self.world.threads.slow = self.dice.random() < SLOW

    async def unfold(self) -> None:
        """Live through it."""
        for _ in range(self._steps):
            if self.world.host is None:
                await self._wait(self.dice.choice([0.0, 0.1, 2.0, 40.0]))
                await self.world.start()
                continue
            self.world.crash_in = self.world.crash_in if self.dice.random() < 0.8 else None
            act = self.dice.choices(_ACTS, _WEIGHTS)[0]
            self.world.note("act", act.__name__)
            self.world.counts[act.__name__] += 1
            if (taking_time := act(self)) is not None:
                await taking_time
            await self._wait(self.dice.choice([0.0, 0.0, 0.02, 0.1, 0.3, 1.0, 1.0, 3.0, 8.0]))

    async def mend(self) -> None:
        """Everything works from now on, and a host runs."""
        world = self.world
        world.crash_in = None
        for function in list(self._to_mend):
            function()
        world.disk.full = world.threads.slow = False
        world.loop.network.weather.breaks = 0.0
        world.engine.faults.fail_next.clear()
        # What an agent wanted to be shown at a time that the clock did not reach again is due now.
        world.clocks.set_forward_s = self._furthest_s
        for platform in world.platforms.values():
            platform.ill, platform.down = 0.0, False
        while world.host is None:
            await world.start()

    # What people do.

    def _write(self) -> None:
        chat = self.dice.choice(self.world.chats)
        for _ in range(self.dice.choice([1, 1, 2, 3])):
            verb = "poison" if self._written == self._poison_at else self.dice.choice(VERBS)
            self._written += 1
            chat.write(f"m{self._written}", f"{verb} {self._written}")

    def _write_everywhere(self) -> None:
        for chat in self.world.chats:
            self._written += 1
            chat.write(f"m{self._written}", f"echo {self._written}")

    # What goes wrong with containers.

    def _a_container_dies(self) -> None:
        running = [each for each in self.world.machine.containers.values() if each.runs and each.process]
        if running:
            chosen = self.dice.choice(running)
            assert chosen.process is not None
            chosen.process.exit(self.dice.choice([0, 1, 137]), oom_killed=self.dice.random() < 0.3)

    def _links_are_cut(self) -> None:
        for number in list(self.world.loop.network.connections):
            self.world.loop.network.cut(number)

    def _a_late_event_is_told(self) -> None:
        for each in self.world.machine.containers.values():
            self.world.engine.tell(EngineEvent(kind="ended", name=each.spec.name))

    def _somebody_removes_a_container(self) -> None:
        ended = [each for each in self.world.machine.containers.values() if each.status is not ContainerStatus.CREATED]
        if ended:
            chosen = self.dice.choice(ended)
            if chosen.process is not None:
                chosen.process.exit(137)
            self.world.machine.containers.pop(chosen.spec.name, None)

    # What goes wrong with the engine.

    def _the_engine_is_away(self) -> None:
        self._for_a_while("unavailable")

    def _the_engine_hangs(self) -> None:
        faults = self.world.engine.faults
        if faults.gate is None:
            faults.gate = gate = anyio.Event()

            def go_on() -> None:
                faults.gate = None
                gate.set()

            self._later(go_on)

    def _events_are_lost(self) -> None:
        self._for_a_while("drop_events")

    def _starts_fail(self) -> None:
        self._for_a_while("die_after_start")

    def _nothing_can_be_killed(self) -> None:
        self._for_a_while("cannot_kill")

    def _calls_fail(self) -> None:
        method, failure = self.dice.choice(_METHODS), self.dice.choice(_FAILURES)
        errors = [EngineError(failure, f"{method} fails in this history") for _ in range(self.dice.randint(1, 3))]
        self.world.engine.faults.fail_next[method] = errors

    def _the_engine_is_set_back(self) -> None:
        """It and the host die together, and it comes back with what it knew some time before."""
        if self.world.removed:
            self.world.die("with the engine")
            self.world.bring_back(self.dice.choice(self.world.removed))

    # What goes wrong with platforms, the disk and the clock.

    def _a_platform_is_ill(self) -> None:
        platform = self.dice.choice(list(self.world.platforms.values()))
        platform.ill = self.dice.choice([0.3, 0.7, 1.0])

        def heal() -> None:
            platform.ill = 0.0

        self._later(heal)

    def _a_platform_is_away(self) -> None:
        platform = self.dice.choice(list(self.world.platforms.values()))
        platform.down = True

        def come_back() -> None:
            platform.down = False

        self._later(come_back)

    def _the_disk_is_full(self) -> None:
        self.world.disk.full = True

        def free() -> None:
            self.world.disk.full = False

        self._later(free)

    def _the_machine_is_slow(self) -> None:
        threads = self.world.threads
        threads.slow = True

        def be_quick() -> None:
            threads.slow = False

        self._later(be_quick)

    def _the_clock_is_set(self) -> None:
        clocks = self.world.clocks
        self.world.latest_s()
        clocks.set_forward_s += self.dice.choice([-86400.0, -3600.0, -5.0, 5.0, 3600.0, 2 * 86400.0])
        self._furthest_s = max(self._furthest_s, clocks.set_forward_s)

    # What becomes of hosts.

    def _the_host_will_die(self) -> None:
        self.world.crash_in = self.dice.randint(1, 60)

    def _the_host_dies_now(self) -> None:
        self.world.die("between two steps")

    async def _the_host_leaves(self) -> None:
        await self.world.leave(containers=False)

    async def _the_host_stops(self) -> None:
        await self.world.leave(containers=True)

    async def _it_is_quiet(self) -> None:
        await self._wait(self.dice.choice([10.0, 25.0, 70.0]))

    def _for_a_while(self, flag: str) -> None:
        faults = self.world.engine.faults
        setattr(faults, flag, True)
        self._later(lambda: setattr(faults, flag, False))

    def _later(self, function: Callable[[], None]) -> None:
        def mend() -> None:
            if mend in self._to_mend:
                self._to_mend.remove(mend)
                function()

        self._to_mend.append(mend)
        self.world.loop.call_later(self.dice.choice([0.2, 3.0, 20.0]), mend, context=self.world.context)

    async def _wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


_ACTS_BY_WEIGHT = {
    Plan._write: 40,  # noqa: SLF001
    Plan._write_everywhere: 4,  # noqa: SLF001
    Plan._a_container_dies: 4,  # noqa: SLF001
    Plan._links_are_cut: 4,  # noqa: SLF001
    Plan._a_late_event_is_told: 2,  # noqa: SLF001
    Plan._somebody_removes_a_container: 1,  # noqa: SLF001
    Plan._the_engine_is_away: 2,  # noqa: SLF001
    Plan._the_engine_hangs: 2,  # noqa: SLF001
    Plan._events_are_lost: 2,  # noqa: SLF001
    Plan._starts_fail: 1,  # noqa: SLF001
    Plan._nothing_can_be_killed: 1,  # noqa: SLF001
    Plan._calls_fail: 4,  # noqa: SLF001
    Plan._the_engine_is_set_back: 2,  # noqa: SLF001
    Plan._a_platform_is_ill: 6,  # noqa: SLF001
    Plan._a_platform_is_away: 2,  # noqa: SLF001
    Plan._the_disk_is_full: 2,  # noqa: SLF001
    Plan._the_machine_is_slow: 4,  # noqa: SLF001
    Plan._the_clock_is_set: 2,  # noqa: SLF001
    Plan._the_host_will_die: 9,  # noqa: SLF001
    Plan._the_host_dies_now: 2,  # noqa: SLF001
    Plan._the_host_leaves: 1,  # noqa: SLF001
    Plan._the_host_stops: 1,  # noqa: SLF001
    Plan._it_is_quiet: 4,  # noqa: SLF001
}
_ACTS: list[Act] = list(_ACTS_BY_WEIGHT)
_WEIGHTS = list(_ACTS_BY_WEIGHT.values())
