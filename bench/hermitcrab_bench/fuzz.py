"""Mutated frames on one session's link, and whether any other session hears of it.

The attacker is a process of its own at a Unix socket that the real host's end of a link serves, with the real exchange
and a real mailbox behind it; only that broken contracts end no container, so that it may go on. A bystander in a
sandbox is spoken to by turns with and without an attack, with the bounds on a link's speed that a host has. Then those
bounds are taken away, so that many frames get through in little time.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import structlog
from anyio import to_thread

from hermitcrab.app import Host
from hermitcrab.containers.link.exchange import Exchange, Outward, Surroundings
from hermitcrab.containers.link.server import LinkLimits
from hermitcrab.model.ids import Generation
from hermitcrab.testing.links import serving
from hermitcrab.testing.scratch import RecordingChannel, add_chat, process_rss_kb, say, scratch_host, session_of
from hermitcrab_bench.figures import summary
from hermitcrab_wire import codec

WARM_FRAMES = 20_000
"""Before memory is looked at: caches fill, and what is imported late is imported."""

ATTACKERS = 3
"""Processes at the same socket: while one thinks of frames, another one's are read."""

MESSAGES_IN_A_ROW = 50
"""Then the attack begins or ends: whatever else the machine does meets the bystander in both."""

PAUSE_S = 0.02
AT_REST_WITHIN_S = 60.0
UNBOUND = LinkLimits(frames_per_s=1e9, burst_frames=1e9, bytes_per_s=1e12, burst_bytes=1e12)


async def run(
    *, frames: int = 1_000_000, seed: int = 1, messages: int = 200, engine: str = "bubblewrap"
) -> dict[str, Any]:
    """Send at least `frames` mutated frames. `messages`: to the bystander, without an attack and under one."""
    count = _Count()
    with patch.object(codec, "decode", count.decode), _errors_counted() as errors:
        async with scratch_host(engine) as (host, channel):
            _, address = await add_chat(host, "bystander")
            _, attacked = await add_chat(host, "attacked")
            receipt = await say(host, address, "first", "hello")
            await channel.answer_to(receipt.row_ids[0])
            receipt = await say(host, attacked, "first", "hello")
            await channel.answer_to(receipt.row_ids[0])
            session = receipt.session_ids[0]
            await host.runner.kill(session)  # type: ignore[arg-type]
            before: list[float] = []
            during: list[float] = []
            for number in range(max(1, messages // MESSAGES_IN_A_ROW)):
                row = min(messages, MESSAGES_IN_A_ROW)
                before += await _round_trips(host, channel, address, f"before-{number}", row)
                async with _attacked(host, session, LinkLimits(), seed + 2 + number, attackers=1):
                    await count.until(count.frames + int(LinkLimits().burst_frames))
                    during += await _round_trips(host, channel, address, f"during-{number}", row)
            async with _attacked(host, session, UNBOUND, seed):
                await count.until(count.frames + min(WARM_FRAMES, frames))
            at_first = await _held()
            began, first = time.monotonic(), count.frames
            async with _attacked(host, session, UNBOUND, seed + 1):
                await count.until(max(frames, first + 1))
            took_s, sent = time.monotonic() - began, count.frames - first
            at_last = await _held_after(at_first)
            after = await _round_trips(host, channel, address, "after", messages)
    return {
        "frames": count.frames,
        "refused": count.refused,
        "crashes": len(errors),
        "errors": errors[:5],
        "memory_growth_mib": round((at_last[0] - at_first[0]) / 1024, 1),
        "fds_growth": at_last[1] - at_first[1],
        "tasks_growth": at_last[2] - at_first[2],
        **_figures("bystander_", during),
        **_figures("bystander_before_", before),
        **_figures("bystander_after_", after),
        "frames_per_s": round(sent / took_s),
        "seed": seed,
    }


@contextmanager
def _errors_counted() -> Iterator[list[str]]:
    """Errors that are the host's own: what a link could not foresee, and what no task has taken."""
    errors: list[str] = []

    def look(_logger: object, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if event["event"] == "link.broken-by-us" or (level in {"error", "exception"} and event.get("exc_info")):
            errors.append(f"{event['event']}: {sys.exc_info()[1]!r}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[look], wrapper_class=structlog.make_filtering_bound_logger("warning"))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(
        lambda _loop, context: errors.append(f"{context['message']}: {context.get('exception')!r}")
    )
    try:
        yield errors
    finally:
        loop.set_exception_handler(None)
        structlog.configure(**before)


class _Count:
    """What the host's ends of links have read."""

    def __init__(self) -> None:
        self.frames = self.refused = 0
        self._decode = codec.decode

    def decode(self, line: bytes) -> dict[str, Any]:
        self.frames += 1
        try:
            return self._decode(line)
        except codec.WireError:
            self.refused += 1
            raise

    async def until(self, frames: int) -> None:
        while self.frames < frames:  # noqa: ASYNC110  # an event for each frame would cost more than reading it
            await anyio.sleep(PAUSE_S)


@asynccontextmanager
async def _attacked(
    host: Host, session_id: str, limits: LinkLimits, seed: int, *, attackers: int = ATTACKERS
) -> AsyncIterator[None]:
    """While the context is open, somebody sends mutated frames on that session's link."""
    session = await session_of(host, session_id)
    folder = Path(host.home.path).parent / f"attacked-{seed}"
    (folder / "outbox").mkdir(parents=True)

    async def surroundings() -> Surroundings:
        return Surroundings(config={}, destinations=[], home_address=None)

    exchange = Exchange(
        session,
        Generation(1),
        mailboxes=host.mailboxes,
        outbox=folder / "outbox",
        surroundings=surroundings,
        outward=Outward(
            ready=lambda _hello: None,
            said=lambda *_said: None,
            working=lambda: None,
            farewell=lambda _reason: None,
            offended=lambda _text: None,
            gone=lambda: None,
        ),
    )
    async with serving(folder, exchange, limits=limits):
        command = [sys.executable, "-m", "hermitcrab.testing.mutated_frames", str(folder / "link.sock")]
        running = [
            await asyncio.create_subprocess_exec(*command, str(seed * ATTACKERS + number))
            for number in range(attackers)
        ]
        try:
            yield
        finally:
            for attacker in running:
                if attacker.returncode is None:
                    attacker.kill()
                await attacker.wait()


async def _round_trips(host: Host, channel: RecordingChannel, address: Any, name: str, messages: int) -> list[float]:
    """Milliseconds of each."""
    samples = []
    for number in range(messages):
        receipt = await say(host, address, f"{name}-{number}", f"{name} {number}")
        at, delivery = await channel.answer_to(receipt.row_ids[0])
        if f"{name} {number}" not in delivery.content["text"]:
            raise AssertionError(f"wrong answer to {name} {number}: {delivery.content}")
        assert receipt.persisted_at is not None
        samples.append((at - receipt.persisted_at) * 1000)
    return samples


def _figures(prefix: str, samples: list[float]) -> dict[str, float]:
    found = summary(samples, prefix)
    return {name: found[name] for name in (f"{prefix}p50_ms", f"{prefix}p99_ms")}


async def _held_after(before: tuple[int, int, int]) -> tuple[int, int, int]:
    """As soon as there are no more descriptors and tasks than before, or else after a while: some come and go."""
    found = await _held()
    with anyio.move_on_after(AT_REST_WITHIN_S):
        while found[1] > before[1] or found[2] > before[2]:
            found = await _held()
    return found


async def _held() -> tuple[int, int, int]:
    """Memory in KiB, descriptors and tasks, once what was closed is closed."""
    await anyio.sleep(2)
    gc.collect()
    descriptors = await to_thread.run_sync(lambda: len(list(Path("/proc/self/fd").iterdir())))
    return await process_rss_kb(os.getpid()), descriptors, len(asyncio.all_tasks())
