"""That histories can fail: faults planted in the host, each of which some history must notice soon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from sqlite3 import Connection
from typing import Any
from unittest.mock import patch

import anyio
import pytest

from hermitcrab.containers import certificates
from hermitcrab.containers.lifecycle.admission import Admission
from hermitcrab.containers.lifecycle.adopting import Adopter
from hermitcrab.containers.lifecycle.slot import Slot
from hermitcrab.containers.lifecycle.watch import Watch
from hermitcrab.containers.link.exchange import Exchange
from hermitcrab.conversation import sending
from hermitcrab.conversation.failures import Failures
from hermitcrab.conversation.sending import Sender
from hermitcrab.mailbox import deliveries, outbound
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.container import ContainerView
from hermitcrab.model.messages import OutboundRow
from hermitcrab.store import sessions
from hermitcrab.testing.histories.history import live
from hermitcrab.testing.histories.homes import Template
from hermitcrab_wire import frames

HISTORIES_AT_MOST = 300

_adopt = Adopter._adopt
_complete, _greet, _enter, _key = Exchange._complete, Exchange.greet, deliveries.enter, sending.delivery_key


async def acknowledges_before_it_commits(self: Exchange, frame: frames.Complete, connection: Any) -> None:
    connection.send(frames.Completed(turn=frame.turn))
    await anyio.sleep(0.01)
    await _complete(self, frame, connection)


async def takes_what_was_under_way_for_received(self: Exchange, hello: frames.Hello, connection: Any) -> Any:
    if hello.resumes:
        fields = {name: getattr(hello, name) for name in hello.FIELDS}
        hello = frames.Hello(**{**fields, "holds": [*self._flow.outstanding]})
    return await _greet(self, hello, connection)


def sends_again_what_may_have_arrived(_self: Sender, _row: OutboundRow) -> bool:
    return True


def names_each_attempt_anew(session: Any, row: Any, attempts: list[None] = []) -> str:  # noqa: B006
    attempts.append(None)
    return f"{_key(session, row)}~{len(attempts)}"


def forgets_claims(_self: Mailbox, *_arguments: Any, **_more: Any) -> list[Any]:
    return []


def claims_no_generation_of_its_own(_connection: Connection, _session: Any, expected: Any) -> Any:
    return max(expected, 1)


async def certifies_nothing(*_arguments: Any) -> None:
    pass


async def takes_over_any_generation(self: Adopter, slot: Slot, view: ContainerView) -> bool:
    slot.session = replace(slot.session, generation=view.generation)
    return await _adopt(self, slot, view)


def sends_the_newest_first(connection: Connection, lane: str, _now: str) -> OutboundRow | None:
    query = "SELECT message_out_id FROM deliveries WHERE status = 'queued' AND lane = ? ORDER BY seq DESC LIMIT 1"
    row = connection.execute(query, (lane,)).fetchone()
    return None if row is None else outbound.by_id(connection, row[0])


def wakes_nobody_who_waits(_self: Admission) -> None:
    pass


async def ends_nobody_who_hangs(*_arguments: Any) -> bool:
    return False


def does_not_wait_for_the_time(connection: Connection, row: OutboundRow, seq: int) -> Any:
    return _enter(connection, replace(row, deliver_after=None), seq)


async def tells_nobody_of_failures(*_arguments: Any) -> bool:
    return False


MUTANTS: list[tuple[object, str, Callable[..., Any]]] = [
    (Exchange, "_complete", acknowledges_before_it_commits),
    (Exchange, "greet", takes_what_was_under_way_for_received),
    (Sender, "is_idempotent", sends_again_what_may_have_arrived),
    (sending, "delivery_key", names_each_attempt_anew),
    (Mailbox, "release_claims", forgets_claims),
    (sessions, "claim", claims_no_generation_of_its_own),
    (Adopter, "_adopt", takes_over_any_generation),
    (certificates, "keep", certifies_nothing),
    (deliveries, "head", sends_the_newest_first),
    (Admission, "changed", wakes_nobody_who_waits),
    (Watch, "_judge", ends_nobody_who_hangs),
    (deliveries, "enter", does_not_wait_for_the_time),
    (Failures, "tell", tells_nobody_of_failures),
]


@pytest.mark.parametrize(("owner", "name", "mutant"), MUTANTS, ids=[each.__name__ for *_, each in MUTANTS])
def test_some_history_notices_a_host_that(
    begun: Template, owner: object, name: str, mutant: Callable[..., Any]
) -> None:
    with patch.object(owner, name, mutant):
        assert any(live(seed, begun).wrong for seed in range(HISTORIES_AT_MOST))
