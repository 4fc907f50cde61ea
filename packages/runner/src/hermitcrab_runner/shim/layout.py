"""The work folder as a foreign runner finds it: names, and files that are opened only if they are plain files."""

from __future__ import annotations

import os
import sqlite3
import stat

from hermitcrab_runner.logs import note
from hermitcrab_runner.shim.schema import TABLES

INBOUND = "inbound.db"
OUTBOUND = "outbound.db"
HEARTBEAT = ".heartbeat"
OUTBOX = "outbox"

MOST_DATABASE_BYTES = 256 * 1024 * 1024
BUSY_TIMEOUT_MS = 5000
_VALUE_BYTES_AT_MOST = 2 * 1024 * 1024
_STEPS_AT_MOST = 20_000_000
"""Of SQLite's machine in one statement: a table that became an endless view ends it, not us."""
_STEPS_BETWEEN_LOOKS = 100_000
_DAMAGED_AT_MOST = 3
_PARTS = ("", "-journal", "-wal", "-shm")


class DamagedError(Exception):
    """A database is not what it should be; it was, or is to be, put aside."""


class Workspace:
    """The folder that the container sees as /workspace."""

    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def prepare(self) -> None:
        """What lies there before a foreign runner starts: no old heartbeat, and a folder for what it sends."""
        try:
            os.unlink(self.path(HEARTBEAT))
        except FileNotFoundError:
            pass
        except IsADirectoryError as error:
            raise DamagedError(f"{HEARTBEAT} is a folder") from error
        os.makedirs(self.path(OUTBOX), exist_ok=True)

    def heartbeat_at(self) -> float | None:
        """When the runner last touched its heartbeat, on the wall clock; None: never."""
        try:
            return os.lstat(self.path(HEARTBEAT)).st_mtime
        except OSError:
            return None

    def put_aside(self, name: str) -> str:
        """Move a damaged database and its companions out of the way; the oldest of several is dropped."""
        taken = sorted(each for each in os.listdir(self.root) if each.startswith(f"{name}.damaged-"))
        numbers = [int(end) for each in taken if (end := each.rpartition("-")[2]).isdigit()]
        number = max(numbers, default=0) + 1
        for part in _PARTS:
            if os.path.lexists(self.path(name + part)):
                os.rename(self.path(name + part), self.path(f"{name}{part}.damaged-{number}"))
        for part in _PARTS:
            old = self.path(f"{name}{part}.damaged-{number - _DAMAGED_AT_MOST}")
            if os.path.isfile(old) or os.path.islink(old):
                os.unlink(old)
        return f"{name}.damaged-{number}"


def connect(workspace: Workspace, name: str, script: str) -> sqlite3.Connection:
    """A connection for reading and writing to a database that is sound, made if it is not there.

    Raises DamagedError for anything that is no database of ours.
    """
    path = workspace.path(name)
    _must_be_plain(path)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None)
    try:
        guard(connection)
        if (mode := connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]) != "delete":
            raise DamagedError(f"{name} is in {mode} mode, and stays there")
        connection.executescript(script)
        if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise DamagedError(f"{name}: {found}")
        check_tables(connection, name)
    except sqlite3.DatabaseError as error:
        connection.close()
        if is_busy(error):
            raise
        raise DamagedError(f"{name}: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def connect_sound(workspace: Workspace, name: str, script: str) -> tuple[sqlite3.Connection, str | None]:
    """As `connect`; a damaged file is put aside for a new one, and the second value says why and where it is."""
    try:
        return connect(workspace, name, script), None
    except DamagedError as error:
        kept = workspace.put_aside(name)
        note("database.put-aside", file=name, reason=error, kept=kept)
        return connect(workspace, name, script), f"{error}; kept as {kept}"


def guard(connection: sqlite3.Connection) -> None:
    """Bounds on what a planted file can make us do."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _VALUE_BYTES_AT_MOST)
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA mmap_size=0")


def check_tables(connection: sqlite3.Connection, name: str) -> None:
    """Raises DamagedError unless each table is a table, and nothing happens by itself when it is written."""
    kinds = dict(connection.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')"))
    for table in TABLES[name]:
        if kinds.get(table) != "table":
            raise DamagedError(f"{name} has no table {table}")
    if connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'trigger'").fetchone():
        raise DamagedError(f"{name} has a trigger, which nobody here made")


class Steps:
    """Ends a statement that runs for too long. Use as `with Steps(connection): ...`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._left = 0

    def __enter__(self) -> None:
        self._left = _STEPS_AT_MOST
        self._connection.set_progress_handler(self._step, _STEPS_BETWEEN_LOOKS)

    def __exit__(self, *_: object) -> None:
        self._connection.set_progress_handler(None, 0)

    def _step(self) -> int:
        self._left -= _STEPS_BETWEEN_LOOKS
        return int(self._left <= 0)


def is_busy(error: sqlite3.Error) -> bool:
    """Somebody else has it locked just now."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _must_be_plain(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    # A pipe would hold us for ever, and a link would lead us to another file.
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise DamagedError(f"{os.path.basename(path)} is no plain file")
    if found.st_size > MOST_DATABASE_BYTES:
        raise DamagedError(f"{os.path.basename(path)} has {found.st_size} bytes")
