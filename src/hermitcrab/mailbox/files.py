"""The two files of a mailbox: made and opened together, refused when one is the other's no more."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from hermitcrab.errors import StoreDamagedError
from hermitcrab.store import schema
from hermitcrab.store.sqlite import close_untouched, connect, connect_at_rest, log_bytes, opening

INBOUND = "inbound.db"
OUTBOUND = "outbound.db"


@cache
def inbound_migrations() -> tuple[schema.Migration, ...]:
    return schema.migrations_in("hermitcrab.mailbox", "migrations/inbound")


@cache
def outbound_migrations() -> tuple[schema.Migration, ...]:
    return schema.migrations_in("hermitcrab.mailbox", "migrations/outbound")


@dataclass(frozen=True, slots=True)
class Files:
    inbound_path: Path
    outbound_path: Path
    inbound: sqlite3.Connection
    outbound: sqlite3.Connection

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises StoreError; StoreDamagedError and StoreTooNewError leave both files as they are."""
        inbound_path, outbound_path = folder / INBOUND, folder / OUTBOUND
        if schema.seems_current(inbound_path, inbound_migrations()) and schema.seems_current(
            outbound_path, outbound_migrations()
        ):
            # As it nearly always is, and a host that comes back opens hundreds of them.
            outbound = _open(outbound_path, outbound_migrations())
            try:
                return cls(inbound_path, outbound_path, _open(inbound_path, inbound_migrations()), outbound)
            except BaseException:
                outbound.close()
                raise
        inbound_found = schema.check(inbound_path, inbound_migrations(), adopt=True)
        outbound_found = schema.check(outbound_path, outbound_migrations(), adopt=True)
        if outbound_found.empty and not inbound_found.empty:
            # outbound.db is made first, so that no crash can leave this behind.
            raise _lost(outbound_path)
        with opening(folder):
            _make_folder(folder)
        outbound = _open(outbound_path, outbound_migrations())
        try:
            if inbound_found.empty and _has_rows(outbound):
                raise _lost(inbound_path)
            inbound = _open(inbound_path, inbound_migrations())
        except BaseException:
            outbound.close()
            raise
        return cls(inbound_path, outbound_path, inbound, outbound)

    @classmethod
    def at_rest(cls, folder: Path) -> Self | None:
        """To be read only, if the two files hold all that there is: nothing lies in a log, and nobody writes meanwhile.

        None: only `open` sees the whole. Costs a sixth of that, and leaves nothing behind.
        """
        inbound_path, outbound_path = folder / INBOUND, folder / OUTBOUND
        if not (_is_whole(inbound_path, inbound_migrations()) and _is_whole(outbound_path, outbound_migrations())):
            return None
        outbound = connect_at_rest(outbound_path)
        try:
            return cls(inbound_path, outbound_path, connect_at_rest(inbound_path), outbound)
        except BaseException:
            outbound.close()
            raise

    def close(self) -> None:
        try:
            self.inbound.close()
        finally:
            self.outbound.close()


def _is_whole(path: Path, migrations: tuple[schema.Migration, ...]) -> bool:
    return log_bytes(path) == 0 and schema.seems_current(path, migrations)


def _open(path: Path, migrations: tuple[schema.Migration, ...]) -> sqlite3.Connection:
    connection = connect(path, small=True)
    try:
        schema.migrate(connection, path, migrations)
    except BaseException:
        close_untouched(connection, path)
        raise
    return connection


def _has_rows(outbound: sqlite3.Connection) -> bool:
    query = "SELECT EXISTS (SELECT 1 FROM messages_out) OR EXISTS (SELECT 1 FROM processing_ack)"
    return bool(outbound.execute(query).fetchone()[0])


def _lost(path: Path) -> StoreDamagedError:
    return StoreDamagedError(
        f"{path} is missing or empty, and the file beside it has this session's other half",
        hint="Restore it from a backup, or move the whole mailbox folder away to begin anew.",
    )


def _make_folder(folder: Path) -> None:
    """The folder and those above it, on the disk under their names, so that no power cut takes a mailbox with it."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(each.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
