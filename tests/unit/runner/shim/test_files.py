"""The two databases as files: their schema to the letter, and no more history than is needed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib import resources

from hermitcrab_runner.prompt import Destination
from hermitcrab_runner.shim import schema
from hermitcrab_runner.shim.environment import environment_of
from hermitcrab_runner.shim.inbound import KEPT_ROWS, InboundFile
from hermitcrab_runner.shim.layout import Workspace
from hermitcrab_runner.shim.outbound import OutboundFile
from hermitcrab_runner.shim.translate import Place

from .conftest import Foreign


def tables(script: str) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(script)
        found = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'index')").fetchall()
        return {name: connection.execute(f"PRAGMA table_info({name})").fetchall() for (name,) in found}


def test_the_tables_are_those_of_the_mailbox() -> None:
    migrations = resources.files("hermitcrab.mailbox") / "migrations"
    for folder, script in (("inbound", schema.INBOUND), ("outbound", schema.OUTBOUND)):
        assert tables(script) == tables((migrations / folder / "0001_reference.sql").read_text())


def test_old_history_goes_and_the_newest_stays(foreign: Foreign) -> None:
    count = KEPT_ROWS + 200
    file = InboundFile(Workspace(str(foreign.root)))
    file.close()
    connection = sqlite3.connect(foreign.root / "inbound.db")
    connection.executemany(
        "INSERT INTO messages_in (id, seq, kind, timestamp, status, content) VALUES (?, ?, 'chat', 'x', ?, '{}')",
        [(f"m{n}", 2 * n, "pending" if n == count else "completed") for n in range(1, count + 1)],
    )
    connection.commit()
    connection.close()
    file = InboundFile(Workspace(str(foreign.root)))
    file.begin()
    # What waits comes from the host again; what was done with is kept for replies, edits and reactions.
    assert foreign.rows("inbound.db", "SELECT count(*), min(seq), max(seq) FROM messages_in") == [
        (KEPT_ROWS, 2 * 200, 2 * (count - 1))
    ]
    file.close()


def test_what_was_said_long_ago_goes_only_if_it_was_delivered(foreign: Foreign) -> None:
    count = KEPT_ROWS + 200
    workspace = Workspace(str(foreign.root))
    file = OutboundFile(workspace)
    assert file.fresh
    connection = sqlite3.connect(foreign.root / "outbound.db")
    connection.executemany(
        "INSERT INTO messages_out (id, seq, timestamp, kind, content) VALUES (?, ?, 'x', 'chat', '{}')",
        [(f"m{n}", 2 * n + 1) for n in range(1, count + 1)],
    )
    connection.commit()
    connection.close()
    file.forget_said(f"m{n}" for n in range(1, count + 1) if n != 7)
    kept = foreign.rows("outbound.db", "SELECT id FROM messages_out ORDER BY seq")
    assert kept[0] == ("m7",)
    assert len(kept) == KEPT_ROWS + 1
    file.close()


def test_a_destination_has_the_columns_of_its_type_and_no_others(foreign: Foreign) -> None:
    file = InboundFile(Workspace(str(foreign.root)))
    destinations = [
        Destination("chat", "", "channel", "terminal", "main", "ag-own"),
        Destination("child", "A child", "agent", "agent", "ag-child", "ag-child"),
        Destination("nowhere", "", "channel", "terminal", None),
        Destination("nobody", "", "agent"),
        Destination("odd", "", "mailing-list", "terminal", "main"),
    ]
    file.write_destinations(destinations, Place("terminal", "main"))
    file.close()
    assert foreign.rows("inbound.db", "SELECT * FROM destinations ORDER BY name") == [
        ("chat", "chat", "channel", "terminal", "main", None),
        ("child", "A child", "agent", None, None, "ag-child"),
    ]


def test_the_runner_finds_the_containers_environment_without_what_is_ours() -> None:
    given = {"TZ": "UTC", "HOME": "/home/node", "HERMITCRAB_LINK": "x", "PYTHONPATH": "y", "LIBS": "/opt/hermitcrab/z"}
    assert environment_of(given, port=None, root=False) == {"TZ": "UTC", "HOME": "/home/node"}
    found = environment_of(given, port=8000, root=True)
    assert found["HTTPS_PROXY"] == "http://127.0.0.1:8000"
    assert found["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8000/anthropic"
    assert found["IS_SANDBOX"] == "1"
