"""Rows to put into mailboxes, and a mailbox to put them into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import MessageId
from hermitcrab.model.messages import Address, InboundRow, OutboundRow

CHAT = Address(channel_type="test", platform_id="chat-1", thread_id=None)
TIME = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def mailbox(tmp_path: Path) -> Iterator[Mailbox]:
    with Mailbox.open(tmp_path / "mailbox") as opened:
        yield opened


@pytest.fixture
def inbound() -> Callable[..., InboundRow]:
    def make(key: str, **changes: Any) -> InboundRow:
        values: dict[str, Any] = {
            "kind": "chat",
            "timestamp": TIME,
            "content": {"text": f"hello {key}"},
            "address": CHAT,
        }
        return InboundRow(id=MessageId(key), **(values | changes))

    return make


@pytest.fixture
def outbound() -> Callable[..., OutboundRow]:
    def make(key: str, **changes: Any) -> OutboundRow:
        values: dict[str, Any] = {
            "kind": "chat",
            "timestamp": TIME,
            "content": {"text": f"answer {key}"},
            "address": CHAT,
        }
        return OutboundRow(id=MessageId(key), **(values | changes))

    return make
