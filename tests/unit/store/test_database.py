"""The store's promises: whole transactions, one writer, readers that only read, errors that say what to do."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path
from sqlite3 import Connection

import anyio
import pytest

from hermitcrab.errors import StoreDamagedError, StoreError
from hermitcrab.store import installation
from hermitcrab.store.database import READERS, Store
from hermitcrab.testing.engine_harness import DEADLINE_S


def add(connection: Connection, folder: str) -> None:
    connection.execute("INSERT INTO agent_groups VALUES (?, ?, ?, 'now')", (f"ag-{folder}", folder, folder))


def folders(connection: Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT folder FROM agent_groups ORDER BY folder")]


def modes(folder: Path) -> dict[str, int]:
    return {each.name: each.stat().st_mode & 0o777 for each in folder.iterdir()}


async def test_what_was_written_is_read_and_outlives_the_store(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "x.db") as store:
        await store.write(lambda connection: add(connection, "a"))
        assert await store.read(folders) == ["a"]
    async with Store.open(tmp_path / "x.db") as store:
        assert await store.read(folders) == ["a"]
    assert modes(tmp_path) == {"x.db": 0o600}


async def test_whoever_comes_after_it_was_closed_is_told_so_and_keeps_no_thread(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "x.db") as store:
        pass
    with anyio.fail_after(DEADLINE_S):
        for _ in range(READERS + 1):
            with pytest.raises(StoreError, match=r"x\.db is closed"):
                await store.read(folders)
        with pytest.raises(StoreError, match=r"x\.db is closed"):
            await store.write(lambda connection: add(connection, "a"))


async def test_a_function_that_raises_changes_nothing(tmp_path: Path) -> None:
    def half(connection: Connection) -> None:
        add(connection, "a")
        raise LookupError("half way")

    async with Store.open(tmp_path / "x.db") as store:
        with pytest.raises(LookupError, match="half way"):
            await store.write(half)
        await store.write(lambda connection: add(connection, "b"))
        assert await store.read(folders) == ["b"]


async def test_readers_cannot_write(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "x.db") as store:
        with pytest.raises(StoreError):
            await store.read(lambda connection: add(connection, "a"))
        assert await store.read(folders) == []


async def test_a_reader_sees_one_state_while_somebody_writes(tmp_path: Path) -> None:
    begun, written = threading.Event(), threading.Event()

    def look_twice(connection: Connection) -> tuple[list[str], list[str]]:
        first = folders(connection)
        begun.set()
        assert written.wait(DEADLINE_S)
        return first, folders(connection)

    async with Store.open(tmp_path / "x.db") as store:
        seen: list[tuple[list[str], list[str]]] = []

        async def read() -> None:
            seen.append(await store.read(look_twice))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.to_thread.run_sync(begun.wait, DEADLINE_S)
            await store.write(lambda connection: add(connection, "a"))
            written.set()
        assert seen == [([], [])]


async def test_many_writers_take_turns(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "x.db") as store:
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(store.write, lambda connection, number=number: add(connection, f"g{number:02}"))
        assert await store.read(folders) == [f"g{number:02}" for number in range(40)]


@pytest.mark.parametrize("native", [False, True], ids=["anyio", "asyncio"])
async def test_a_cancelled_write_leaves_no_open_transaction(tmp_path: Path, native: bool) -> None:
    begun, go_on = threading.Event(), threading.Event()
    seen: list[list[str]] = []

    def slow(connection: Connection) -> None:
        add(connection, "slow")
        begun.set()
        assert go_on.wait(DEADLINE_S)

    async with Store.open(tmp_path / "x.db") as store:
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            inner: list[asyncio.Task[object]] = []

            async def write() -> None:
                task = asyncio.current_task()
                assert task is not None
                inner.append(task)
                # A task that ends as cancelled would take its group, and the rest of this test, with it.
                with scope, contextlib.suppress(asyncio.CancelledError):
                    await store.write(slow)

            tasks.start_soon(write)
            await anyio.to_thread.run_sync(begun.wait, DEADLINE_S)
            if native:
                inner[0].cancel()
            else:
                scope.cancel()
            tasks.start_soon(store.write, lambda connection: add(connection, "after"))
            await anyio.wait_all_tasks_blocked()
            go_on.set()
        seen.append(await store.read(folders))
    assert seen == [["after", "slow"]]


async def test_a_damaged_database_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with Store.open(path) as store:
        await store.write(installation.get_or_create)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xde\xad" * 20_000)
    with pytest.raises(StoreDamagedError, match=r"x\.db") as caught:
        async with Store.open(path) as store:
            await store.read(installation.get_or_create)
    assert "backup" in caught.value.hint


async def test_a_database_that_somebody_else_writes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermitcrab.store.sqlite.BUSY_TIMEOUT_MS", 1)
    async with Store.open(tmp_path / "x.db") as store:
        other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(StoreError, match="in use by another process"):
                await store.write(lambda connection: add(connection, "a"))
        finally:
            other.close()
        await store.write(lambda connection: add(connection, "a"))


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        async with Store.open(tmp_path / "nowhere" / "x.db"):
            pytest.fail("it was opened")


async def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x.db").symlink_to("elsewhere.db")
    with pytest.raises(StoreError):
        async with Store.open(tmp_path / "x.db"):
            pytest.fail("it was opened")
    assert not (tmp_path / "elsewhere.db").exists()


async def test_the_installation_keeps_its_id(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "x.db") as store:
        first = await store.write(installation.get_or_create)
        assert await store.write(installation.get_or_create) == first
    async with Store.open(tmp_path / "x.db") as store:
        assert await store.write(installation.get_or_create) == first
    assert len(first) == 12
    int(first, 16)
