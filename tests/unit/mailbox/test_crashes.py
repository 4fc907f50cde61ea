"""Processes that die at every commit: nothing accepted is lost, nothing finished comes back, nothing is said twice."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import Generation, MessageId
from hermitcrab.model.messages import Address, InboundRow, OutboundRow
from hermitcrab_wire import faults

CHAT = Address(channel_type="test", platform_id="chat-1")
TIME = "2026-01-01T00:00:00.000Z"

CHILD = f"""
import sys
from pathlib import Path
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import Generation
from hermitcrab.model.messages import InboundRow, OutboundRow
mailbox = Mailbox.open(Path(sys.argv[1]), process="child")
print("opened", flush=True)
accepted = mailbox.accept(InboundRow(id="m", kind="chat", timestamp="{TIME}", content={{"text": "hi"}}))
print("accepted", accepted is not None, flush=True)
mailbox.claim("t", ["m"], Generation(1))
out = OutboundRow(id="o", kind="chat", timestamp="{TIME}", content={{"text": "hello"}}, in_reply_to="m")
said = mailbox.finish("t", ["m"], [out], None)
print("finished", len(said), flush=True)
"""


def child(folder: Path, fault: str | None = None) -> tuple[int, list[str]]:
    environment = dict(os.environ)
    if fault is not None:
        token = folder.parent / "token"
        token.touch()
        environment[faults.VARIABLE] = f"{fault}:{token}"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("fault", "told", "status", "said"),
    [
        ("inbound.before-commit", ["opened"], None, []),
        ("inbound.committed", ["opened"], "pending", []),
        ("outbound.before-commit", ["opened", "accepted True"], "pending", []),
        ("outbound.committed", ["opened", "accepted True"], "completed", ["o"]),
    ],
)
def test_a_process_that_is_killed_leaves_all_or_nothing_and_its_repeat_completes_it(
    tmp_path: Path, fault: str, told: list[str], status: str | None, said: list[str]
) -> None:
    folder = tmp_path / "mailbox"
    assert child(folder, fault) == (-signal.SIGKILL, told)
    with Mailbox.open(folder) as mailbox:
        assert [row.id for row in mailbox.pending(limit=9)] == (["m"] if status == "pending" else [])
        assert [row.id for row in mailbox.undelivered(9)] == said
        row = mailbox.inbound("m")
        assert (row and row.status) == status
    code, lines = child(folder)
    assert code == 0
    assert lines[1] == f"accepted {fault == 'inbound.before-commit'}"
    assert lines[2] == f"finished {0 if said else 1}"
    with Mailbox.open(folder) as mailbox:
        assert mailbox.pending(limit=9) == []
        assert [(row.id, row.seq) for row in mailbox.history(None, 9)] == [("o", 3), ("m", 2)]
        assert [row.id for row in mailbox.undelivered(9)] == ["o"]


def test_what_another_tool_reads_in_inbound_is_repeated_at_the_next_opening(tmp_path: Path) -> None:
    folder = tmp_path / "mailbox"
    child(folder, "outbound.committed")
    Mailbox.open(folder).close()
    incoming = sqlite3.connect(folder / "inbound.db")
    assert incoming.execute("SELECT status FROM messages_in").fetchall() == [("completed",)]
    incoming.close()


class Died(BaseException):
    """Stands for the end of the process at a fault point."""


KEYS = st.sampled_from([MessageId(f"m{number}") for number in range(8)])
OUTS = st.lists(st.sampled_from([MessageId(f"o{number}") for number in range(8)]), max_size=3, unique=True)
DEATHS = st.sampled_from([None, None, "before-commit", "committed"])


class MailboxLife(RuleBasedStateMachine):
    """Random lives of a mailbox against a model of what must hold."""

    point: ClassVar[Callable[[str], None]] = staticmethod(faults.point)

    def __init__(self) -> None:
        super().__init__()
        # In memory where that is possible: a life is many commits, and no power cut is played here.
        self.root = Path(
            tempfile.mkdtemp(prefix="crab-mailbox-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        )
        self.lives = 0
        self.left_open: list[Mailbox] = []
        self.mailbox = Mailbox.open(self.folder, process="life-0")
        self.accepted: list[MessageId] = []
        self.finished: dict[MessageId, str] = {}
        self.said: list[MessageId] = []
        self.sent: dict[MessageId, str] = {}
        self.claims: dict[MessageId, int] = {}
        self.tries: dict[MessageId, int] = {}
        self.generation = 1
        self.deadly: str | None = None

    @property
    def folder(self) -> Path:
        return self.root / str(self.lives)

    @initialize()
    def arm(self) -> None:
        def point(name: str) -> None:
            if name == self.deadly:
                raise Died

        faults.point = point

    def teardown(self) -> None:
        faults.point = MailboxLife.point  # type: ignore[assignment]
        for each in (*self.left_open, self.mailbox):
            each.close()
        shutil.rmtree(self.root)

    def do(self, road: str, death: str | None, action: Callable[[], object]) -> bool:
        """Whether the action was committed. After a death, what lies on the disk is opened by another process."""
        self.deadly = f"{road}.{death}" if death else None
        try:
            action()
        except Died:
            self.die()
            return death == "committed"
        finally:
            self.deadly = None
        return True

    def die(self) -> None:
        before, self.lives = self.folder, self.lives + 1
        self.folder.mkdir()
        for each in before.iterdir():
            if not each.name.endswith("-shm"):  # the log's index is memory, and is gone with the process
                shutil.copy(each, self.folder / each.name)
        # Closing would complete what the dead process did not.
        self.left_open.append(self.mailbox)
        self.mailbox = Mailbox.open(self.folder, process=f"life-{self.lives}")

    @rule(key=KEYS, death=DEATHS)
    def accept(self, key: MessageId, death: str | None) -> None:
        row = InboundRow(id=key, kind="chat", timestamp=TIME, content={"text": key}, address=CHAT)
        committed = self.do("inbound", death, lambda: self.mailbox.accept(row))
        if committed and key not in self.accepted:
            self.accepted.append(key)

    @rule(keys=st.lists(KEYS, max_size=3))
    def claim(self, keys: list[MessageId]) -> None:
        got = self.mailbox.claim("t", keys, Generation(self.generation))
        assert got == [key for key in dict.fromkeys(keys) if key in self.accepted and key not in self.finished]
        self.claims.update(dict.fromkeys(got, self.generation))

    @rule()
    def new_generation(self) -> None:
        self.generation += 1
        given_back = self.mailbox.release_claims(Generation(self.generation))
        assert sorted(given_back) == sorted(self.claims)
        for key in given_back:
            self.tries[key] = self.tries.get(key, 0) + 1
        self.claims.clear()

    @rule(keys=st.lists(KEYS, max_size=3), outs=OUTS, failed=st.sampled_from([None, "why"]), death=DEATHS)
    def finish(self, keys: list[MessageId], outs: list[MessageId], failed: str | None, death: str | None) -> None:
        rows = [OutboundRow(id=key, kind="chat", timestamp=TIME, content={"text": key}, address=CHAT) for key in outs]
        if not self.do("outbound", death, lambda: self.mailbox.finish("t", keys, rows, failed)):
            return
        for key in keys:
            if key in self.accepted:
                self.finished.setdefault(key, "failed" if failed else "completed")
                self.claims.pop(key, None)
        self.said += [key for key in outs if key not in self.said]

    @rule(delivered=st.booleans())
    def deliver(self, delivered: bool) -> None:
        for row in self.mailbox.interrupted():
            assert self.sent[row.id] == "sending"
            self.mailbox.delivery_unknown(row.id)
            self.sent[row.id] = "unknown-after-crash"
        due = [row.id for row in self.mailbox.undelivered(20)]
        assert due == [key for key in self.said if key not in self.sent]
        if due:
            self.mailbox.begin_delivery(due[0])
            self.sent[due[0]] = "sending"
            if delivered:
                self.mailbox.delivered(due[0], None)
                self.sent[due[0]] = "delivered"

    @rule()
    def crash(self) -> None:
        self.die()

    @rule()
    def restart(self) -> None:
        self.mailbox.close()
        self.mailbox = Mailbox.open(self.folder, process=f"life-{self.lives}")

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        waiting = self.mailbox.pending(limit=20)
        assert [row.id for row in waiting] == [key for key in self.accepted if key not in self.finished]
        assert {row.id: row.tries for row in waiting if row.tries} == {
            key: count for key, count in self.tries.items() if key not in self.finished
        }
        assert {key: row.status for key in self.finished if (row := self.mailbox.inbound(key))} == self.finished

    @invariant()
    def numbers_ascend_and_tell_who_spoke(self) -> None:
        rows = self.mailbox.history(None, 50)[::-1]
        numbers = [row.seq for row in rows]
        assert numbers == sorted(set(numbers))
        assert [row.id for row in rows if isinstance(row, InboundRow)] == self.accepted
        assert [row.id for row in rows if isinstance(row, OutboundRow)] == self.said
        assert all(row.seq % 2 == isinstance(row, OutboundRow) for row in rows)
        assert {
            row.id: row.delivery for row in rows if isinstance(row, OutboundRow) and row.id in self.sent
        } == self.sent


TestMailboxLife = MailboxLife.TestCase
TestMailboxLife.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
