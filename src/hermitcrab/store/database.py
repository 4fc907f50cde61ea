"""The central database of a home: one writer, a few readers, all of them in threads.

Queries are plain functions of a connection, one file for each noun; callers pass them to `read` and `write`.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Self, TypeVar

import anyio
from anyio import to_thread

from hermitcrab.errors import StoreError
from hermitcrab.store import schema
from hermitcrab.store.sqlite import connect, connect_to_read, snapshot, transaction

READERS = 3

T = TypeVar("T")


@cache
def migrations() -> tuple[schema.Migration, ...]:
    return schema.migrations_in("hermitcrab.store", "migrations")


class Store:
    """`async with Store.open(path) as store`, then `await store.write(function)` and `await store.read(function)`."""

    def __init__(self, path: Path, writer: sqlite3.Connection, readers: list[sqlite3.Connection]) -> None:
        self.path = path
        self._writer = writer
        self._writing = anyio.CapacityLimiter(1)
        # A task that is cancelled from outside anyio lets go of the limiter while its thread still works.
        self._writer_lock = threading.Lock()
        self._readers: queue.SimpleQueue[sqlite3.Connection | None] = queue.SimpleQueue()
        """None comes once the database is closed, and stays: a thread that waited for more would wait for ever."""
        self._closed = False
        for reader in readers:
            self._readers.put(reader)
        self._reading = anyio.CapacityLimiter(len(readers))
        self.changes = 0
        """Counts the beginnings and the ends of writes: what was read at one count still holds at the same count."""

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[Self]:
        """Open or make the database. Raises StoreTooNewError, StoreDamagedError, DiskFullError, StoreError."""
        writer, readers = await to_thread.run_sync(_open, path)
        store = cls(path, writer, readers)
        try:
            yield store
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(store._close)

    async def write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` returns, after its one transaction is on the disk; if it raises, nothing was changed.

        A task that is cancelled meanwhile leaves no open transaction: it is committed whole or not begun.
        """

        def work() -> T:
            with self._writer_lock:
                if self._closed:
                    raise self._is_closed()
                with transaction(self._writer, self.path):
                    return function(self._writer)

        self.changes += 1
        try:
            return await to_thread.run_sync(work, limiter=self._writing)
        finally:
            self.changes += 1

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` returns of one state of the database."""

        def work() -> T:
            connection = self._readers.get()
            try:
                if connection is None:
                    raise self._is_closed()
                with snapshot(connection, self.path):
                    return function(connection)
            finally:
                self._readers.put(connection)

        return await to_thread.run_sync(work, limiter=self._reading)

    def _close(self) -> None:
        # The writer last: whoever is the last to close moves the log into the database.
        for _ in range(READERS):
            if (reader := self._readers.get()) is not None:
                reader.close()
        self._readers.put(None)
        with self._writer_lock:
            self._closed = True
            self._writer.close()

    def _is_closed(self) -> StoreError:
        return StoreError(f"{self.path.name} is closed: the host is leaving")


def _open(path: Path) -> tuple[sqlite3.Connection, list[sqlite3.Connection]]:
    schema.check(path, migrations())
    opened: list[sqlite3.Connection] = []
    try:
        opened.append(connect(path))
        schema.migrate(opened[0], path, migrations())
        opened.extend(connect_to_read(path) for _ in range(READERS))
    except BaseException:
        for each in opened:
            each.close()
        raise
    return opened[0], opened[1:]
