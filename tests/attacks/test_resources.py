"""Family D: agents that take all there is, that lie about what they do, that will not end, or that end again and again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from hermitcrab import app
from hermitcrab.app import Host
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.engines import bubblewrap
from hermitcrab.logic import retry
from hermitcrab.logic.retry import Backoff
from hermitcrab.model.container import ContainerStatus, EngineEvent
from hermitcrab.model.messages import Address
from hermitcrab.model.sessions import Session
from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab.testing.intruder import LIAR, intrude, take_over
from hermitcrab.testing.scratch import CHANNEL, RecordingChannel, add_chat, host_on, say, session_of
from hermitcrab_bench.second_host import second_host

every_engine = pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])


async def until(question: Callable[[], Awaitable[Any]]) -> Any:
    """The first answer that is not empty: for what happens in an engine and tells nobody here."""
    with anyio.fail_after(DEADLINE_S):
        while not (found := await question()):  # noqa: ASYNC110
            await anyio.sleep(0.02)
    return found


async def answer(host: Host, channel: RecordingChannel, address: Address, key: str, text: str = "hello") -> str:
    receipt = await say(host, address, key, text)
    _, delivery = await channel.answer_to(receipt.row_ids[0])
    return str(delivery.content["text"])


def told(channel: RecordingChannel) -> list[str]:
    return [str(delivery.content["text"]) for _, delivery in channel.delivered.values()]


# Each says that it has begun in one write: of what several processes print at once, lines are not kept apart.
BOMBS = {
    "processes": """
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        os.write(1, b"begun\\n")
        time.sleep(0.01)
""",
    "open files": """
for _ in range(4):
    if os.fork() == 0:
        break
kept = []
while True:
    try:
        kept.append(open("/dev/null"))
    except OSError:
        os.write(1, b"begun\\n")
        time.sleep(600)
""",
    "time": """
for _ in range(7):
    if os.fork() == 0:
        break
os.write(1, b"begun\\n")
while True:
    pass
""",
    "watches": """
libc = ctypes.CDLL(None, use_errno=True)
while (made := libc.inotify_init()) >= 0:
    while libc.inotify_add_watch(made, b"/workspace", 2) >= 0 and libc.inotify_add_watch(made, b"/tmp", 2) >= 0:
        break
os.write(1, b"begun\\n")
time.sleep(600)
""",
}


@every_engine
@pytest.mark.parametrize("bomb", BOMBS)
async def test_who_takes_all_there_is_takes_it_from_nobody_else(
    engine: str, options: dict[str, Any], tmp_path: Path, bomb: str
) -> None:
    async with host_on(tmp_path / "home", engine, pids=64, **options) as (host, channel):
        _, address = await add_chat(host, "other")
        intruder = await intrude(host, "bomber")
        limits = (await intruder.spec("")).limits
        await intruder.launch(BOMBS[bomb])

        async def begun() -> bool:
            return "begun" in await host.engine.logs(intruder.name, lines=1000)

        await until(begun)
        # It goes off while another session begins and answers.
        assert await answer(host, channel, address, "one") == "Echo: hello"
        stats = await host.engine.stats(intruder.name)
        assert stats.pids is None or 0 < stats.pids <= limits.pids
        assert stats.memory_bytes is None or stats.memory_bytes <= limits.memory_bytes
        view = await host.engine.inspect(intruder.name)
        assert view is not None
        main = view.pid
        assert main is not None
        # Held open, so that no other container gets its number.
        with open(f"/proc/{main}/ns/pid", "rb") as held:  # noqa: ASYNC230, PTH123
            namespace = await to_thread.run_sync(os.readlink, f"/proc/self/fd/{held.fileno()}")
            await host.engine.remove(intruder.name)
            assert intruder.name not in {each.name for each in await host.engine.containers()}

            async def gone() -> bool:
                """A process that was killed is still to be seen until its parent has asked how it ended."""
                return not await to_thread.run_sync(members, namespace)

            await until(gone)
        assert await answer(host, channel, address, "two") == "Echo: hello"


def members(namespace: str) -> list[int]:
    """Processes of this machine that live in that pid namespace."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if str((each / "ns/pid").readlink()) == namespace and "State:\tZ" not in (each / "status").read_text():
                found.append(int(each.name))
        except OSError:
            continue
    return found


MEMORY = """
for _ in range(3):
    if os.fork() == 0:
        break
kept = []
while True:
    kept.append(b"x" * (1 << 24))
"""


@every_engine
async def test_who_takes_all_memory_ends_and_is_certified(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host_on(tmp_path / "home", engine, memory_mb=128, **options) as (host, channel):
        _, address = await add_chat(host, "other")
        assert await answer(host, channel, address, "one") == "Echo: hello"
        intruder = await intrude(host, "bomber")
        take_over(monkeypatch, host, MEMORY, of=lambda session: session.id == intruder.session.id)
        assert (await host.runner.wake(intruder.session)).kind == "failed"
        (certificate, *_) = await until(lambda: host.runner.certificates(intruder.session))
        assert certificate["exit_code"] == 137
        if "oom-report" not in (await host.engine.capabilities()).unrealized:
            assert "more memory than its limit" in certificate["text"]
        assert await answer(host, channel, address, "two") == "Echo: hello"
        assert {view.generation for view in await host.engine.containers() if view.session != intruder.session.id} == {
            1
        }


FLOOD = """
line = b"0123456789" * 100 + b"\\n"
for _ in range(40):
    os.write(1, line * 1000)
os.write(1, b"\\xff\\x00\\x1b]0;title\\x07" + b"y" * 100_000 + b"\\nlast words\\n")
sys.exit(9)
"""


def size_on_disk(folder: Path) -> int:
    """Of a home whose host runs: what goes while it is looked at takes no place."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            path = Path(here, name)
            with suppress(FileNotFoundError):
                total += path.stat().st_blocks * 512 if path.is_file() and "runner-" not in str(path) else 0
    return total


@every_engine
async def test_a_flood_of_output_ends_in_a_small_certificate(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap, "LOG_CHECK_S", 0.01)
    async with host_on(tmp_path / "home", engine, **options) as (host, _):
        intruder = await intrude(host, "flooder")
        log_bytes = (await intruder.spec("")).limits.log_bytes
        take_over(monkeypatch, host, FLOOD)
        assert (await host.runner.wake(intruder.session)).kind == "failed"
        (certificate, *_) = await until(lambda: host.runner.certificates(intruder.session))
        assert certificate["log"][-1] == "last words"
        assert intruder.folders.certificates.stat().st_size < 64 * 1024
        assert await to_thread.run_sync(size_on_disk, host.home.path) < 2 * log_bytes


DEAF = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal = lambda *_: None
import runpy
runpy.run_module("hermitcrab_runner", run_name="__main__")
"""


@every_engine
async def test_who_will_not_end_is_ended(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host_on(tmp_path / "home", engine, stop_grace_s=0.3, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        take_over(monkeypatch, host, DEAF)
        assert await answer(host, channel, address, "one") == "Echo: hello"
        session = await only_session(host)
        await host.runner.kill(session.id)
        assert await host.engine.containers() == []
        (certificate,) = await host.runner.certificates(session)
        assert (certificate["cause"], certificate["exit_code"]) == ("stopped", 137)
        assert await answer(host, channel, address, "two") == "Echo: hello"


async def only_session(host: Host) -> Session:
    (view,) = host.runner.views()
    return await session_of(host, view.session_id)


@every_engine
async def test_who_ends_at_once_again_and_again_is_waited_for_longer_and_longer_and_the_chat_is_told(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Noted(Backoff):
        def delay_s(self, failures: int, jitter: float) -> float:
            asked.append(failures)
            return super().delay_s(failures, jitter) / 100

    usual = retry.START
    monkeypatch.setattr(retry, "START", Noted(first_s=usual.first_s, most_s=usual.most_s))
    async with host_on(tmp_path / "home", engine, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        with monkeypatch.context() as broken:
            take_over(broken, host, "print('no'); sys.exit(3)")
            receipt = await say(host, address, "one", "hello")
            session = await session_of(host, receipt.session_ids[0])

            async def five() -> bool:
                return len(asked) >= 5

            await until(five)
            assert asked[:5] == [1, 2, 3, 4, 5]
            assert len(await host.runner.certificates(session)) >= 5
            while not any("I could not start" in text for text in told(channel)):
                await channel.next_delivery()
            # Told once, however often it fails.
            assert len([text for text in told(channel) if "I could not start" in text]) == 1
        # The message was kept, and is answered as soon as the trouble is over.
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert delivery.content["text"] == "Echo: hello"
        certificates = await host.runner.certificates(session)
        assert {each["cause"] for each in certificates} == {"start-failed"}


def test_the_wait_between_attempts_grows_to_its_bound_and_is_spread() -> None:
    usual = retry.START
    delays = [usual.delay_s(failures, 0.5) for failures in range(1, 200)]
    assert delays == sorted(delays)
    assert delays[0] < delays[5] < delays[-1] <= usual.most_s
    assert usual.delay_s(4, 0.0) < usual.delay_s(4, 0.9)


@every_engine
async def test_two_hosts_that_wake_one_session_never_make_two_containers(
    engine: str, options: dict[str, Any], need_engine: Callable[[str], Mapping[str, str]], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (first, channel):
        intruder = await intrude(first, "chat")
        most = 0

        async def look(until_done: anyio.Event) -> None:
            nonlocal most
            while not until_done.is_set():
                running = [view for view in await first.engine.containers() if view.status is ContainerStatus.RUNNING]
                most = max(most, len(running))

        # A lock keeps the second one out as a rule; this is what holds without it. It is a process of its own.
        async with second_host(first, intruder.session, 100, need_engine(engine)) as wake_there:
            kinds: Counter[str] = Counter()

            async def wake_here() -> None:
                kinds[(await first.runner.wake(intruder.session)).kind] += 1

            async def wake_beside() -> None:
                kinds.update(await wake_there())

            async with anyio.create_task_group() as looking:
                done = anyio.Event()
                looking.start_soon(look, done)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wake_beside)
                    for _ in range(100):
                        tasks.start_soon(wake_here)
                done.set()
            assert kinds.total() == 200
            assert set(kinds) <= {"started", "live", "failed", "waiting"}
        # Whoever came out of it, the session is not lost, and there is one container of the last generation.
        address = Address(channel_type=CHANNEL, platform_id="chat")
        assert await answer(first, channel, address, "one") == "Echo: hello"
        (view,) = await first.engine.containers()
        found = await session_of(first, view.session)
        assert view.generation == found.generation
        assert most <= 1


class Gossip:
    """An engine of which one hears more than it says."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.inspected = 0
        self.tell, self._heard = anyio.create_memory_object_stream[EngineEvent](100)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def inspect(self, name: str) -> Any:
        self.inspected += 1
        return await self._engine.inspect(name)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        async def pass_on(events: AsyncIterator[EngineEvent]) -> None:
            async for event in events:
                await self.tell.send(event)

        async with self._engine.events() as events, anyio.create_task_group() as tasks, self.tell, self._heard:
            tasks.start_soon(pass_on, events)
            yield self._heard
            tasks.cancel_scope.cancel()


@every_engine
async def test_a_late_word_of_an_earlier_containers_end_ends_nothing(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = app.open_engine
    monkeypatch.setattr(app, "open_engine", lambda *arguments: Gossip(real(*arguments)))
    async with host_on(tmp_path / "home", engine, **options) as (host, channel):
        _, address = await add_chat(host, "chat")
        assert await answer(host, channel, address, "one") == "Echo: hello"
        session = await only_session(host)
        await host.runner.kill(session.id)
        assert await answer(host, channel, address, "two") == "Echo: hello"
        (before,) = await host.engine.containers()
        assert isinstance(host.engine, Gossip)
        inspected = host.engine.inspected
        for _ in range(20):
            await host.engine.tell.send(EngineEvent(kind="ended", name=before.name))
            await host.engine.tell.send(EngineEvent(kind="ended", name="crab-nobody-0"))
            await host.engine.tell.send(EngineEvent(kind="resync"))
        with anyio.fail_after(DEADLINE_S):
            while host.engine.inspected < inspected + 40:
                await anyio.lowlevel.checkpoint()
        assert await answer(host, channel, address, "three") == "Echo: hello"
        assert await host.engine.containers() == [before]
        assert before.generation == 2
        assert [each["generation"] for each in await host.runner.certificates(session)] == [1]


@every_engine
async def test_who_claims_to_work_for_ever_and_falls_silent_is_ended_by_the_hosts_own_clock(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = "tell(frames.Beat(activity='tool', detail='x' * 5000, until_ms=2**52, rss_kb=2**52)); time.sleep(600)"
    impatient = {"stop_grace_s": 0.1, "silent_before_kill_s": 0.5}
    async with host_on(tmp_path / "home", engine, **impatient, **options) as (host, _):
        intruder = await intrude(host, "liar")
        take_over(monkeypatch, host, LIAR + claim)
        assert (await host.runner.wake(intruder.session)).kind == "started"
        (certificate, *_) = await until(lambda: host.runner.certificates(intruder.session))
        assert certificate["cause"] == "hung"


@every_engine
async def test_who_always_claims_to_work_makes_room_for_who_has_work(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = "while True: tell(frames.Beat(activity='tool', detail='Bash', until_ms=10**12)); time.sleep(0.05)"
    impatient = {"stop_grace_s": 0.1, "drain_within_s": 0.1}
    async with host_on(tmp_path / "home", engine, max_running=1, **impatient, **options) as (host, channel):
        liar = await intrude(host, "liar")
        take_over(monkeypatch, host, LIAR + beats, of=lambda session: session.id == liar.session.id)
        assert (await host.runner.wake(liar.session)).kind == "started"

        async def claims() -> bool:
            return any(view.activity == "tool" for view in host.runner.views())

        await until(claims)
        _, address = await add_chat(host, "other")
        assert await answer(host, channel, address, "one") == "Echo: hello"
        assert [view.session_id for view in host.runner.views()] != [liar.session.id]
