"""Who this installation is: an id that its containers carry, so that it never touches another's."""

from __future__ import annotations

import secrets
from sqlite3 import Connection

from hermitcrab.model.ids import InstallationId
from hermitcrab.store.clock import timestamp


def get_or_create(connection: Connection) -> InstallationId:
    """The installation's 12 hex digits, chosen when it is first asked for."""
    connection.execute(
        "INSERT INTO installation (only, id, created_at) VALUES (1, ?, ?) ON CONFLICT DO NOTHING",
        (secrets.token_hex(6), timestamp()),
    )
    return InstallationId(connection.execute("SELECT id FROM installation").fetchone()[0])
