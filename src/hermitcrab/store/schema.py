"""Schemas as numbered SQL files: each runs once, in one transaction, and is never changed after that.

`PRAGMA user_version` says how far a file is; the table `schema_migrations` says what was run, by checksum.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from hermitcrab.errors import StoreDamagedError, StoreError, StoreTooNewError
from hermitcrab.store.sqlite import opening, transaction, translated

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql", re.ASCII)

_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at TEXT NOT NULL
) STRICT
"""


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations_in(package: str, folder: str) -> tuple[Migration, ...]:
    """The migrations that `package` ships in `folder`, in order, without a gap."""
    root = files(package).joinpath(*folder.split("/"))
    found = [
        Migration(int(name[1]), name[2], each.read_text(encoding="utf-8"))
        for each in root.iterdir()
        if (name := _FILE_NAME.fullmatch(each.name))
    ]
    found.sort(key=lambda migration: migration.version)
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"the migrations of {package} in {folder} are not numbered 1, 2, 3, ...")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Found:
    """What a file holds before anybody changes it."""

    version: int
    empty: bool
    """There is no file, or it has no table."""
    ours: bool
    """It has the list of migrations that this module keeps."""


def look(path: Path) -> Found:
    """What the file holds, without changing a byte of it. Raises StoreDamagedError when it is no database."""
    with opening(path):
        if not path.exists() or path.stat().st_size == 0:
            return Found(version=0, empty=True, ours=False)
        # With an empty log the file alone is the truth; else only a reader that takes the log into account sees it.
        log = path.with_name(f"{path.name}-wal")
        mode = "mode=ro" if log.exists() and log.stat().st_size > 0 else "mode=ro&immutable=1"
        connection = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True)
        try:
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    return Found(version=version, empty=not tables, ours="schema_migrations" in tables)


def check(path: Path, migrations: Sequence[Migration], *, adopt: bool = False) -> Found:
    """Refuse, untouched, what this code cannot work on. `adopt`: a file of another make may be brought to our schema.

    Raises StoreTooNewError or StoreDamagedError.
    """
    found = look(path)
    if found.version > len(migrations):
        raise StoreTooNewError(
            f"{path} was written by a newer Hermitcrab (schema {found.version}; this one knows {len(migrations)})",
            hint="Upgrade Hermitcrab, or use the backup that the upgrade left beside the database.",
        )
    if not (found.empty or found.ours or (adopt and found.version == 0)):
        raise StoreDamagedError(
            f"{path} is no database of Hermitcrab",
            hint="Move it away; Hermitcrab does not change what it did not make.",
        )
    return found


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration], *, backup: bool = True) -> int:
    """Bring a file that passed `check` to the newest schema, and return the version that it had.

    An older file is copied beside itself first, unless not `backup`. Raises StoreError when one of the migrations that
    made the file was changed since.
    """
    with translated(path):
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > 0:
            _check_ledger(connection, path, migrations[:version])
        if version == len(migrations):
            return version
        filled = connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None
        if filled and backup:
            _back_up(connection, path, version)
        for migration in migrations[version:]:
            with transaction(connection, path):
                connection.execute(_LEDGER)
                for statement in _statements(migration.sql):
                    connection.execute(statement)
                connection.execute(
                    "INSERT INTO schema_migrations VALUES (?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
                    (migration.version, migration.name, migration.checksum),
                )
                connection.execute(f"PRAGMA user_version = {migration.version:d}")
    return version


def _check_ledger(connection: sqlite3.Connection, path: Path, expected: Sequence[Migration]) -> None:
    applied = connection.execute("SELECT version, checksum FROM schema_migrations ORDER BY version").fetchall()
    for migration, (_, checksum) in zip(expected, applied, strict=False):
        if checksum != migration.checksum:
            raise StoreError(
                f"migration {migration.version:04d}_{migration.name} was changed after it was applied to {path}",
                hint="A released migration is never edited: put its old text back and add a new one.",
            )
    if len(applied) != len(expected):
        raise StoreDamagedError(
            f"{path} is at schema {len(expected)} and lists {len(applied)} migrations", hint="Restore a backup of it."
        )


def _back_up(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """A whole copy beside the file. An earlier attempt's copy is of the same data and makes way."""
    target = path.with_name(f"{path.name}.backup-{version}")
    unfinished = target.with_name(f"{target.name}.unfinished")
    with opening(target):
        unfinished.unlink(missing_ok=True)
        connection.execute("VACUUM INTO ?", (str(unfinished),))
        unfinished.chmod(0o600)
        unfinished.replace(target)


def _statements(sql: str) -> Iterator[str]:
    # The module's own script runner would commit the transaction that the script must be part of.
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if re.sub(r"--.*", "", statement).strip():
        raise ValueError(f"a migration ends within a statement: {statement.strip()[:80]!r}")
