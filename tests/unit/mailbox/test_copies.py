"""A mailbox as lines and back."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermitcrab.errors import BadInputError
from hermitcrab.mailbox import copies
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import Generation, MessageId
from hermitcrab.model.messages import InboundRow, OutboundRow

In = Callable[..., InboundRow]
Out = Callable[..., OutboundRow]


def filled(folder: Path, inbound: In, outbound: Out) -> None:
    with Mailbox.open(folder) as mailbox:
        for key in ("m1", "m2", "m3"):
            mailbox.accept(
                inbound(
                    key,
                    content={
                        "text": "a line\nand another  \u2028 \ud83e\udd80".encode("utf-16", "surrogatepass").decode(
                            "utf-16"
                        )
                    },
                )
            )
        mailbox.claim("t1", [MessageId("m1")], Generation(1))
        mailbox.finish("t1", [MessageId("m1")], [outbound("o1"), outbound("o2")], None)
        mailbox.begin_delivery(MessageId("o1"))
        mailbox.delivered(MessageId("o1"), "platform-1")
        mailbox.set_state("key", "value")


def dump(folder: Path) -> dict[copies.Side, list[bytes]]:
    with Mailbox.open(folder) as mailbox:
        return {side: list(mailbox.copy(side)) for side in copies.SIDES}


def test_a_copy_of_a_copy_is_the_same(tmp_path: Path, inbound: In, outbound: Out) -> None:
    filled(tmp_path / "one", inbound, outbound)
    first = dump(tmp_path / "one")
    for side in copies.SIDES:
        assert copies.fill(tmp_path / "two", side, first[side]) == len(first[side])
    assert dump(tmp_path / "two") == first
    with Mailbox.open(tmp_path / "one") as one, Mailbox.open(tmp_path / "two") as two:
        assert two.history(None, 10) == one.history(None, 10)
        assert two.counts() == one.counts()
        assert two.state() == one.state()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no json\n",
        b"[]\n",
        b'{"table": "messages_in"}\n',
        b'{"table": "sqlite_schema", "row": {"sql": "x"}}\n',
        b'{"table": "schema_migrations", "row": {"version": 9}}\n',
        b'{"table": "messages_in; DROP TABLE delivered", "row": {"id": "x"}}\n',
        b'{"table": "messages_in", "row": {}}\n',
        b'{"table": "messages_in", "row": {"id) VALUES (1); --": "x"}}\n',
        b'{"table": "messages_in", "row": {"id": {"a": 1}}}\n',
        b'{"table": "messages_in", "row": {"id": true}}\n',
        b'{"table": "messages_in", "row": {"id": "x", "kind": null, "timestamp": "t", "content": "{}"}}\n',
        b'{"table": "messages_in", "row": {"id": "x", "seq": 99999999999999999999}}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_what_no_copy_holds_is_refused_and_nothing_of_it_is_kept(
    tmp_path: Path, inbound: In, outbound: Out, line: bytes
) -> None:
    filled(tmp_path / "one", inbound, outbound)
    good = dump(tmp_path / "one")["inbound"]
    with pytest.raises(BadInputError):
        copies.fill(tmp_path / "two", "inbound", [*good, line])
    assert dump(tmp_path / "two")["inbound"] == []


def test_a_mailbox_with_messages_is_not_filled(tmp_path: Path, inbound: In, outbound: Out) -> None:
    filled(tmp_path / "one", inbound, outbound)
    with pytest.raises(BadInputError, match="already"):
        copies.fill(tmp_path / "one", "inbound", [])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.binary(max_size=60).map(lambda data: data + b"\n")
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.dictionaries(
            st.sampled_from(["table", "row", "id", "messages_out"]), inner | st.just("messages_out"), max_size=3
        ),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode() + b"\n")
)
def test_no_line_does_anything_but_be_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, line: bytes) -> None:
    folder = tmp_path_factory.mktemp("mailbox")
    with contextlib.suppress(BadInputError):
        copies.fill(folder, "outbound", [line])
    connection = sqlite3.connect(folder / "outbound.db")
    kinds = {kind for (kind,) in connection.execute("SELECT DISTINCT type FROM sqlite_schema")}
    connection.close()
    assert kinds <= {"table", "index"}


def test_a_closed_mailbox_has_nothing_that_waits(tmp_path: Path, inbound: In, outbound: Out) -> None:
    filled(tmp_path / "one", inbound, outbound)
    with Mailbox.open(tmp_path / "one") as mailbox:
        assert mailbox.counts().pending == 2
        assert mailbox.counts().undelivered == 1
        mailbox.close_what_waits("it was imported as a copy")
        counts = mailbox.counts()
        assert (counts.pending, counts.undelivered) == (0, 0)
        row = mailbox.outbound("o2")
        assert row is not None
        assert (row.delivery, row.reason) == ("failed", "it was imported as a copy")
        assert mailbox.problems() == []
