"""One life of a host process in a history, and its death at any step: from then on nothing that it does is seen.

A real process that is killed runs no more code. Here its tasks are cancelled, and until the last of them has ended,
everything through which they could still change the world is closed to them: threads' work, databases, the engine,
channels and sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import anyio

CURRENT: ContextVar[Life | None] = ContextVar("CURRENT", default=None)
"""Whose code runs. None: the world's."""

Step = Callable[[str], None]

LATE_S = (*[0.0] * 6, 0.001, 0.02, 0.3, 2.5, 8.0)
"""How long a slow machine lets something wait, each of these as often."""


@dataclass(eq=False)
class Life:
    number: int
    dead: bool = False
    tasks: dict[asyncio.Task[Any], None] = field(default_factory=dict)
    connections: list[sqlite3.Connection] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def die(self) -> None:
        """At once, in the middle of whatever it does."""
        self.dead = True
        for each in list(self.tasks):
            if not each.done():
                each.cancel()

    async def unwind(self) -> None:
        """Until nothing of it runs any more."""
        while alive := [each for each in self.tasks if not each.done()]:
            for each in alive:
                each.cancel()
            await asyncio.sleep(0)
        for connection in self.connections:
            connection.close()
        self.tasks.clear()
        self.connections.clear()
        self.gone.set()


def stop_if_dead() -> None:
    """Raises what ends the task of a process that is no more."""
    if (life := CURRENT.get()) is not None and life.dead:
        raise asyncio.CancelledError


def task_factory(loop: asyncio.AbstractEventLoop, work: Any, context: Any = None) -> asyncio.Task[Any]:
    """Notes whose task it is."""
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context)
    life = CURRENT.get() if context is None else context.get(CURRENT)
    if life is not None:
        life.tasks[task] = None
        task.add_done_callback(lambda done: life.tasks.pop(done, None))
        if life.dead:
            task.cancel()
    return task


class Threads:
    """The threads that do a host's work on disk: here on the loop, and as late as a slow machine comes to it."""

    def __init__(self, dice: random.Random) -> None:
        self.slow = False
        self._dice = dice

    async def run(self, function: Callable[..., Any], *arguments: Any, **_options: Any) -> Any:
        """For `anyio.to_thread.run_sync`, never for the dead. Nothing is ever done at once, so it needs no limiter."""
        await asyncio.sleep(0)
        stop_if_dead()
        if not self.slow:
            return function(*arguments)
        # What a thread has begun, it brings to its end, whoever called it off.
        with anyio.CancelScope(shield=True):
            await self.late()
            stop_if_dead()
            try:
                return function(*arguments)
            finally:
                await self.late()
                stop_if_dead()

    async def late(self) -> None:
        """As long as something takes that waits for its turn on a slow machine."""
        if self.slow and CURRENT.get() is not None and (delay_s := self._dice.choice(LATE_S)):
            await asyncio.sleep(delay_s)


class Disk:
    """The databases' disk, as far as it can go wrong."""

    def __init__(self, step: Step) -> None:
        self.full = False
        self.step = step

    def connect(self, *arguments: Any, **more: Any) -> sqlite3.Connection:
        """In place of `sqlite3.connect`."""
        stop_if_dead()
        connection = _connect(*arguments, **{**more, "factory": _Watched, "cached_statements": 300})
        assert isinstance(connection, _Watched)
        connection.disk = self
        if str(arguments[0]).endswith(_MAILBOX):
            # Only one connection ever has it: the others' locks would be most of what it costs.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        if (life := CURRENT.get()) is not None:
            life.connections.append(connection)
        return connection


_connect = sqlite3.connect
_MAILBOX = ("inbound.db", "outbound.db")


class _Watched(sqlite3.Connection):
    disk: Disk
    changes = 0
    """How many rows were ever changed before the present transaction."""
    reading = False
    """A snapshot is open. Nobody else runs before it is closed, so that the database need not be told."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql == "COMMIT":
            return self._commit()
        if sql == "BEGIN" and not self.reading and not self.in_transaction:
            self.reading = True
            return self.cursor()
        if sql == "ROLLBACK" and self.reading:
            self.reading = False
            return self.cursor()
        if sql == "BEGIN IMMEDIATE":
            assert not self.reading, "a transaction begins in a snapshot"
            self.changes = self.total_changes
        elif sql.startswith("PRAGMA synchronous"):
            return self.cursor()  # What it would wait for is no disk.
        return super().execute(sql, parameters)

    def _commit(self) -> sqlite3.Cursor:
        if self.disk.full and self.total_changes > self.changes:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        self.disk.step("commit")
        done = super().execute("COMMIT")
        self.disk.step("committed")
        return done


@contextlib.contextmanager
def as_life(life: Life | None) -> Iterator[None]:
    """What is begun in the block is that one's."""
    token = CURRENT.set(life)
    try:
        yield
    finally:
        CURRENT.reset(token)
