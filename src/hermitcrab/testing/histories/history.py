"""One history, from its seed to its end: things happen, everything is mended, and then nothing may be missing."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.store import sessions
from hermitcrab.testing.histories import invariants
from hermitcrab.testing.histories.homes import Template
from hermitcrab.testing.histories.plan import Plan
from hermitcrab.testing.histories.world import World
from hermitcrab.testing.virtual_time import VirtualLoop, run

QUIET_WITHIN_S = 3600.0
"""After everything was mended. Backoffs of minutes end within it."""

COLLECTED_EVERY = 50
"""Histories. Cycles that hosts leave are looked for so often, and not in the middle of one."""

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Nothing of a history outlives it, and a disk that syncs would be most of its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a history was."""

    seed: int
    digest: str
    """Of everything that happened, in order: the same for the same seed and code."""
    wrong: list[str] = field(default_factory=list)
    """What must never happen, and did."""
    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)


@contextmanager
def template() -> Iterator[Template]:
    """What histories begin on, one after the other. Removed at the end."""
    with tempfile.TemporaryDirectory(prefix="crab-histories-", dir=MEMORY) as folder:
        made = Template(Path(folder))
        run(made.make)
        yield made


@contextmanager
def nothing_else() -> Iterator[None]:
    """For a time in which histories are lived and nothing else: garbage is collected between them, and not by chance.

    What hosts that were killed leave behind is cleared up at the end, so that Python warns nobody else of it.
    """
    gc.collect()
    gc.freeze()  # What is there now stays, and need not be looked at again and again.
    gc.disable()
    try:
        yield
    finally:
        _clear_up()
        gc.enable()
        gc.unfreeze()


def live(seed: int, on: Template) -> Told:
    """Live one history. Raises nothing of the host's: what went wrong is told."""
    on.restore()
    loop = VirtualLoop(stuck_after_s=0)
    try:
        world = World(loop, seed, on)
        with world.fenced():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)
                    loop.run_until_complete(_whole(world))
            except TimeoutError as error:
                world.went_wrong(f"it stands still: {error}")
    finally:
        loop.close()
        if seed % COLLECTED_EVERY == 0:
            _clear_up()
    return Told(seed=seed, digest=world.digest, wrong=world.wrong, counts=world.counts, lines=world.lines)


def _clear_up() -> None:
    """What hosts that were killed had begun and never got to is dropped, which Python would warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        gc.collect()


async def _whole(world: World) -> None:
    plan = Plan(world)
    await world.start()
    await plan.unfold()
    await plan.mend()
    await _until_quiet(world)
    await world.leave(containers=True)
    for text in [*invariants.of_the_world(world), *invariants.of_the_disk(world)]:
        world.went_wrong(text)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        world.went_wrong(f"tasks were left: {sorted(str(each.get_coro()) for each in left)}")
        for each in left:
            each.cancel()


async def _until_quiet(world: World) -> None:
    until = world.loop.time() + QUIET_WITHIN_S
    while not await _is_quiet(world):
        if world.loop.time() > until:
            assert world.host is not None
            views = [f"{each.session_id} {each.phase} {each.text}" for each in world.host.runner.views()]
            world.went_wrong(f"it did not come to rest: {views}")
            return
        await asyncio.sleep(5.0)


async def _is_quiet(world: World) -> bool:
    host = world.host
    assert host is not None
    if any(chat.events for chat in world.chats):
        return False
    if any(view.phase not in {"ready", "frozen", "quarantined"} for view in host.runner.views()):
        return False  # What could not be ended or removed at once is tried again later.
    attended = {(view.session_id, view.generation) for view in host.runner.views()}
    if any((each.spec.session, each.spec.generation) not in attended for each in world.machine.containers.values()):
        return False  # So is what a host could neither take over nor remove at its start.
    if host.runner.inheritance.overlooked():
        return False  # And what it could not look at then.
    for session in await host.store.read(sessions.page):
        counts = await host.mailboxes.run(session, Mailbox.counts)
        if counts.pending_triggers or counts.undelivered or counts.claimed:
            return False
    return True
