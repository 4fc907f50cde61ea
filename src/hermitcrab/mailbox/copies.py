"""A mailbox as lines of JSON and back: what an archive of a session holds of its messages.

A copy is rows of known tables, never a database file: whoever made it can then plant no trigger, view or journal in
what the host opens. One line is `{"table": ..., "row": {column: value}}`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from hermitcrab.errors import BadInputError
from hermitcrab.mailbox.files import INBOUND, OUTBOUND, Files
from hermitcrab.store.sqlite import transaction
from hermitcrab_wire.limits import MAX_CONTENT_BYTES

Side = Literal["inbound", "outbound"]
SIDES: tuple[Side, ...] = ("inbound", "outbound")

LINE_BYTES_AT_MOST = 8 * MAX_CONTENT_BYTES
"""JSON's escapes can make a text six times as long."""

_VALUES = (str, int, float, type(None))


def lines(connection: sqlite3.Connection) -> Iterator[bytes]:
    """Every row of one database of a mailbox. The caller reads within one state of it."""
    for table, columns in _tables(connection).items():
        for row in connection.execute(f"SELECT {', '.join(columns)} FROM {table}"):  # noqa: S608
            yield json.dumps({"table": table, "row": dict(zip(columns, row, strict=True))}).encode() + b"\n"


def fill(folder: Path, side: Side, copied: Iterable[bytes]) -> int:
    """Put the rows of a copy into the new mailbox in `folder`; how many there were.

    Raises BadInputError for what no copy holds; the caller throws the folder away then.
    """
    path = folder / (INBOUND if side == "inbound" else OUTBOUND)
    files = Files.open(folder)
    count = 0
    try:
        connection = files.inbound if side == "inbound" else files.outbound
        known = _tables(connection)
        with transaction(connection, path):
            for table in known:
                if connection.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone()[0]:  # noqa: S608
                    raise BadInputError(f"{path} holds messages already")
            connection.execute("PRAGMA defer_foreign_keys = ON")
            for number, line in enumerate(copied, start=1):
                table, row = _row(line, known, f"{side} line {number}")
                names, places = ", ".join(row), ", ".join("?" * len(row))
                try:
                    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", tuple(row.values()))  # noqa: S608
                except (sqlite3.IntegrityError, OverflowError) as error:
                    raise BadInputError(f"{side} line {number} does not fit into {table}: {error}") from error
                count = number
        if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise BadInputError(f"{path} is not sound after it was filled")
    finally:
        files.close()
    return count


def _tables(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Columns by table, each table after those that it refers to. Only what our own migrations made is there."""
    names = [
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
            " AND name <> 'schema_migrations' ORDER BY rowid"
        )
    ]
    return {name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")] for name in names}


def _row(line: bytes, known: dict[str, list[str]], where: str) -> tuple[str, dict[str, str | int | float | None]]:
    if len(line) > LINE_BYTES_AT_MOST:
        raise BadInputError(f"{where} has {len(line):,} bytes; a row has at most {LINE_BYTES_AT_MOST:,}")
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{where} is no JSON") from error
    if not isinstance(told, dict) or told.keys() != {"table", "row"} or not isinstance(told["row"], dict):
        raise BadInputError(f"{where} is no row of a table")
    table, row = told["table"], told["row"]
    if not isinstance(table, str) or table not in known or not row:
        raise BadInputError(f"{where} is of no table that a mailbox has")
    for column, value in row.items():
        if column not in known[table]:
            raise BadInputError(f"{where}: {table} has no column {column[:40]!r}")
        if not isinstance(value, _VALUES) or isinstance(value, bool):
            raise BadInputError(f"{where}: {table}.{column} holds no text and no number")
    return table, row
