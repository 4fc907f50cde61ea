"""Writes inbound.db: what comes in, where the agent may send to, and what became of what it said.

The foreign runner only reads it, one new connection at a time, so that each change is one short transaction.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from hermitcrab_runner.prompt import Destination
from hermitcrab_runner.shim import layout, schema
from hermitcrab_runner.shim.translate import NOWHERE, InRow, Place, inbound_seq

KEPT_ROWS = 1000
"""Of what is done with: the runner looks up replies, edits and reactions in them, and its agent lists its tasks."""

_INSERT = (
    "INSERT OR REPLACE INTO messages_in (id, seq, kind, timestamp, status, process_after, recurrence, series_id, tries,"
    " trigger, platform_id, channel_type, thread_id, content, source_session_id, on_wake)"
    " VALUES (?, ?, ?, ?, 'pending', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class InboundFile:
    def __init__(self, workspace: layout.Workspace) -> None:
        """Opens the file, or makes it. `fresh`: it was made. `damage` says what was put aside for it."""
        fresh = not os.path.lexists(workspace.path(layout.INBOUND))
        self._connection, self.damage = layout.connect_sound(workspace, layout.INBOUND, schema.INBOUND)
        # The host has all of it: a machine that loses its power costs this file, and nothing that is in it.
        self._connection.execute("PRAGMA synchronous=OFF")
        self.fresh = fresh or self.damage is not None

    def close(self) -> None:
        self._connection.close()

    def begin(self) -> None:
        """Before a runner starts: what waits comes from the host again, and old history goes."""
        with self._transaction():
            self._connection.execute("DELETE FROM messages_in WHERE status = 'pending'")
            self._connection.execute(
                "DELETE FROM messages_in WHERE status IN ('completed', 'failed') AND rowid <="
                " (SELECT max(rowid) FROM messages_in) - ?",
                (KEPT_ROWS,),
            )
            self._connection.execute(
                "DELETE FROM delivered WHERE rowid <= (SELECT max(rowid) FROM delivered) - ?", (2 * KEPT_ROWS,)
            )

    def write(self, rows: Sequence[InRow]) -> list[InRow]:
        """Show rows to the runner, all at once. Returns them with the numbers that they got."""
        written = []
        with self._transaction():
            for row in rows:
                greatest = self._connection.execute("SELECT coalesce(max(seq), 0) FROM messages_in").fetchone()[0]
                taken = self._connection.execute(
                    "SELECT 1 FROM messages_in WHERE seq = ? AND id <> ?", (row.seq, row.id)
                ).fetchone()
                numbered = row._replace(seq=inbound_seq(row.seq, taken=bool(taken), greatest=int(greatest)))
                self._connection.execute(_INSERT, numbered)
                written.append(numbered)
        return written

    def finish(self, ids: Iterable[str], status: Literal["completed", "failed"] = "completed") -> None:
        """The runner has marked them: at once, as pending rows take the places of others."""
        with self._transaction():
            self._connection.executemany(
                "UPDATE messages_in SET status = ? WHERE id = ? AND status = 'pending'", [(status, key) for key in ids]
            )

    def withdraw(self, ids: Iterable[str]) -> None:
        """Show them no more."""
        with self._transaction():
            self._connection.executemany("DELETE FROM messages_in WHERE id = ?", [(key,) for key in ids])

    def write_destinations(self, destinations: Iterable[Destination], home: Place) -> None:
        with self._transaction():
            self._connection.execute("DELETE FROM destinations")
            self._connection.executemany(
                "INSERT INTO destinations (name, display_name, type, channel_type, platform_id, agent_group_id)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [columns for each in destinations if (columns := _columns(each)) is not None],
            )
            self._connection.execute(
                "INSERT INTO session_routing (id, channel_type, platform_id, thread_id) VALUES (1, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET channel_type = excluded.channel_type,"
                " platform_id = excluded.platform_id, thread_id = excluded.thread_id",
                home,
            )

    def delivered(self, out_id: str, status: Literal["delivered", "failed"], platform_id: str | None = None) -> None:
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO delivered (message_out_id, platform_message_id, status, delivered_at)"
                " VALUES (?, ?, ?, datetime('now'))",
                (out_id, platform_id, status),
            )

    def reported(self, out_id: str, platform_id: str | None, *, failed: bool) -> None:
        """What became of a message later, on its platform. The runner names it by the platform's id from then on.

        A message that this file does not know is passed over: its row went with old history.
        """
        with self._transaction():
            self._connection.execute(
                "UPDATE delivered SET platform_message_id = coalesce(?, platform_message_id), status = ?"
                " WHERE message_out_id = ?",
                (platform_id, "failed" if failed else "delivered", out_id),
            )

    def is_delivered(self, out_id: str) -> bool:
        found = self._connection.execute("SELECT 1 FROM delivered WHERE message_out_id = ?", (out_id,)).fetchone()
        return found is not None

    def place_of(self, row_id: str) -> Place:
        """Where a row came from; nowhere for one that is not known."""
        found = self._connection.execute(
            "SELECT channel_type, platform_id, thread_id FROM messages_in WHERE id = ?", (row_id,)
        ).fetchone()
        return Place(*found) if found else NOWHERE

    def seqs(self, ids: Iterable[str]) -> dict[str, int]:
        """The numbers of those rows that are known."""
        found = {}
        for key in ids:
            row = self._connection.execute("SELECT seq FROM messages_in WHERE id = ?", (key,)).fetchone()
            if row is not None and isinstance(row[0], int):
                found[key] = row[0]
        return found

    def latest_from(self, place: Place) -> str | None:
        """The newest row from that chat, in that thread if there is one from it."""
        found = self._connection.execute(
            "SELECT id FROM messages_in WHERE channel_type = ? AND platform_id = ? AND kind <> 'system'"
            " ORDER BY thread_id IS NOT ?, seq DESC LIMIT 1",
            (place.channel_type, place.platform_id, place.thread_id),
        ).fetchone()
        return found[0] if found else None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            # A reader kept its lock for longer than we wait.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _columns(each: Destination) -> tuple[str | None, ...] | None:
    """A destination has the columns of its type and no others, or the newest runners end. None: it lacks one."""
    named = (each.name, each.display_name or each.name, each.type)
    if each.type == "agent":
        return None if each.agent_group_id is None else (*named, None, None, each.agent_group_id)
    if each.type != "channel" or each.channel_type is None or each.platform_id is None:
        return None
    return (*named, each.channel_type, each.platform_id, None)
