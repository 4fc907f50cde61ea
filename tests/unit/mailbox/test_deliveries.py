"""The ledger: every attempt on record, order kept within a chat, crashes told apart from failures."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hermitcrab.errors import ConflictError, NotFoundError
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import MessageId
from hermitcrab.model.messages import Address, OutboundRow

Out = Callable[..., OutboundRow]

NOON = datetime(2126, 5, 5, 12, tzinfo=UTC)
O1, O2, O3 = MessageId("o1"), MessageId("o2"), MessageId("o3")


def due(mailbox: Mailbox, now: datetime = NOON) -> list[str]:
    return [row.id for row in mailbox.undelivered(10, now=now)]


def known(mailbox: Mailbox, key: str) -> tuple[str, int, str | None]:
    row = mailbox.outbound(key)
    assert row is not None
    return row.delivery, row.attempts, row.reason


def test_what_was_said_is_due_in_order_until_it_is_delivered(mailbox: Mailbox, outbound: Out) -> None:
    mailbox.append([outbound("o2"), outbound("o1")])
    mailbox.append([outbound("o3")])
    assert due(mailbox) == ["o2", "o1", "o3"]
    assert [row.id for row in mailbox.undelivered(2)] == ["o2", "o1"]
    mailbox.begin_delivery(O2)
    assert due(mailbox) == ["o1", "o3"]
    mailbox.delivered(O2, "p-1")
    assert known(mailbox, "o2") == ("delivered", 1, None)
    assert due(mailbox) == ["o1", "o3"]


def test_only_one_sends_a_row(mailbox: Mailbox, outbound: Out) -> None:
    mailbox.append([outbound("o1")])
    mailbox.begin_delivery(O1)
    with pytest.raises(ConflictError, match="is sending"):
        mailbox.begin_delivery(O1)
    mailbox.delivered(O1, None)
    with pytest.raises(ConflictError, match="is delivered"):
        mailbox.begin_delivery(O1)
    with pytest.raises(NotFoundError):
        mailbox.begin_delivery(MessageId("ghost"))


def test_a_postponed_row_comes_at_its_time_and_counts_its_attempts(mailbox: Mailbox, outbound: Out) -> None:
    mailbox.append([outbound("o1")])
    mailbox.begin_delivery(O1)
    mailbox.delivery_failed(O1, "rate-limited", NOON + timedelta(seconds=30))
    assert due(mailbox) == []
    assert mailbox.next_delivery_at() == "2126-05-05T12:00:30.000Z"
    assert due(mailbox, NOON + timedelta(seconds=30)) == ["o1"]
    assert known(mailbox, "o1") == ("queued", 1, "rate-limited")
    mailbox.delivery_failed(O1, "channel is not set up", NOON + timedelta(seconds=60))
    assert known(mailbox, "o1") == ("queued", 2, "channel is not set up")


def test_a_postponed_row_holds_back_what_was_said_after_it_to_the_same_address(mailbox: Mailbox, outbound: Out) -> None:
    elsewhere = Address(channel_type="test", platform_id="chat-2")
    thread = Address(channel_type="test", platform_id="chat-1", thread_id="t")
    mailbox.append([outbound("o1"), outbound("o2"), outbound("o3", address=elsewhere), outbound("o4", address=thread)])
    mailbox.delivery_failed(O1, "busy", NOON + timedelta(seconds=30))
    assert due(mailbox) == ["o3", "o4"]
    mailbox.deliver_now()
    assert due(mailbox) == ["o1", "o2", "o3", "o4"]


def test_a_clock_that_was_set_back_holds_no_message_up(tmp_path: Path, outbound: Out) -> None:
    with Mailbox.open(tmp_path) as mailbox:
        mailbox.append([outbound("o1"), outbound("o2")])
        mailbox.begin_delivery(O1)
        moment = datetime.now(UTC)
        mailbox.delivery_failed(O1, "busy", moment + timedelta(seconds=30))
        assert due(mailbox, moment + timedelta(seconds=1)) == []
        # What was postponed for half a minute does not wait for an hour and half a minute.
        an_hour_before = moment - timedelta(hours=1)
        assert due(mailbox, an_hour_before) == ["o1", "o2"]
        (head,), _ = mailbox.lanes(now=an_hour_before)
        assert head.due_at is None
        begun = mailbox.begin_in_lane(head.lane, now=an_hour_before)
        assert begun is not None
        assert begun.id == "o1"


def test_a_failure_without_another_attempt_is_the_end(mailbox: Mailbox, outbound: Out) -> None:
    mailbox.append([outbound("o1"), outbound("o2")])
    mailbox.begin_delivery(O1)
    mailbox.delivery_failed(O1, "chat does not exist", None)
    mailbox.refused(O2, "no such destination")
    assert known(mailbox, "o1") == ("failed", 1, "chat does not exist")
    assert known(mailbox, "o2") == ("refused", 0, "no such destination")
    assert due(mailbox) == []
    assert mailbox.counts().undelivered == 0
    with pytest.raises(ConflictError):
        mailbox.delivery_failed(O1, "again", NOON)
    with pytest.raises(ConflictError):
        mailbox.refused(O1, "again")


def test_an_end_that_is_told_twice_is_one_end(mailbox: Mailbox, outbound: Out) -> None:
    mailbox.append([outbound("o1")])
    mailbox.begin_delivery(O1)
    mailbox.delivered(O1, "p")
    mailbox.delivered(O1, "p")
    assert known(mailbox, "o1") == ("delivered", 1, None)


def test_a_row_may_be_refused_as_it_is_said(mailbox: Mailbox, outbound: Out) -> None:
    (row,) = mailbox.append([outbound("o1", delivery="refused", reason="not granted")])
    assert row.delivery == "refused"
    assert due(mailbox) == []
    assert known(mailbox, "o1") == ("refused", 0, "not granted")


def test_what_this_process_sends_is_not_interrupted(mailbox: Mailbox, outbound: Out) -> None:
    mailbox.append([outbound("o1")])
    mailbox.begin_delivery(O1)
    assert mailbox.interrupted() == []


def test_closing_and_opening_a_mailbox_interrupts_nothing(tmp_path: Path, outbound: Out) -> None:
    with Mailbox.open(tmp_path) as mailbox:
        mailbox.append([outbound("o1")])
        mailbox.begin_delivery(O1)
    with Mailbox.open(tmp_path) as mailbox:
        assert mailbox.interrupted() == []
        mailbox.delivered(O1, None)


def test_what_a_dead_process_was_sending_is_found_and_settled_by_rule(tmp_path: Path, outbound: Out) -> None:
    with Mailbox.open(tmp_path, process="dead") as mailbox:
        mailbox.append([outbound("o1"), outbound("o2"), outbound("o3")])
        for key in (O1, O2):
            mailbox.begin_delivery(key)
    with Mailbox.open(tmp_path) as mailbox:
        assert [(row.id, row.delivery, row.attempts) for row in mailbox.interrupted()] == [
            ("o1", "sending", 1),
            ("o2", "sending", 1),
        ]
        assert due(mailbox) == ["o3"]
        mailbox.delivery_failed(O1, "sent again under the same key", NOON)
        mailbox.delivery_unknown(O2)
        assert mailbox.interrupted() == []
        assert due(mailbox) == ["o1", "o3"]
        assert known(mailbox, "o2")[0] == "unknown-after-crash"
        mailbox.delivered(O2, "it was there after all")
        assert known(mailbox, "o2")[0] == "delivered"


def test_a_delivery_that_the_channel_had_confirmed_before_the_crash_is_delivered(tmp_path: Path, outbound: Out) -> None:
    with Mailbox.open(tmp_path, process="dead") as mailbox:
        mailbox.append([outbound("o1")])
        mailbox.begin_delivery(O1)
        mailbox._mark_delivered("o1", "delivered", "p-1")  # and here it died
    with Mailbox.open(tmp_path) as mailbox:
        assert mailbox.interrupted() == []
        assert known(mailbox, "o1") == ("delivered", 1, None)
