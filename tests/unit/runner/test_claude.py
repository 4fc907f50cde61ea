"""The Claude provider's decisions, with messages made like the SDK's. The real thing runs in tests/integration."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from hermitcrab_runner.providers import claude_options
from hermitcrab_runner.providers.base import (
    Event,
    Failed,
    GivenBack,
    Progress,
    ProviderSettings,
    Result,
    Started,
    ToolBegan,
    ToolEnded,
    Waiting,
    Working,
)
from hermitcrab_runner.providers.claude_events import STALE_SESSION, Translator


@dataclass
class TextBlock:
    text: str


@dataclass
class ToolUseBlock:
    id: str
    name: str
    input: dict[str, Any] = field(default_factory=dict)


@dataclass
class ToolResultBlock:
    tool_use_id: str


@dataclass
class AssistantMessage:
    content: list[Any]
    parent_tool_use_id: str | None = None
    error: str | None = None
    user_message_uuids: list[str] | None = None


@dataclass
class UserMessage:
    content: Any


@dataclass
class SystemMessage:
    subtype: str
    data: dict[str, Any]


@dataclass
class ResultMessage:
    result: str | None = None
    is_error: bool = False
    subtype: str = "success"
    terminal_reason: str | None = "completed"
    api_error_status: int | None = None
    errors: list[str] | None = None
    origin: dict[str, Any] | None = None
    user_message_uuid: str | None = None
    user_message_uuids: list[str] | None = None
    uuid: str | None = "result-uuid"


@dataclass
class RateLimitInfo:
    status: str
    resets_at: int | None = None
    rate_limit_type: str | None = None


@dataclass
class RateLimitEvent:
    rate_limit_info: RateLimitInfo


def events(translator: Translator, *messages: object) -> list[Event]:
    """What the messages amount to, signs of mere life left out."""
    found = [event for message in messages for event in translator.take(message)]
    return [event for event in found if not isinstance(event, Working)]


@pytest.fixture
def translator() -> Translator:
    translator = Translator(clock=lambda: 1000.0)
    for number in (1, 2, 3):
        translator.asked(f"u{number}", f"p{number}")
    return translator


def test_a_result_answers_exactly_the_prompts_that_it_names(translator: Translator) -> None:
    assert events(translator, ResultMessage("a", user_message_uuids=["u1", "u3"])) == [
        Result("a", ("p1", "p3"), "result-uuid")
    ]
    assert events(translator, ResultMessage("b", user_message_uuid="u2")) == [Result("b", ("p2",), "result-uuid")]
    assert not translator.outstanding


def test_a_result_that_names_nobody_is_for_the_oldest_only(translator: Translator) -> None:
    assert events(translator, ResultMessage("a")) == [Result("a", ("p1",), "result-uuid")]


def test_a_result_of_the_harness_own_accord_answers_nobody(translator: Translator) -> None:
    message = ResultMessage("the build is done", origin={"kind": "task-notification"})
    assert events(translator, message) == [Result("the build is done", (), "result-uuid")]
    assert len(translator.outstanding) == 3
    assert events(translator, ResultMessage("", origin={"kind": "task-notification"})) == []


def test_the_whole_last_answer_counts_and_not_only_its_last_block(translator: Translator) -> None:
    found = events(
        translator,
        AssistantMessage([TextBlock("first,")]),
        AssistantMessage([TextBlock("second.")]),
        ResultMessage("second.", user_message_uuids=["u1"]),
    )
    assert found == [Result("first,\n\nsecond.", ("p1",), "result-uuid")]


def test_words_before_a_tool_are_progress_and_not_part_of_the_answer(translator: Translator) -> None:
    found = events(
        translator,
        AssistantMessage([TextBlock("Let me see."), ToolUseBlock("t1", "Bash", {"timeout": 5000})]),
        AssistantMessage([ToolUseBlock("t2", "Bash"), ToolUseBlock("t3", "Read")]),
        UserMessage([ToolResultBlock("t1")]),
        AssistantMessage([TextBlock("Done.")]),
        ResultMessage("Done.", user_message_uuids=["u1"]),
    )
    assert found == [
        Progress("Let me see."),
        ToolBegan("t1", "Bash", 5.0),
        ToolBegan("t2", "Bash", 120.0),
        ToolBegan("t3", "Read"),
        ToolEnded("t1"),
        Result("Done.", ("p1",), "result-uuid"),
    ]


def test_a_helpers_words_are_not_the_agents(translator: Translator) -> None:
    found = events(
        translator,
        AssistantMessage([TextBlock("I am a helper")], parent_tool_use_id="t1"),
        ResultMessage("answer", user_message_uuids=["u1"]),
    )
    assert found == [Result("answer", ("p1",), "result-uuid")]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"api_error_status": 529}, "the model's service is overloaded (HTTP 529)"),
        ({"api_error_status": 502}, "the service of the model has a fault (HTTP 502)"),
        ({"api_error_status": 418}, "the service of the model refused the request (HTTP 418)"),
        ({"subtype": "error_max_turns"}, "it took more steps than are allowed"),
        ({"subtype": "error_during_execution"}, "the agent program met an error of its own"),
    ],
)
def test_errors_are_told_in_words_of_our_own(translator: Translator, fields: dict[str, Any], reason: str) -> None:
    message = ResultMessage("raw internals", is_error=True, user_message_uuids=["u1"], **fields)
    assert events(translator, message) == [Failed(reason, ("p1",))]


def test_an_interrupted_turn_is_cancelled_and_the_next_prompt_goes_on(translator: Translator) -> None:
    message = ResultMessage(is_error=True, terminal_reason="aborted_streaming", user_message_uuids=["u1"])
    (failed,) = events(translator, message)
    assert isinstance(failed, Failed)
    assert failed.cancelled
    assert list(translator.outstanding.values()) == ["p2", "p3"]


def test_refused_credentials_are_hopeless_after_the_second_attempt(translator: Translator) -> None:
    def retry(attempt: int) -> SystemMessage:
        return SystemMessage("api_retry", {"error_status": 401, "attempt": attempt, "retry_delay_ms": 500})

    assert events(translator, retry(1)) == [Waiting("HTTP 401", 0.5)]
    assert not translator.should_interrupt()
    events(translator, retry(2), retry(3))
    assert translator.should_interrupt()
    assert not translator.should_interrupt(), "once is enough; the next turn is not to be hit"
    aborted = ResultMessage(is_error=True, terminal_reason="aborted_tools", user_message_uuids=["u1"])
    assert events(translator, aborted) == [Failed("the model's service did not accept our credentials", ("p1",))]


def test_limits_are_waited_for(translator: Translator) -> None:
    assert events(translator, RateLimitEvent(RateLimitInfo("rejected", 1060, "five_hour"))) == [
        Waiting("limit five_hour", 60.0)
    ]
    assert events(translator, RateLimitEvent(RateLimitInfo("allowed_warning", 1060))) == []


def test_a_conversation_is_announced_once(translator: Translator) -> None:
    init = SystemMessage("init", {"session_id": "s1"})
    assert events(translator, init, init, SystemMessage("init", {"session_id": "s2"})) == [Started("s1"), Started("s2")]


def test_compacting_is_answered_with_words(translator: Translator) -> None:
    found = events(translator, SystemMessage("compact_boundary", {}), ResultMessage("", user_message_uuids=["u1"]))
    assert found == [Result("I have compacted our conversation.", ("p1",), "result-uuid")]


def test_the_state_of_the_harness_is_followed(translator: Translator) -> None:
    assert translator.idle
    events(translator, SystemMessage("session_state_changed", {"state": "running"}))
    assert not translator.idle
    events(translator, SystemMessage("session_state_changed", {"state": "idle"}))
    assert translator.idle


def test_a_death_fails_what_was_begun_and_gives_the_rest_back(translator: Translator) -> None:
    events(translator, AssistantMessage([TextBlock("hm")], user_message_uuids=["u1", "u2"]))
    assert list(translator.gone("it ended")) == [Failed("it ended", ("p1", "p2")), GivenBack(("p3",))]
    assert list(translator.gone("it ended")) == []


def test_a_death_before_anything_was_begun_still_fails_the_oldest_so_that_nothing_loops(translator: Translator) -> None:
    assert list(translator.gone("it ended")) == [Failed("it ended", ("p1",)), GivenBack(("p2", "p3"))]


@pytest.mark.parametrize(
    "words", ["No conversation found with session ID: x", "ENOENT: no such file, open 'a.jsonl'", "Session x not found"]
)
def test_a_stale_session_is_known_by_its_words(words: str) -> None:
    assert STALE_SESSION.search(words)
    assert not STALE_SESSION.search("Command failed with exit code 1")


def test_options_open_the_sandbox_to_the_agent_and_nothing_to_files_that_it_wrote() -> None:
    settings = ProviderSettings(
        instructions="be brief",
        continuation="s1",
        model="m",
        effort="low",
        mcp_servers={"git hub": {"command": "x", "instructions": "for CLAUDE.md"}, "broken": 5},
        additional_directories=("/workspace/extra/a",),
    )
    options = claude_options.options(settings, port=4711, root=False)
    assert options["permission_mode"] == "bypassPermissions"
    assert options["resume"] == "s1"
    assert options["system_prompt"] == {"type": "preset", "preset": "claude_code", "append": "be brief"}
    assert options["mcp_servers"] == {"git hub": {"command": "x"}}
    assert "mcp__git_hub__*" in options["allowed_tools"]
    assert not set(options["allowed_tools"]) & set(options["disallowed_tools"])
    assert options["strict_mcp_config"] is True
    assert json.loads(options["settings"])["disableAllHooks"] is True
    assert options["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:4711/anthropic"
    assert "IS_SANDBOX" not in options["env"]
    assert claude_options.options(settings, port=1, root=True)["env"]["IS_SANDBOX"] == "1"


def test_the_runners_own_variables_are_not_the_agents() -> None:
    variables = {
        "HERMITCRAB_LINK": "/run/hermitcrab/link.sock",
        "PYTHONPATH": "/app/src",
        "LD_LIBRARY_PATH": "/opt/hermitcrab/python/lib",
        "HOME": "/home/agent",
        "PATH": "/usr/bin",
    }
    assert claude_options.foreign_variables(variables) == ["HERMITCRAB_LINK", "PYTHONPATH", "LD_LIBRARY_PATH"]
