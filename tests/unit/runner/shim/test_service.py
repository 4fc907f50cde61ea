"""A runner that shows no sign of life, under a clock that the test moves."""

from __future__ import annotations

import os
import queue
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab_runner.link import Pulse
from hermitcrab_runner.shim.command import Command, Exited
from hermitcrab_runner.shim.layout import Workspace
from hermitcrab_runner.shim.ledger import Ack
from hermitcrab_runner.shim.outbound import OutboundFile
from hermitcrab_runner.shim.service import EXIT_STUCK, Runner, Shim
from hermitcrab_runner.shim.watch import Changed, Watch
from hermitcrab_runner.turn import Tick
from hermitcrab_wire import frames

from .conftest import Foreign

DESTINATION = {"name": "home", "type": "channel", "channel_type": "terminal", "platform_id": "main"}


class Driven:
    """A shim with a real runner, whose clock stands still until the test moves it."""

    def __init__(self, foreign: Foreign, runner: Runner | None = None) -> None:
        """`runner`: another than the real one."""
        self.foreign = foreign
        self.now = 1000.0
        self.sent: list[frames.Frame] = []
        self.pulses: list[Pulse] = []
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        workspace = Workspace(str(foreign.root))
        watch = Watch(workspace.root, lambda: self.items.put(Changed()))
        self.command = Command(
            foreign.command(), env={"PATH": "/usr/bin"}, workdir=str(foreign.root), exited=self.items.put
        )
        self.shim = Shim(
            workspace,
            send=self.sent.append,
            show=self.pulses.append,
            runner=runner or self.command,
            looking=watch.look,
            clock=lambda: self.now,
        )
        watch.start()
        self.shim.handle(
            frames.Welcome(
                protocol=1, generation=1, session="s", config={}, destinations=[DESTINATION], state={}, routing=None
            )
        )

    def say(self, text: str, *, seq: int = 2) -> None:
        content = {"text": text}
        row = {
            "id": f"m{seq}",
            "seq": seq,
            "kind": "chat",
            "content": content,
            "channel_type": "terminal",
            "platform_id": "main",
        }
        self.shim.handle(frames.Inbound(rows=[row]))
        self.pass_time(1.0)

    def pass_time(self, seconds: float) -> None:
        """In steps, as a clock is only believed in steps."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 5.0)
            self.shim.handle(Tick())

    def until(self, condition: Callable[[], bool], *, passing: float = 0.0) -> None:
        """`passing`: seconds of its own clock, whenever nothing has happened for a moment."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, self.sent
            try:
                self.shim.handle(self.items.get(timeout=0.1))
            except queue.Empty:
                self.pass_time(passing)

    def of_kind(self, kind: type[frames.Frame]) -> list[Any]:
        return [frame for frame in self.sent if isinstance(frame, kind)]


@pytest.fixture
def driven(foreign: Foreign) -> Any:
    found = Driven(foreign)
    yield found
    found.command.kill()


def test_a_runner_that_takes_a_message_and_shows_no_life_is_ended(driven: Driven) -> None:
    driven.say("stall")
    driven.until(lambda: bool(driven.of_kind(frames.Claim)))
    driven.pass_time(55)
    assert not driven.of_kind(frames.Log)
    driven.pass_time(10)
    driven.until(lambda: driven.shim.finished)
    assert driven.shim.exit_code == EXIT_STUCK
    assert "claim-stuck" in driven.of_kind(frames.Log)[0].text
    assert not driven.of_kind(frames.Complete)


def test_a_declared_time_is_granted(driven: Driven) -> None:
    driven.say("tool Bash 600000 | stall")
    driven.until(lambda: any(pulse.activity == "tool" for pulse in driven.pulses))
    driven.pass_time(500)
    assert not driven.shim.finished
    driven.pass_time(200)
    driven.until(lambda: driven.shim.finished)
    assert driven.shim.exit_code == EXIT_STUCK


def test_a_clock_that_jumps_makes_nobody_stuck(driven: Driven) -> None:
    driven.say("hold gate")
    driven.until(lambda: bool(driven.of_kind(frames.Claim)))
    driven.now += 100_000
    driven.shim.handle(Tick())
    driven.foreign.let("gate")
    driven.until(lambda: bool(driven.of_kind(frames.Out)))
    assert not driven.shim.finished


def test_a_runner_that_goes_by_itself_is_told_by_its_signal(driven: Driven) -> None:
    driven.say("hold gate")
    driven.until(lambda: bool(driven.of_kind(frames.Claim)))
    driven.command.kill()
    driven.until(lambda: driven.shim.finished)
    assert driven.shim.exit_code == 128 + signal.SIGKILL


def test_files_are_looked_at_where_the_kernel_gives_no_watch(foreign: Foreign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermitcrab_runner.shim.watch._watch", lambda _folder: None)
    driven = Driven(foreign)
    try:
        driven.say("hello")
        driven.until(lambda: bool(driven.of_kind(frames.Out)))
    finally:
        driven.command.kill()


# What an agent may do to the file that its runner shares with the shim.


def attack(root: Path, script: str) -> None:
    connection = sqlite3.connect(root / "outbound.db", isolation_level=None, timeout=DEADLINE_S)
    connection.executescript(script)
    connection.close()


ENDLESS = (
    "DROP TABLE messages_out; CREATE VIEW messages_out (id, in_reply_to, timestamp, deliver_after, kind, platform_id,"
    " channel_type, thread_id, content, rowid) AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
    " SELECT i, i, i, i, i, i, i, i, i, i FROM n;"
)
BAD_ROWS = """
    INSERT INTO messages_out (id, seq, timestamp, kind, content) VALUES (NULL, 9223372036854775807, 'x', 'chat', '{}');
    INSERT INTO messages_out (id, seq, timestamp, kind, content) VALUES ('real', 9.5e18, 'x', 'chat', 'no json');
    INSERT INTO messages_out (id, seq, timestamp, kind, content) VALUES ('blob', 'seven', 'x', x'00', x'ff');
    INSERT INTO messages_out (id, seq, timestamp, kind, content) VALUES ('large', -1, 'x', 'chat', zeroblob(3000000));
    INSERT INTO messages_out (id, seq, timestamp, kind, content) VALUES ('utf8', -3, 'x', 'chat', CAST(x'22c328' AS TEXT));
    INSERT INTO messages_out (id, seq, timestamp, kind, content) VALUES ('deep', -5, 'x', 'chat', '[' || '[');
    INSERT INTO messages_out (id, timestamp, kind, platform_id, channel_type, content)
        VALUES ('good', 'never', 'chat', 'main', 'terminal', '{"text":"good"}');
    INSERT OR REPLACE INTO processing_ack VALUES ('m2', 'invented', 'x');
    INSERT INTO processing_ack VALUES (x'00', 'completed', 'x');
    INSERT OR REPLACE INTO container_state VALUES (1, x'00', 'long', 7, 'x');
    INSERT INTO session_state VALUES (x'00', 'x', 'x');
"""


def test_bad_rows_cost_no_good_one(driven: Driven) -> None:
    driven.say("stall")
    driven.until(lambda: bool(driven.of_kind(frames.Claim)))
    attack(driven.foreign.root, BAD_ROWS)
    driven.until(lambda: bool(driven.of_kind(frames.Out)))
    assert [out.content for out in driven.of_kind(frames.Out)] == [{"text": "good"}]
    assert len(driven.of_kind(frames.Log)) == 6
    assert not driven.shim.finished


@pytest.mark.parametrize(
    "script",
    [
        ENDLESS,
        "DROP TABLE processing_ack;",
    ],
    ids=["endless-view", "no-table"],
)
def test_a_database_that_is_no_such_database_ends_its_runner(driven: Driven, script: str) -> None:
    driven.say("stall")
    driven.until(lambda: bool(driven.of_kind(frames.Claim)))
    attack(driven.foreign.root, script)
    driven.until(lambda: driven.shim.finished)
    assert driven.shim.exit_code == 74
    assert not driven.of_kind(frames.Complete)


@pytest.mark.parametrize("plant", ["pipe", "link", "folder", "trigger"])
def test_what_was_planted_for_the_next_container_is_put_aside(foreign: Foreign, tmp_path: Path, plant: str) -> None:
    path = foreign.root / "outbound.db"
    victim = tmp_path / "victim.db"
    match plant:
        case "pipe":
            os.mkfifo(path)
        case "link":
            sqlite3.connect(victim).execute("CREATE TABLE t (x)").connection.close()
            path.symlink_to(victim)
        case "folder":
            path.mkdir()
        case "trigger":
            first = Driven(foreign)
            first.say("hello")
            first.command.kill()
            attack(foreign.root, "CREATE TRIGGER t AFTER DELETE ON processing_ack BEGIN SELECT 1; END;")
    before = victim.read_bytes() if victim.exists() else b""
    driven = Driven(foreign)
    try:
        driven.say("hello")
        driven.until(lambda: bool(driven.of_kind(frames.Out)))
    finally:
        driven.command.kill()
    assert (foreign.root / "outbound.db.damaged-1").is_symlink() or (foreign.root / "outbound.db.damaged-1").exists()
    assert (victim.read_bytes() if victim.exists() else b"") == before


@pytest.mark.parametrize("plant", ["empty", "log", "cut", "pages"])
def test_a_database_that_was_left_in_a_strange_state_costs_no_message(foreign: Foreign, plant: str) -> None:
    """As an agent may leave it: of no length, with a write-ahead log, cut in a page, with pages of no size."""
    path = foreign.root / "outbound.db"
    first = Driven(foreign)
    first.say("hello")
    first.until(lambda: bool(first.of_kind(frames.Out)))
    first.command.kill()
    match plant:
        case "empty":
            path.write_bytes(b"")
        case "log":
            attack(foreign.root, "PRAGMA journal_mode = WAL")
            (foreign.root / "outbound.db-shm").write_bytes(b"")
        case "cut":
            os.truncate(path, path.stat().st_size - 1000)
        case "pages":
            path.write_bytes(path.read_bytes()[:16] + b"\0\0" + path.read_bytes()[18:])
    driven = Driven(foreign)
    try:
        driven.say("again", seq=4)
        driven.until(lambda: {"text": "Echo: again"} in [out.content for out in driven.of_kind(frames.Out)])
        assert driven.command.running
    finally:
        driven.command.kill()


def test_a_file_that_is_locked_at_the_start_only_delays_it(foreign: Foreign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermitcrab_runner.shim.layout.BUSY_TIMEOUT_MS", 10)
    OutboundFile(Workspace(str(foreign.root))).close()
    locker = sqlite3.connect(foreign.root / "outbound.db", isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    driven = Driven(foreign)
    try:
        driven.say("hello")
        assert not driven.command.running
        locker.execute("ROLLBACK")
        driven.pass_time(1.0)
        assert driven.command.running
        # With so little patience it may find a file busy again, and then looks later.
        driven.until(lambda: bool(driven.of_kind(frames.Out)), passing=0.25)
        assert len(driven.of_kind(frames.Out)) == 1
    finally:
        locker.close()
        driven.command.kill()


def test_the_end_of_a_process_that_is_gone_changes_nothing(driven: Driven) -> None:
    driven.say("hello")
    driven.until(lambda: bool(driven.of_kind(frames.Out)))
    driven.command.kill()
    driven.until(lambda: driven.shim.finished)
    driven.shim.handle(Exited(0))
    assert driven.shim.exit_code == 128 + signal.SIGKILL


class Still:
    """A runner that does nothing by itself: the test writes what it would."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def ended(self) -> None: ...


def test_an_answer_that_comes_in_the_middle_of_a_look_is_not_taken_in_without_its_mark(
    foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = Driven(foreign, runner=Still())
    processing = "INSERT OR REPLACE INTO processing_ack VALUES ('m2', 'processing', 'x');"
    answered = """
        BEGIN;
        INSERT OR REPLACE INTO processing_ack VALUES ('m2', 'completed', 'x');
        INSERT INTO messages_out (id, seq, in_reply_to, timestamp, kind, platform_id, channel_type, content)
            VALUES ('o', 5, 'm2', 'x', 'chat', 'main', 'terminal', '{"text":"here"}');
        COMMIT;
    """
    driven.say("hello")
    # A stream is open: what is claimed now may have been added to it, and only an answer shows that it was seen.
    driven.shim._ledger._has_stream = True
    attack(foreign.root, processing)
    driven.shim.handle(Changed())
    acks, late = OutboundFile.acks, [answered]

    def acks_and_then(file: OutboundFile, ids: Iterable[str]) -> list[Ack]:
        found = acks(file, ids)
        writer = sqlite3.connect(foreign.root / "outbound.db", isolation_level=None, timeout=0)
        with closing(writer), suppress(sqlite3.OperationalError):  # It has to wait.
            writer.executescript(late[-1])
            late.pop()
        return found

    with monkeypatch.context() as overtaken:
        overtaken.setattr(OutboundFile, "acks", acks_and_then)
        driven.shim.handle(Changed())
    for script in late:
        attack(foreign.root, script)
    driven.shim.handle(Changed())
    driven.pass_time(5)
    (complete,) = driven.of_kind(frames.Complete)
    assert complete.ids == ["m2"]
