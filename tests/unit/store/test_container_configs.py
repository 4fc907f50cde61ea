"""The container configs of agent groups as the database keeps them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermitcrab.errors import ConfigError
from hermitcrab.logic.container_config import parse
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import AgentGroupId
from hermitcrab.store import agent_groups, container_configs, schema
from hermitcrab.store.database import migrations
from hermitcrab.store.sqlite import connect

ANN = AgentGroupId("ag-ann")


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = connect(tmp_path / "x.db")
    schema.migrate(opened, tmp_path / "x.db", migrations())
    agent_groups.insert(opened, AgentGroup(id=ANN, name="Ann", folder="ann"))
    yield opened
    opened.close()


def test_a_group_without_a_row_has_the_defaults(connection: sqlite3.Connection) -> None:
    assert container_configs.of(connection, ANN) == ContainerConfig()
    assert container_configs.of(connection, AgentGroupId("nobody")) == ContainerConfig()


def test_what_was_put_is_there_and_the_next_one_takes_its_place(connection: sqlite3.Connection) -> None:
    first = parse({"provider": "echo", "skills": ["notes"], "mcp_servers": {"a": {"command": "x"}}})
    container_configs.put(connection, ANN, first)
    assert container_configs.of(connection, ANN) == first
    assert container_configs.provider_of(connection, ANN) == "echo"
    container_configs.put(connection, ANN, ContainerConfig())
    assert container_configs.document(connection, ANN) == {}


@pytest.mark.parametrize(
    "damage", ['{"from-a-newer-one": 1}', '{"limits": {"pids": -1}}', '{"provider": 5}', "{damaged}"]
)
def test_a_stored_config_that_cannot_be_used_is_an_error_with_a_way_out(
    connection: sqlite3.Connection, damage: str
) -> None:
    connection.execute("INSERT INTO container_configs VALUES (?, ?, '')", (ANN, damage))
    with pytest.raises(ConfigError, match="ag-ann") as caught:
        container_configs.of(connection, ANN)
    assert "import" in caught.value.hint
    assert container_configs.provider_of(connection, ANN) is None, "a listing still shows the group"


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "5"])
def test_the_database_itself_takes_nothing_but_an_object(connection: sqlite3.Connection, damage: str) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("INSERT INTO container_configs VALUES (?, ?, '')", (ANN, damage))


def test_the_provider_of_a_group_from_before_moves_into_its_config(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    opened = connect(path)
    number = next(each.version for each in migrations() if each.name == "container_configs")
    schema.migrate(opened, path, migrations()[: number - 1])
    opened.execute("INSERT INTO agent_groups VALUES ('a', 'A', 'a', 'Echo', '2026'), ('b', 'B', 'b', NULL, '2026')")
    schema.migrate(opened, path, migrations())
    assert container_configs.of(opened, AgentGroupId("a")) == ContainerConfig(provider="echo")
    assert container_configs.of(opened, AgentGroupId("b")) == ContainerConfig()
    assert [group.folder for group in agent_groups.all_groups(opened)] == ["a", "b"]
    opened.close()
