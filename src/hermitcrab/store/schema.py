"""Schemas as numbered SQL files: each runs once, all that are due in one transaction, and is never changed after that.

`PRAGMA user_version` says how far a file is; the table `schema_migrations` says what was run, by checksum.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from hermitcrab.errors import StoreDamagedError, StoreError, StoreTooNewError
from hermitcrab.store.sqlite import log_bytes, opening, transaction, translated

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql", re.ASCII)

# The head of a database file, as its format has it for good (https://www.sqlite.org/fileformat2.html).
_HEAD_BYTES = 100
_MAGIC = b"SQLite format 3\0"
_WRITE_FORMAT, _WITH_LOG = 18, 2
_USER_VERSION = 60

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
        mode = "mode=ro" if log_bytes(path) else "mode=ro&immutable=1"
        connection = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True)
        try:
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    return Found(version=version, empty=not tables, ours="schema_migrations" in tables)


def seems_current(path: Path, migrations: Sequence[Migration]) -> bool:
    """Whether the file's first bytes say that it is a database of ours at the newest schema. Costs one small read.

    Then `check` has nothing to refuse or make, and `migrate` still notices when the bytes were wrong.
    """
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return (
        len(head) == _HEAD_BYTES
        and head.startswith(_MAGIC)
        and head[_WRITE_FORMAT] == head[_WRITE_FORMAT + 1] == _WITH_LOG
        and int.from_bytes(head[_USER_VERSION : _USER_VERSION + 4], "big") == len(migrations)
    )


def check(path: Path, migrations: Sequence[Migration], *, adopt: bool = False) -> Found:
    """Refuse, untouched, what this code cannot work on. `adopt`: a file of another make may be brought to our schema.

    Raises StoreTooNewError or StoreDamagedError.
    """
    found = look(path)
    _check_version(path, found.version, migrations)
    if not (found.empty or found.ours or (adopt and found.version == 0)):
        raise _foreign(path)
    return found


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration], *, backup: bool = True) -> int:
    """Bring a file that passed `check` or `seems_current` to the newest schema, and return the version that it had.

    An older file is copied beside itself first, unless not `backup`. Raises StoreError when one of the migrations that
    made the file was changed since, and StoreTooNewError as `check` does.
    """
    with translated(path):
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        _check_version(path, version, migrations)
        if version > 0:
            _check_ledger(connection, path, migrations[:version])
        if version == len(migrations):
            return version
        with transaction(connection, path):
            # Now that nobody else writes: another process may have come first, and done it.
            if connection.execute("PRAGMA user_version").fetchone()[0] == len(migrations):
                return version
            filled = connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None
            if filled and backup:
                _back_up(path, version)
            connection.execute(_LEDGER)
            for migration in migrations[version:]:
                for statement in _statements(migration.sql):
                    connection.execute(statement)
                connection.execute(
                    "INSERT INTO schema_migrations VALUES (?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
                    (migration.version, migration.name, migration.checksum),
                )
            connection.execute(f"PRAGMA user_version = {len(migrations):d}")
        # From the log into the file, so that `seems_current` finds it there however this host ends, and nothing is left
        # in the log for whoever looks at a file in which nothing was written since.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return version


def _check_version(path: Path, version: int, migrations: Sequence[Migration]) -> None:
    if version > len(migrations):
        raise StoreTooNewError(
            f"{path} was written by a newer Hermitcrab (schema {version}; this one knows {len(migrations)})",
            hint="Upgrade Hermitcrab, or use the backup that the upgrade left beside the database.",
        )


def _foreign(path: Path) -> StoreDamagedError:
    return StoreDamagedError(
        f"{path} is no database of Hermitcrab", hint="Move it away; Hermitcrab does not change what it did not make."
    )


def _check_ledger(connection: sqlite3.Connection, path: Path, expected: Sequence[Migration]) -> None:
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_migrations'").fetchone() is None:
        raise _foreign(path)
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


def _back_up(path: Path, version: int) -> None:
    """A whole copy beside the file. An earlier attempt's copy is of the same data and makes way.

    The caller holds the file's write lock. What is copied is read by a connection of its own, as no transaction may
    hold such a copy.
    """
    target = path.with_name(f"{path.name}.backup-{version}")
    unfinished = target.with_name(f"{target.name}.unfinished")
    with opening(target):
        unfinished.unlink(missing_ok=True)
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as reader:
            reader.execute("VACUUM INTO ?", (str(unfinished),))
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
