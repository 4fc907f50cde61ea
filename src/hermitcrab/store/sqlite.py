"""One SQLite file: opening it, one transaction on it, and its failures as our errors.

The central store and every mailbox go through here, so that all of them are opened alike: a write-ahead log that is
synced at each commit (a commit is on the disk when it returns, and costs one sync), private to this user.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from hermitcrab.errors import ConflictError, DiskFullError, StoreDamagedError, StoreError

OLDEST_SQLITE = (3, 37, 0)
"""STRICT tables came with it."""

BUSY_TIMEOUT_MS = 5000
_AGAIN_S = 0.005
_NEARLY_FULL_BYTES = 1024 * 1024

_RESTORE_HINT = (
    "It was left as it is. Move it away and put a backup in its place; `crab doctor` looks at the disk it lies on."
)


def connect(path: Path, *, small: bool = False) -> sqlite3.Connection:
    """A writing connection to the database `path`, which is made if it is not there. Raises StoreError.

    `small`: one of many, so that it may keep little in memory.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StoreError(
            f"SQLite {sqlite3.sqlite_version} is too old", hint="Use a Python that is linked with SQLite 3.37 or newer."
        )
    with opening(path):
        # SQLite gives its side files the mode that the database has.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        statements = 24 if small else 128
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=statements)
        try:
            # The first statement that reads the file: what is no database is found out here, untouched.
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            if _log_ahead(connection) != "wal":
                raise StoreError(
                    f"{path} cannot have a write-ahead log", hint="Its folder must be writable and on a local disk."
                )
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute(f"PRAGMA cache_size = -{256 if small else 2048}")
        except BaseException:
            close_untouched(connection, path)
            raise
    return connection


def close_untouched(connection: sqlite3.Connection, path: Path) -> None:
    """Close it without moving the log into the database, as the last writer to close does: the file is not ours."""
    reader = None
    # With an empty log there is nothing to move, and a reader would leave files behind.
    if log_bytes(path):
        # Only a connection that has read keeps the log where it is.
        with contextlib.suppress(StoreError, sqlite3.Error):
            reader = connect_to_read(path)
            reader.execute("PRAGMA user_version").fetchone()
    connection.close()
    if reader is not None:
        reader.close()


def log_bytes(path: Path) -> int:
    """How much lies in the write-ahead log of the database `path`."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except FileNotFoundError:
        return 0


def _log_ahead(connection: sqlite3.Connection) -> str:
    """Have the file a write-ahead log, and return the mode that it is in now.

    SQLite gives up at once when two make the log of a new file, whatever the busy timeout says.
    """
    until = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_AGAIN_S)
        else:
            return mode


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that can only read.

    It never moves the log into the database: SQLite before 3.51.3 can lose pages when two connections do so at once.
    """
    with translated(path):
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
    return connection


def connect_at_rest(path: Path) -> sqlite3.Connection:
    """A connection that can only read, to a file that nobody writes and that has nothing in its log.

    It looks at no log and takes no lock.
    """
    with translated(path):
        return sqlite3.connect(
            f"file:{quote(str(path))}?mode=ro&immutable=1",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=24,
        )


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path, *, durable: bool = True) -> Iterator[None]:
    """All or nothing, and on the disk at the end. Not `durable`: it survives the process, and perhaps not the machine.

    Raises StoreError for what SQLite cannot do; whatever else the block raises undoes it and goes on up.
    """
    with translated(path):
        if not durable:
            connection.execute("PRAGMA synchronous = NORMAL")
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        finally:
            if not durable:
                connection.execute("PRAGMA synchronous = FULL")


@contextmanager
def snapshot(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """All reads in the block see one state."""
    with translated(path):
        connection.execute("BEGIN")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raises what SQLite has to say of `path` as StoreError, DiskFullError or ConflictError."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise  # Ours to mend, not the operator's.
    except sqlite3.IntegrityError as error:
        raise ConflictError(f"{path.name} refuses it: {error}") from error
    except sqlite3.Error as error:
        raise _store_error(error, path) from error


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """As `translated`, for what also asks the file system itself."""
    try:
        with translated(path):
            yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _disk_full(path) from error
        raise StoreError(
            f"{path} cannot be opened: {error.strerror or error}",
            hint="It and its folder must belong to the user who runs the host.",
        ) from error


def _store_error(error: sqlite3.Error, path: Path) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN} and _disk_is_full(path)):
        return _disk_full(path)
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return StoreDamagedError(f"{path} is damaged or is no database: {error}", hint=_RESTORE_HINT)
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StoreError(
            f"{path} is in use by another process", hint="Close what has it open; only one host may use a home."
        )
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN}:
        return StoreError(
            f"{path} cannot be written: {error}",
            hint="It and its folder must belong to the user who runs the host.",
        )
    return StoreError(f"{path} cannot be used: {error}", hint="`crab doctor` looks at the disk it lies on.")


def _disk_full(path: Path) -> DiskFullError:
    return DiskFullError(
        f"The disk is full: {path} could not be written",
        hint="Free some space; nothing that was accepted before is lost.",
    )


def _disk_is_full(path: Path) -> bool:
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _NEARLY_FULL_BYTES or (found.f_files > 0 and found.f_favail == 0)
