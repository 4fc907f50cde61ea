"""Groups, wirings, destinations and sessions as the database keeps them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermitcrab.errors import BadInputError, ClaimLostError, ConflictError, NotFoundError
from hermitcrab.model.groups import AgentGroup, Destination, MessagingGroup, Wiring
from hermitcrab.model.ids import AgentGroupId, Generation, MessagingGroupId, SessionId, WiringId
from hermitcrab.model.messages import Address
from hermitcrab.model.sessions import Session
from hermitcrab.store import agent_groups, destinations, messaging_groups, schema, sessions, wirings
from hermitcrab.store.database import migrations
from hermitcrab.store.sqlite import connect

ANN = AgentGroup(id=AgentGroupId("ag-ann"), name="Ann", folder="ann", created_at="2026-01-01T00:00:00.000Z")
BOB = AgentGroup(id=AgentGroupId("ag-bob"), name="Bob", folder="bob", created_at="2026-01-01T00:00:00.000Z")


def chat(name: str | None, number: int) -> MessagingGroup:
    return MessagingGroup(
        id=MessagingGroupId(f"mg-{number:05}-x"),
        channel_type="test",
        platform_id=f"p{number}",
        name=name,
        created_at="2026-01-01T00:00:00.000Z",
    )


def wiring(group: AgentGroup, to: MessagingGroup, priority: int = 0) -> Wiring:
    return Wiring(
        id=WiringId(f"w-{group.folder}-{to.id}"), messaging_group_id=to.id, agent_group_id=group.id, priority=priority
    )


def session(key: str, group: AgentGroup = ANN, to: MessagingGroup | None = None, thread: str | None = None) -> Session:
    return Session(
        id=SessionId(key),
        agent_group_id=group.id,
        messaging_group_id=to.id if to is not None else None,
        thread_id=thread,
        created_at="2026-01-01T00:00:00.000Z",
    )


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = connect(tmp_path / "x.db")
    schema.migrate(opened, tmp_path / "x.db", migrations())
    agent_groups.insert(opened, ANN)
    agent_groups.insert(opened, BOB)
    yield opened
    opened.close()


def test_agent_groups_are_found_by_id_and_folder(connection: sqlite3.Connection) -> None:
    assert agent_groups.by_id(connection, ANN.id) == ANN
    assert agent_groups.by_folder(connection, "bob") == BOB
    assert agent_groups.by_folder(connection, "eve") is None
    assert agent_groups.all_groups(connection) == [ANN, BOB]


def test_a_folder_belongs_to_one_agent_group(connection: sqlite3.Connection) -> None:
    with pytest.raises(ConflictError, match="'ann'"):
        agent_groups.insert(connection, AgentGroup(id=AgentGroupId("ag-2"), name="Ann 2", folder="ann"))


@pytest.mark.parametrize("folder", ["", "..", "../etc", "A", "a b", "global", "-x", "a" * 64, "é", "a\n"])
def test_what_is_no_name_of_a_folder_is_refused(connection: sqlite3.Connection, folder: str) -> None:
    with pytest.raises(BadInputError):
        agent_groups.insert(connection, AgentGroup(id=AgentGroupId("ag-3"), name="x", folder=folder))


def test_a_chat_is_found_by_its_address_whatever_the_thread(connection: sqlite3.Connection) -> None:
    messaging_groups.insert(connection, chat("general", 1))
    found = messaging_groups.by_address(connection, Address(channel_type="test", platform_id="p1", thread_id="t"))
    assert found == chat("general", 1) == messaging_groups.by_id(connection, chat("general", 1).id)
    assert messaging_groups.by_address(connection, Address(channel_type="other", platform_id="p1")) is None
    assert messaging_groups.all_groups(connection) == [found]
    with pytest.raises(ConflictError, match="test:p1"):
        messaging_groups.insert(connection, chat("again", 1))


def test_wirings_of_a_chat_come_by_priority(connection: sqlite3.Connection) -> None:
    general = chat("general", 1)
    messaging_groups.insert(connection, general)
    wirings.insert(connection, wiring(ANN, general, 1))
    wirings.insert(connection, wiring(BOB, general, 2))
    assert wirings.for_messaging_group(connection, general.id) == [wiring(BOB, general, 2), wiring(ANN, general, 1)]
    assert wirings.for_agent_group(connection, ANN.id) == [wiring(ANN, general, 1)]
    assert len(wirings.all_wirings(connection)) == 2


def test_a_wiring_gives_the_agent_a_destination_once_and_under_a_free_name(connection: sqlite3.Connection) -> None:
    chats = [chat("General Chat!", 1), chat("general-chat", 2), chat(None, 3), chat("日本", 4)]
    for each in chats:
        messaging_groups.insert(connection, each)
        wirings.insert(connection, wiring(ANN, each))
    found = destinations.for_agent_group(connection, ANN.id)
    assert [each.name for each in found] == ["general-chat", "general-chat-2", "test-mg-00003", "unnamed"]
    assert found[0] == Destination(
        name="general-chat", type="channel", display_name="General Chat!", channel_type="test", platform_id="p1"
    )
    assert found[2].display_name == "test-mg-00003"
    again = destinations.ensure(connection, ANN.id, "channel", chats[1].id, "another name")
    assert again == "general-chat-2"
    assert destinations.for_agent_group(connection, BOB.id) == []


def test_destinations_without_a_target_are_passed_over(connection: sqlite3.Connection) -> None:
    destinations.insert(connection, ANN.id, "bob", "agent", BOB.id)
    destinations.insert(connection, ANN.id, "ghost", "agent", "ag-ghost")
    destinations.insert(connection, ANN.id, "gone", "channel", "mg-gone")
    assert destinations.for_agent_group(connection, ANN.id) == [
        Destination(name="bob", type="agent", display_name="Bob", agent_group_id=BOB.id)
    ]
    with pytest.raises(ConflictError):
        destinations.insert(connection, ANN.id, "bob", "agent", ANN.id)


def test_wiring_twice_or_to_nothing_is_refused(connection: sqlite3.Connection) -> None:
    messaging_groups.insert(connection, chat("general", 1))
    wirings.insert(connection, wiring(ANN, chat("general", 1)))
    with pytest.raises(ConflictError, match="wired"):
        wirings.insert(connection, wiring(ANN, chat("general", 1)))
    with pytest.raises(NotFoundError):
        wirings.insert(connection, wiring(ANN, chat("nowhere", 9)))


def test_a_conversation_has_one_session(connection: sqlite3.Connection) -> None:
    general = chat("general", 1)
    messaging_groups.insert(connection, general)
    kinds = [
        session("s1"),
        session("s2", to=general),
        session("s3", to=general, thread="t"),
        session("s4", BOB, general),
    ]
    for each in kinds:
        assert sessions.find_or_insert(connection, each) == each
    for each in kinds:
        with pytest.raises(ConflictError):
            sessions.insert(
                connection,
                session(
                    "other",
                    BOB if each.agent_group_id == BOB.id else ANN,
                    general if each.messaging_group_id else None,
                    each.thread_id,
                ),
            )
        assert sessions.find(connection, each.agent_group_id, each.messaging_group_id, each.thread_id) == each
    assert sessions.find_or_insert(connection, session("other", to=general)).id == "s2"
    assert sessions.find(connection, ANN.id, general.id, "") == kinds[1]
    assert sessions.count(connection) == 4


def test_sessions_come_in_pages_newest_first(connection: sqlite3.Connection) -> None:
    for number in range(7):
        sessions.insert(connection, session(f"sess-{number}", thread=f"t{number}"))
    first = sessions.page(connection, limit=3)
    assert [each.id for each in first] == ["sess-6", "sess-5", "sess-4"]
    assert [each.id for each in sessions.page(connection, before=first[-1].id, limit=3)] == [
        "sess-3",
        "sess-2",
        "sess-1",
    ]
    assert sessions.page(connection, agent_group_id=BOB.id) == []


def test_only_one_of_two_claims_on_a_generation_is_granted(connection: sqlite3.Connection) -> None:
    sessions.insert(connection, session("s1"))
    assert sessions.claim(connection, SessionId("s1"), Generation(0)) == 1
    with pytest.raises(ClaimLostError, match="at generation 1, not at 0"):
        sessions.claim(connection, SessionId("s1"), Generation(0))
    assert sessions.claim(connection, SessionId("s1"), Generation(1)) == 2
    with pytest.raises(NotFoundError):
        sessions.claim(connection, SessionId("s9"), Generation(0))


def test_a_reason_to_look_that_came_after_the_look_stands(connection: sqlite3.Connection) -> None:
    sessions.insert(connection, session("s1"))
    assert sessions.unsettled(connection) == []
    sessions.unsettle(connection, SessionId("s1"))
    seen = sessions.reasons(connection, SessionId("s1"))
    sessions.unsettle(connection, SessionId("s1"))
    sessions.settle(connection, SessionId("s1"), seen)
    assert [each.id for each in sessions.unsettled(connection)] == ["s1"]
    sessions.settle(connection, SessionId("s1"), sessions.reasons(connection, SessionId("s1")))
    assert sessions.unsettled_count(connection) == 0


def test_a_claim_is_a_reason_to_look(connection: sqlite3.Connection) -> None:
    sessions.insert(connection, session("s1"))
    sessions.claim(connection, SessionId("s1"), Generation(0))
    assert [each.generation for each in sessions.unsettled(connection)] == [1]


def test_activity_is_noted(connection: sqlite3.Connection) -> None:
    sessions.insert(connection, session("s1"))
    sessions.touch(connection, SessionId("s1"), "2026-02-02T00:00:00.000Z")
    found = sessions.by_id(connection, SessionId("s1"))
    assert found is not None
    assert found.last_active_at == "2026-02-02T00:00:00.000Z"


def test_queries_on_a_message_s_road_scan_no_table(connection: sqlite3.Connection) -> None:
    run: list[str] = []
    connection.set_trace_callback(run.append)
    address = Address(channel_type="test", platform_id="p1")
    messaging_groups.by_address(connection, address)
    messaging_groups.by_id(connection, MessagingGroupId("mg"))
    wirings.for_messaging_group(connection, MessagingGroupId("mg"))
    destinations.for_agent_group(connection, ANN.id)
    sessions.find(connection, ANN.id, MessagingGroupId("mg"), None)
    sessions.by_id(connection, SessionId("s"))
    sessions.unsettle(connection, SessionId("s"))
    sessions.unsettled(connection)
    sessions.unsettled_count(connection)
    connection.set_trace_callback(None)
    assert len(run) == 9
    for query in run:
        for step in (row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")):
            assert not step.startswith("SCAN") or "sessions_unsettled" in step, f"{query}: {step}"
