"""Many sessions at once: one after the other in a session, side by side across sessions, damage kept apart."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from hermitcrab.errors import ConflictError, StoreDamagedError, StoreError
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import THREADS, Mailboxes
from hermitcrab.model.ids import AgentGroupId, SessionId
from hermitcrab.model.messages import InboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.testing.engine_harness import DEADLINE_S

In = Callable[..., InboundRow]


def session(number: int) -> Session:
    return Session(id=SessionId(f"sess-{number}"), agent_group_id=AgentGroupId("ag"), messaging_group_id=None)


def in_folder(root: Path) -> Callable[[Session], Path]:
    return lambda each: root / each.id / "mailbox"


def waiting(mailbox: Mailbox) -> list[str]:
    return [row.id for row in mailbox.pending(limit=100)]


async def test_a_session_s_work_is_done_one_after_the_other_in_order(tmp_path: Path, inbound: In) -> None:
    at_work: list[int] = []
    most: list[int] = []

    def work(mailbox: Mailbox, number: int) -> None:
        at_work.append(number)
        most.append(len(at_work))
        mailbox.accept(inbound(f"m{number:02}"))
        at_work.remove(number)

    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(mailboxes.run, session(1), lambda mailbox, number=number: work(mailbox, number))
        assert await mailboxes.run(session(1), waiting) == [f"m{number:02}" for number in range(30)]
    assert set(most) == {1}


async def test_sessions_work_side_by_side(tmp_path: Path) -> None:
    meeting = threading.Barrier(THREADS)
    async with Mailboxes(in_folder(tmp_path)) as mailboxes, anyio.create_task_group() as tasks:
        for number in range(THREADS):
            tasks.start_soon(mailboxes.run, session(number), lambda _mailbox: meeting.wait(DEADLINE_S))


async def test_a_busy_session_holds_no_thread_for_those_who_wait(tmp_path: Path, inbound: In) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(_mailbox: Mailbox) -> None:
        begun.set()
        assert go_on.wait(DEADLINE_S)

    async with Mailboxes(in_folder(tmp_path)) as mailboxes, anyio.create_task_group() as tasks:
        tasks.start_soon(mailboxes.run, session(1), slow)
        await to_thread.run_sync(begun.wait, DEADLINE_S)
        for _ in range(THREADS * 2):
            tasks.start_soon(mailboxes.run, session(1), waiting)
        await anyio.wait_all_tasks_blocked()
        assert await mailboxes.run(session(2), lambda mailbox: mailbox.accept(inbound("m"))) is not None
        go_on.set()


async def test_what_a_function_raises_is_raised_and_hurts_nobody(tmp_path: Path, inbound: In) -> None:
    def fail(_mailbox: Mailbox) -> None:
        raise ConflictError("mine")

    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        with pytest.raises(ConflictError, match="mine"):
            await mailboxes.run(session(1), fail)
        assert await mailboxes.run(session(1), lambda mailbox: mailbox.accept(inbound("m"))) is not None
        assert mailboxes.set_aside == {}


async def test_a_damaged_mailbox_is_set_aside_and_only_that_one(tmp_path: Path, inbound: In) -> None:
    folder_of = in_folder(tmp_path)

    async with Mailboxes(folder_of) as mailboxes:
        for number in (1, 2):
            await mailboxes.run(session(number), lambda mailbox: mailbox.accept(inbound("m")))
    database = folder_of(session(1)) / "inbound.db"
    good = await anyio.Path(database).read_bytes()
    await anyio.Path(database).write_bytes(b"\0" * len(good))
    async with Mailboxes(folder_of) as mailboxes:
        for _ in range(2):
            with pytest.raises(StoreDamagedError, match=r"session sess-1: .*inbound\.db") as caught:
                await mailboxes.run(session(1), waiting)
            assert caught.value.hint
        assert list(mailboxes.set_aside) == ["sess-1"]
        assert await mailboxes.run(session(2), waiting) == ["m"]
        await anyio.Path(database).write_bytes(good)
        with pytest.raises(StoreDamagedError):
            await mailboxes.run(session(1), waiting)
        mailboxes.release(SessionId("sess-1"))
        assert await mailboxes.run(session(1), waiting) == ["m"]


@pytest.mark.parametrize("native", [False, True], ids=["anyio", "asyncio"])
async def test_cancelled_work_is_finished_before_the_next_begins(tmp_path: Path, inbound: In, native: bool) -> None:
    begun, go_on = threading.Event(), threading.Event()
    seen: list[list[str]] = []

    def slow(mailbox: Mailbox) -> None:
        begun.set()
        assert go_on.wait(DEADLINE_S)
        mailbox.accept(inbound("slow"))

    async with Mailboxes(in_folder(tmp_path)) as mailboxes, anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        inner: list[asyncio.Task[object]] = []

        async def work() -> None:
            task = asyncio.current_task()
            assert task is not None
            inner.append(task)
            # A task that ends as cancelled would take its group, and the rest of this test, with it.
            with scope, contextlib.suppress(asyncio.CancelledError):
                await mailboxes.run(session(1), slow)

        tasks.start_soon(work)
        await to_thread.run_sync(begun.wait, DEADLINE_S)
        if native:
            inner[0].cancel()
        else:
            scope.cancel()
        tasks.start_soon(mailboxes.run, session(1), lambda mailbox: mailbox.accept(inbound("next")))
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        with anyio.fail_after(DEADLINE_S):
            while len(found := await mailboxes.run(session(1), waiting)) < 2:
                await anyio.lowlevel.checkpoint()
        seen.append(found)
    assert seen == [["slow", "next"]]


async def test_mailboxes_that_are_quiet_are_closed_and_open_again_when_wanted(tmp_path: Path, inbound: In) -> None:
    folder_of = in_folder(tmp_path)
    async with Mailboxes(folder_of) as mailboxes:
        for number in range(3):
            await mailboxes.run(session(number), lambda mailbox: mailbox.accept(inbound("m")))
        now = time.monotonic()
        await mailboxes.run(session(1), waiting)
        await mailboxes.close_quiet(unused_since=now)
        assert mailboxes.open_count == 1
        await mailboxes.close_quiet(unused_since=time.monotonic())
        assert mailboxes.open_count == 0
        assert not [each async for each in anyio.Path(tmp_path).rglob("*-wal")]
        assert await mailboxes.run(session(0), waiting) == ["m"]


async def test_they_are_closed_though_whoever_has_them_is_cancelled(tmp_path: Path, inbound: In) -> None:
    mailboxes = Mailboxes(in_folder(tmp_path))
    with anyio.CancelScope() as scope:
        async with mailboxes:
            await mailboxes.run(session(1), lambda mailbox: mailbox.accept(inbound("m")))
            scope.cancel()
            await anyio.sleep_forever()
    assert mailboxes.open_count == 0
    with pytest.raises(StoreError, match="closing"):
        await mailboxes.run(session(1), waiting)


def files_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


async def test_a_look_into_a_closed_mailbox_opens_nothing(tmp_path: Path, inbound: In) -> None:
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        await mailboxes.run(session(1), lambda mailbox: mailbox.accept(inbound("m")))
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        assert await mailboxes.look(session(1), waiting) == ["m"]
        assert files_in(tmp_path / "sess-1" / "mailbox") == {"inbound.db", "outbound.db"}
        await mailboxes.run(session(1), lambda mailbox: mailbox.accept(inbound("n")))
        assert await mailboxes.look(session(1), waiting) == ["m", "n"]


async def test_a_look_sees_what_a_killed_host_left_in_the_log(tmp_path: Path, inbound: In) -> None:
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        await mailboxes.run(session(1), lambda mailbox: mailbox.accept(inbound("m")))
        # As they are on the disk now, with the newest row in the log beside the file.
        shutil.copytree(tmp_path / "sess-1", tmp_path / "sess-2")
    assert (tmp_path / "sess-2" / "mailbox" / "inbound.db-wal").stat().st_size > 0
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        assert await mailboxes.look(session(2), waiting) == ["m"]


async def test_a_look_makes_a_mailbox_that_is_not_there(tmp_path: Path) -> None:
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        assert await mailboxes.look(session(1), waiting) == []
        assert files_in(tmp_path / "sess-1" / "mailbox") >= {"inbound.db", "outbound.db"}


async def test_a_look_into_a_damaged_mailbox_sets_it_aside(tmp_path: Path, inbound: In) -> None:
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        await mailboxes.run(session(1), lambda mailbox: mailbox.accept(inbound("m")))
    path = tmp_path / "sess-1" / "mailbox" / "inbound.db"
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * (path.stat().st_size - 100))
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        with pytest.raises(StoreDamagedError):
            await mailboxes.look(session(1), waiting)
        assert set(mailboxes.set_aside) == {session(1).id}


async def test_what_was_seen_ahead_holds_until_somebody_has_the_mailbox(tmp_path: Path, inbound: In) -> None:
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        for number in range(1, 41):
            await mailboxes.run(session(number), lambda mailbox: mailbox.accept(inbound("m")))
            await mailboxes.run(session(number), lambda mailbox: mailbox.set_state("key", "value"))
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        await mailboxes.foresee(session(number) for number in range(1, 41))
        for number in range(1, 41):
            seen = mailboxes.foreseen(session(number))
            assert seen is not None
            assert (seen.counts.pending_triggers, seen.is_waiting, seen.state) == (1, True, {"key": "value"})
            assert files_in(tmp_path / f"sess-{number}" / "mailbox") == {"inbound.db", "outbound.db"}
        await mailboxes.run(session(1), lambda mailbox: mailbox.accept(inbound("n")))
        assert mailboxes.foreseen(session(1)) is None
        assert mailboxes.foreseen(session(2)) is not None
        await mailboxes.withhold(session(2).id, "it is being moved")
        mailboxes.give_back(session(2).id)
        assert mailboxes.foreseen(session(2)) is None


async def test_what_comes_while_a_mailbox_is_seen_ahead_is_not_overlooked(tmp_path: Path, inbound: In) -> None:
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        for number in range(1, 41):
            await mailboxes.run(session(number), lambda mailbox: mailbox.accept(inbound("m")))

    async def a_message_comes(number: int) -> None:
        await mailboxes.run(session(number), lambda mailbox: mailbox.accept(inbound("n")))
        assert mailboxes.foreseen(session(number)) is None

    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mailboxes.foresee, [session(number) for number in range(1, 41)])
            for number in range(1, 41):
                tasks.start_soon(a_message_comes, number)
        for number in range(1, 41):
            assert mailboxes.foreseen(session(number)) is None
            assert await mailboxes.look(session(number), waiting) == ["m", "n"]


async def test_what_cannot_be_seen_ahead_is_left_to_whoever_needs_it(tmp_path: Path, inbound: In) -> None:
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        for number in (1, 2, 3):
            await mailboxes.run(session(number), lambda mailbox: mailbox.accept(inbound("m")))
        await mailboxes.run(session(2), lambda mailbox: mailbox.set_state("key", "long" * 10_000))
        # With the newest row in the log beside the file, as a host that was killed leaves it.
        shutil.copytree(tmp_path / "sess-3", tmp_path / "sess-4")
    path = tmp_path / "sess-1" / "mailbox" / "inbound.db"
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * (path.stat().st_size - 100))
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        await mailboxes.run(session(5), waiting)
        await mailboxes.foresee(session(number) for number in range(1, 7))
        seen = [number for number in range(1, 7) if mailboxes.foreseen(session(number)) is not None]
        assert seen == [3]  # Damaged, with much state, one that is whole, with a log, open, not there.
        assert mailboxes.set_aside == {}
        with pytest.raises(StoreDamagedError):
            await mailboxes.look(session(1), waiting)
        assert await mailboxes.look(session(4), waiting) == ["m"]


async def test_quiet_mailboxes_are_closed_without_being_asked(tmp_path: Path, inbound: In) -> None:
    async with Mailboxes(in_folder(tmp_path), quiet_before_close_s=0) as mailboxes:
        await mailboxes.run(session(1), lambda mailbox: mailbox.accept(inbound("m")))
        with anyio.fail_after(DEADLINE_S):
            while mailboxes.open_count:
                await anyio.lowlevel.checkpoint()
        assert await mailboxes.run(session(1), waiting) == ["m"]


async def test_the_ones_unused_longest_are_closed_when_too_many_are_open(tmp_path: Path, inbound: In) -> None:
    async with Mailboxes(in_folder(tmp_path), open_at_most=3) as mailboxes:
        for number in range(10):
            await mailboxes.run(session(number), lambda mailbox: mailbox.accept(inbound("m")))
        with anyio.fail_after(DEADLINE_S):
            while mailboxes.open_count > 3:
                await anyio.lowlevel.checkpoint()
        for number in range(10):
            assert await mailboxes.run(session(number), waiting) == ["m"]


async def test_more_busy_mailboxes_than_may_be_open_do_not_block_each_other(tmp_path: Path) -> None:
    meeting = threading.Barrier(THREADS)
    async with Mailboxes(in_folder(tmp_path), open_at_most=1) as mailboxes:
        async with anyio.create_task_group() as tasks:
            for number in range(THREADS):
                tasks.start_soon(mailboxes.run, session(number), lambda _mailbox: meeting.wait(DEADLINE_S))
        with anyio.fail_after(DEADLINE_S):
            while mailboxes.open_count > 1:
                await anyio.lowlevel.checkpoint()


async def test_open_mailboxes_leave_descriptors_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (1024, 1024))
    async with Mailboxes(in_folder(tmp_path)) as mailboxes:
        assert mailboxes._open_at_most == 42


async def test_closing_waits_for_what_is_being_done_and_ends_everything(tmp_path: Path, inbound: In) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(mailbox: Mailbox) -> None:
        begun.set()
        assert go_on.wait(DEADLINE_S)
        mailbox.accept(inbound("m"))

    async with anyio.create_task_group() as tasks:
        async with Mailboxes(in_folder(tmp_path)) as mailboxes:
            tasks.start_soon(mailboxes.run, session(1), slow)
            await to_thread.run_sync(begun.wait, DEADLINE_S)
            threading.Timer(0, go_on.set).start()
        await mailboxes.aclose()
    with pytest.raises(StoreError, match="closing"):
        await mailboxes.run(session(1), waiting)
    with Mailbox.open(in_folder(tmp_path)(session(1))) as mailbox:
        assert waiting(mailbox) == ["m"]
