"""What agents may ask of the host: only to look, and only as far as their config says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.agent_requests import COMMANDS, NOT_CARRIED_OUT, Command, Problem, command_of, why_not
from hermitcrab.model.container_config import CliScope
from hermitcrab.model.ids import AgentGroupId

OWN = AgentGroupId("ag-own")


def asked(command: str, **arguments: Any) -> dict[str, Any]:
    return {"action": "cli_request", "requestId": "cli-1", "command": command, "args": arguments}


@pytest.mark.parametrize("action", [*NOT_CARRIED_OUT, "something else", None, 7, ["cli_request"]])
def test_every_other_action_is_refused_with_a_reason(action: Any) -> None:
    assert why_not({"action": action})


@pytest.mark.parametrize("wrong", [{"requestId": 7}, {"requestId": ""}, {"requestId": "x" * 200}, {"command": None}])
def test_a_request_that_cannot_be_answered_is_refused(wrong: dict[str, Any]) -> None:
    assert why_not({**asked("help"), **wrong})
    assert why_not(asked("help")) is None


def test_an_agent_sees_its_own_group_and_no_other() -> None:
    assert command_of(asked("groups-list"), "group", OWN) == Command("groups-list", OWN)
    assert command_of(asked("groups-get", id="ag-own"), "group", OWN) == Command("groups-get", OWN, "ag-own")
    for foreign in (
        asked("groups-get", id="ag-other"),
        asked("sessions-list", agent_group_id="ag-other"),
        asked("sessions-list", **{"agent_group_id": "ag-own", "agent-group-id": "ag-other"}),
        asked("destinations-list", group=["ag-own"]),
        asked("wirings-list"),
    ):
        found = command_of(foreign, "group", OWN)
        assert isinstance(found, Problem)
        assert found.code == "forbidden"


def test_the_config_widens_and_narrows_that() -> None:
    assert command_of(asked("wirings-list"), "global", OWN) == Command("wirings-list", None)
    assert command_of(asked("sessions-list", group="ag-2"), "global", OWN) == Command(
        "sessions-list", AgentGroupId("ag-2")
    )
    for name in COMMANDS:
        assert command_of(asked(name), "disabled", OWN) == Problem(
            "forbidden", "this agent may not use the host's commands"
        )


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("groups-delete", "forbidden"),
        ("groups-config-add-package", "forbidden"),
        ("tasks-list", "not-available"),
        ("tasks-create", "not-available"),
        ("x-y", "unknown-command"),
    ],
)
def test_what_changes_something_or_does_not_exist_is_said_so(command: str, code: str) -> None:
    found = command_of(asked(command), "global", OWN)
    assert isinstance(found, Problem)
    assert found.code == code


arguments = st.dictionaries(
    st.sampled_from(["id", "group", "agent_group_id", "agent-group-id", "x"]),
    st.none() | st.just("ag-own") | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=1),
)


@given(st.sampled_from([*COMMANDS, "groups-create", ""]), arguments)
def test_whatever_is_asked_in_its_own_groups_scope_no_other_group_is_named(name: str, given_: dict[str, Any]) -> None:
    found = command_of(asked(name, **given_), "group", OWN)
    if isinstance(found, Command):
        assert found.group == OWN
        assert found.name.startswith("sessions") or (found.id or OWN) == OWN or found.name == "help"


@given(st.from_type(CliScope), st.none() | st.integers() | st.text(max_size=5) | arguments, st.text(max_size=20))  # type: ignore[arg-type]
def test_nothing_that_is_asked_breaks_it(scope: CliScope, given_: Any, name: str) -> None:
    content = {"action": "cli_request", "requestId": "r", "command": name, "args": given_}
    assert isinstance(command_of(content, scope, OWN), (Command, Problem))
    why_not(content)
