"""Reads outbound.db: what the runner said, which rows it took, its state, the tool that it runs.

Its writers are the foreign runner and whatever the agent starts. Before they start, the shim puts the file in order;
after that it only reads, by fixed statements, row by row, so that one bad row costs no other.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from hermitcrab_runner.shim import layout, schema
from hermitcrab_runner.shim.inbound import KEPT_ROWS
from hermitcrab_runner.shim.ledger import Ack
from hermitcrab_runner.shim.times import parse_time
from hermitcrab_runner.shim.translate import OutRow, Unsendable, out_row
from hermitcrab_wire.limits import MAX_ID_CHARACTERS, MAX_STATE_BYTES

ROWS_AT_ONCE = 64
SKIPPED_FOR_ERROR = "script-skip:error"
"""The mark of a task whose script failed, so that the model was not asked."""
_ACKS_AT_MOST = 512
_STATE_KEYS_AT_MOST = 256
_OUT_COLUMNS = "id, in_reply_to, timestamp, deliver_after, kind, channel_type, platform_id, thread_id, content"
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_TRANSACTION})


class Tool(NamedTuple):
    """container_state: the tool that the runner says it runs."""

    name: str | None = None
    timeout_ms: int | None = None
    started_at: float | None = None


class OutboundFile:
    def __init__(self, workspace: layout.Workspace) -> None:
        """Opens the file, or makes it. `fresh`: it was made. `damage` says what was put aside for it."""
        self._workspace = workspace
        self.fresh = not os.path.lexists(workspace.path(layout.OUTBOUND))
        self._connection, self.damage = layout.connect_sound(workspace, layout.OUTBOUND, schema.OUTBOUND)
        self.fresh = self.fresh or self.damage is not None
        self._inode = _inode(workspace)
        self._out_cursor = 0
        self._ack_cursor = 0

    def close(self) -> None:
        self._connection.close()

    # Before the runner starts.

    def begin(self, state: Mapping[str, str]) -> None:
        """Put in order what an earlier container left; a fresh file gets the state that the host kept."""
        with self._repair():
            self._connection.execute("DELETE FROM processing_ack WHERE status = 'processing'")
            self._connection.execute(
                "DELETE FROM processing_ack WHERE rowid <= (SELECT max(rowid) FROM processing_ack) - ?", (KEPT_ROWS,)
            )
            self._connection.execute("UPDATE container_state SET current_tool = NULL, tool_declared_timeout_ms = NULL")
            if self.fresh:
                self._connection.executemany(
                    "INSERT OR IGNORE INTO session_state (key, value, updated_at)"
                    " VALUES (?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
                    list(state.items()),
                )

    def forget_marks(self, ids: Iterable[str]) -> None:
        """The runner takes no row that it has a mark of, however old."""
        with self._repair():
            self._connection.executemany("DELETE FROM processing_ack WHERE message_id = ?", [(each,) for each in ids])

    def forget_said(self, is_delivered: Iterable[str]) -> None:
        """Drop what was delivered long ago; the newest rows keep the numbers going."""
        with self._repair():
            self._connection.executemany(
                "DELETE FROM messages_out WHERE id = ? AND rowid <= (SELECT max(rowid) FROM messages_out) - ?",
                [(each, KEPT_ROWS) for each in is_delivered],
            )

    def start_reading(self) -> None:
        """From here on nothing is written, and only what is new is read."""
        self._ack_cursor = self._number("SELECT coalesce(max(rowid), 0) FROM processing_ack")
        self._connection.execute("PRAGMA query_only=ON")
        self._connection.set_authorizer(_only_reading)

    # What is new.

    def version(self) -> int:
        """Another number whenever somebody else has committed a change."""
        with self._reading():
            return self._number("PRAGMA data_version")

    def said(self) -> list[OutRow | Unsendable]:
        """The next rows of messages_out that were not given before, oldest first; call again until there are none."""
        with self._reading():
            rowids = self._connection.execute(
                "SELECT rowid FROM messages_out WHERE rowid > ? ORDER BY rowid LIMIT ?",
                (self._out_cursor, ROWS_AT_ONCE),
            ).fetchall()
            found = [self._out(rowid) for (rowid,) in rowids]
            if rowids:
                self._out_cursor = rowids[-1][0]
        return found

    def newest_said(self, count: int) -> list[OutRow]:
        with self._reading():
            rowids = self._connection.execute(
                "SELECT rowid FROM messages_out ORDER BY rowid DESC LIMIT ?", (count,)
            ).fetchall()
            found = [self._out(rowid) for (rowid,) in rowids]
        return [each for each in found if isinstance(each, OutRow)]

    def acks(self, ids: Iterable[str]) -> list[Ack]:
        """Marks of these rows, and all marks that are newer than at the last call."""
        with self._reading():
            greatest = self._number("SELECT coalesce(max(rowid), 0) FROM processing_ack")
            # Marks that were taken back make room for others under their numbers.
            self._ack_cursor = min(self._ack_cursor, greatest)
            query = "SELECT message_id, status, rowid, status_changed FROM processing_ack WHERE "
            rows = self._connection.execute(
                query + "rowid > ? ORDER BY rowid DESC LIMIT ?", (self._ack_cursor, _ACKS_AT_MOST)
            ).fetchall()
            for key in ids:
                rows += self._connection.execute(query + "message_id = ?", (key,)).fetchall()
            self._ack_cursor = max([greatest, *(row[2] for row in rows if isinstance(row[2], int))])
        found = {ack.id: ack for row in rows if (ack := _ack(row)) is not None}
        return sorted(found.values(), key=lambda each: each.order)

    def newest_acks(self) -> list[Ack]:
        with self._reading():
            rows = self._connection.execute(
                "SELECT message_id, status, rowid, status_changed FROM processing_ack ORDER BY rowid DESC LIMIT ?",
                (_ACKS_AT_MOST,),
            ).fetchall()
        return [ack for row in rows if (ack := _ack(row)) is not None]

    def state(self) -> dict[str, str]:
        """session_state, as far as it is text of a bearable size."""
        with self._reading():
            rows = self._connection.execute(
                "SELECT key, value FROM session_state WHERE typeof(key) = 'text' AND typeof(value) = 'text'"
                " AND length(key) BETWEEN 1 AND ? AND length(value) <= ? ORDER BY key LIMIT ?",
                (MAX_ID_CHARACTERS, MAX_STATE_BYTES, _STATE_KEYS_AT_MOST),
            ).fetchall()
        return dict(rows)

    def tool(self) -> Tool:
        with self._reading():
            row = self._connection.execute(
                "SELECT current_tool, tool_declared_timeout_ms, tool_started_at FROM container_state WHERE id = 1"
            ).fetchone()
        if row is None or not isinstance(row[0], str) or not row[0]:
            return Tool()
        timeout = row[1] if isinstance(row[1], int) and 0 < row[1] < 2**40 else None
        return Tool(row[0][:200], timeout, parse_time(row[2]))

    # Inside.

    def _out(self, rowid: int) -> OutRow | Unsendable:
        try:
            row = self._connection.execute(
                f"SELECT {_OUT_COLUMNS} FROM messages_out WHERE rowid = ?",  # noqa: S608  # names of ours
                (rowid,),
            ).fetchone()
        except (sqlite3.DataError, sqlite3.OperationalError, OverflowError) as error:
            if isinstance(error, sqlite3.OperationalError) and "decode" not in str(error):
                raise
            return Unsendable(None, f"it cannot be read: {error}"[:200])
        return out_row(row) if row is not None else Unsendable(None, "it was removed before it could be read")

    def _number(self, query: str) -> int:
        value = self._connection.execute(query).fetchone()[0]
        return value if isinstance(value, int) else 0

    @contextmanager
    def _repair(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextmanager
    def moment(self) -> Iterator[None]:
        """What is read meanwhile is all of one state of the file; whoever writes waits for as long."""
        with self._reading():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raises DamagedError for what is no sound database any more, and sqlite3's own error while it is locked."""
        if _inode(self._workspace) != self._inode:
            raise layout.DamagedError(f"{layout.OUTBOUND} was replaced")
        try:
            with layout.Steps(self._connection):
                yield
        except sqlite3.Error as error:
            if layout.is_busy(error):
                raise
            raise layout.DamagedError(f"{layout.OUTBOUND}: {error}") from error


def _only_reading(action: int, subject: str | None, *_: str | None) -> int:
    allowed = action in _ALLOWED or (action == sqlite3.SQLITE_PRAGMA and subject == "data_version")
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _ack(row: tuple[object, ...]) -> Ack | None:
    key, status, order, at = row
    if status == SKIPPED_FOR_ERROR:
        status = "failed"
    if not isinstance(key, str) or not isinstance(order, int) or status not in {"processing", "completed", "failed"}:
        return None
    return Ack(key, str(status), order, parse_time(at))


def _inode(workspace: layout.Workspace) -> tuple[int, int] | None:
    try:
        found = os.lstat(workspace.path(layout.OUTBOUND))
    except OSError:
        return None
    return found.st_dev, found.st_ino
