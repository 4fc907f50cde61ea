"""Messages that are set aside, and let out again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import Generation, MessageId
from hermitcrab.model.messages import InboundRow, OutboundRow

NOTICE = OutboundRow(id=MessageId("n"), kind="chat", timestamp="2026-01-01T00:00:00Z", content={"text": "Set aside."})
LONG = "poison " * 500


def hear(mailbox: Mailbox, key: str, text: str = "hello") -> None:
    timestamp = "2026-01-01T00:00:00Z"
    mailbox.accept(InboundRow(id=MessageId(key), kind="chat", timestamp=timestamp, content={"text": text}))


def end(mailbox: Mailbox, key: str, generation: int, cause: str, *, counts: bool = True) -> None:
    """A container of that generation took the message, and ended."""
    mailbox.claim(f"turn-{generation}", [MessageId(key)], Generation(generation))
    mailbox.release_claims(Generation(generation + 1), ended_by=cause, counts=counts)


def waiting(mailbox: Mailbox) -> list[tuple[str, int]]:
    return [(row.id, row.tries) for row in mailbox.pending(limit=10)]


def test_ends_are_counted_by_cause_and_only_those_that_nobody_wanted(tmp_path: Path) -> None:
    with Mailbox.open(tmp_path) as mailbox:
        hear(mailbox, "m")
        for generation, cause in enumerate(["exited", "hung", "exited"], start=1):
            end(mailbox, "m", generation, cause)
        end(mailbox, "m", 4, "evicted", counts=False)
        end(mailbox, "m", 5, "unknown")
        assert mailbox.ends("m") == {"exited": 2, "hung": 1, "unknown": 1}
        assert waiting(mailbox) == [("m", 4)]
        assert mailbox.ends("other") == {}


def test_one_that_is_set_aside_waits_for_nothing_and_is_shown_with_its_reason(tmp_path: Path) -> None:
    with Mailbox.open(tmp_path) as mailbox:
        hear(mailbox, "m")
        hear(mailbox, "next")
        assert [row.id for row in mailbox.quarantine(MessageId("m"), NOTICE, "it was poison")] == ["n"]
        assert mailbox.quarantine(MessageId("m"), NOTICE, "it was poison") == []
        assert waiting(mailbox) == [("next", 0)]
        row = mailbox.inbound("m")
        assert row is not None
        assert row.status == "quarantined"
        assert (mailbox.counts().quarantined, mailbox.counts().pending) == (1, 1)
        (entry,) = mailbox.entries("quarantined", 10)
        assert (entry.id, entry.reason) == ("m", "it was poison")


def test_a_released_one_is_answered_as_if_it_had_just_come(tmp_path: Path) -> None:
    with Mailbox.open(tmp_path) as mailbox:
        hear(mailbox, "m")
        end(mailbox, "m", 1, "exited")
        mailbox.quarantine(MessageId("m"), NOTICE, "it was poison")
        assert mailbox.release(MessageId("m"))
        assert waiting(mailbox) == [("m", 0)]
        assert mailbox.ends("m") == {}
        assert not mailbox.release(MessageId("m"))
        mailbox.finish("t", [MessageId("m")], [], None)
        assert not mailbox.release(MessageId("m"))
        assert not mailbox.release(MessageId("nobody"))
        life = mailbox.life("m")
        assert life is not None
        assert [each.what for each in life.events] == ["received", "claimed", "given back", "completed"]


def test_a_release_that_a_crash_cut_short_leaves_it_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Mailbox.open(tmp_path) as mailbox:
        hear(mailbox, "m")
        mailbox.quarantine(MessageId("m"), NOTICE, "it was poison")

        def crash(*_: object) -> bool:
            raise KeyboardInterrupt

        monkeypatch.setattr("hermitcrab.mailbox.outbound.leave_quarantine", crash)
        with pytest.raises(KeyboardInterrupt):
            mailbox.release(MessageId("m"))
        assert waiting(mailbox) == []
        monkeypatch.undo()
    with Mailbox.open(tmp_path) as mailbox:
        assert waiting(mailbox) == []
        assert mailbox.counts().quarantined == 1
        assert mailbox.release(MessageId("m"))
        assert waiting(mailbox) == [("m", 0)]


def test_it_stays_whole_while_older_and_newer_ones_shrink(tmp_path: Path) -> None:
    with Mailbox.open(tmp_path) as mailbox:
        for number in range(300):
            hear(mailbox, f"m{number}", LONG)
        mailbox.quarantine(MessageId("m1"), NOTICE, "it was poison")
        ended = [MessageId(f"m{number}") for number in range(300) if number != 1]
        mailbox.finish("t", ended, [], None)
        while mailbox.compact(datetime.now(UTC) + timedelta(days=1)):
            pass
        lengths = [len(str(row.content["text"])) for number in range(3) if (row := mailbox.inbound(f"m{number}"))]
        assert lengths[1] == len(LONG)
        assert max(lengths[0], lengths[2]) < 200
