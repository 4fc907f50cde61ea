"""The Claude SDK's messages to the provider port's events. Decides; does no IO and imports no SDK.

Which prompts a result answers, the harness says itself: every prompt is sent with a uuid, and each result lists the
uuids of all prompts that it had taken in, also those that came in mid-turn. Nothing is guessed from the order.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hermitcrab_runner.logs import note
from hermitcrab_runner.providers.base import (
    Event,
    Failed,
    GivenBack,
    Progress,
    Result,
    Started,
    ToolBegan,
    ToolEnded,
    Waiting,
    Working,
)
from hermitcrab_runner.tools.catalogue import SERVER
from hermitcrab_runner.tools.requests import ASK

STALE_SESSION = re.compile(r"no conversation found|ENOENT.*\.jsonl|session.*not found", re.IGNORECASE)

INTERRUPTED = "it was interrupted"
_HOPELESS_STATUSES = {401: "the model's service did not accept our credentials", 403: "we may not use that model"}
_HOPELESS_AFTER = 2
"""Attempts after which a refusal is not retried any further, though the harness would go on for minutes."""

_BASH_DEFAULT_S = 120.0
_AGENTS = frozenset({"Task", "Agent", "TaskOutput", f"mcp__{SERVER}__{ASK}"})
"""Tools that wait for another agent, or for a person."""

_REASONS = {
    **_HOPELESS_STATUSES,
    400: "the model's service could not work with the request",
    404: "there is no such model",
    413: "the conversation has grown too large for the model",
    429: "the model's service allows us no more requests for now",
    529: "the model's service is overloaded",
}
_SUBTYPES = {
    "error_max_turns": "it took more steps than are allowed",
    "error_max_budget_usd": "it would have cost more than is allowed",
}


class Translator:
    """For one process of the harness."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.outstanding: dict[str, str] = {}
        """Keys of the prompts without a result, by the uuid that they were sent with, oldest first."""
        self.idle = True
        """The harness says that it owes no answer."""
        self._hopeless: str | None = None
        """Why the turn is to be given up: going on cannot help."""
        self._interrupt_due = False
        self._taken_in: set[str] = set()
        self._held: list[str] = []
        """Texts that are either the end of the turn or came before a tool; what follows tells which."""
        self._continuation: str | None = None
        self._compacted = False

    def asked(self, uuid: str, key: str) -> None:
        self.outstanding[uuid] = key

    def should_interrupt(self) -> bool:
        """Whether the turn is hopeless. Says so once for each."""
        due, self._interrupt_due = self._interrupt_due, False
        return due

    def take(self, message: object) -> Iterator[Event]:
        """The events that a message of the SDK amounts to."""
        fields: Any = message
        match type(message).__name__:
            case "ResultMessage":
                yield from self._result(fields)
            case "AssistantMessage":
                self._taken_in.update(fields.user_message_uuids or ())
                yield from self._assistant(fields)
            case "UserMessage":
                yield from self._tool_results(fields.content)
            case "RateLimitEvent":
                yield from self._rate_limit(fields.rate_limit_info)
            case _ if hasattr(message, "subtype") and hasattr(message, "data"):
                yield from self._system(fields.subtype, fields.data)
            case _:
                yield Working()

    def gone(self, reason: str) -> Iterator[Event]:
        """The process ended. What it had begun fails; what it had not may be asked of the next one."""
        begun = [uuid for uuid in self.outstanding if uuid in self._taken_in] or list(self.outstanding)[:1]
        failed = tuple(self.outstanding.pop(uuid) for uuid in begun)
        returned = tuple(self.outstanding.values())
        self.outstanding.clear()
        if failed:
            yield Failed(self._hopeless or reason, failed)
        if returned:
            yield GivenBack(returned)

    def _assistant(self, message: Any) -> Iterator[Event]:
        yield Working()
        of_a_helper = message.parent_tool_use_id is not None
        for block in message.content:
            match type(block).__name__:
                case "TextBlock" if not of_a_helper and message.error is None:
                    self._held.append(block.text)
                case "ToolUseBlock":
                    if self._held and not of_a_helper:
                        yield Progress("\n\n".join(self._held))
                        self._held.clear()
                    yield ToolBegan(
                        block.id, block.name, _timeout_s(block.name, block.input), is_agent=block.name in _AGENTS
                    )

    def _tool_results(self, content: Any) -> Iterator[Event]:
        yield Working()
        for block in content if isinstance(content, list) else ():
            if type(block).__name__ == "ToolResultBlock":
                yield ToolEnded(block.tool_use_id)

    def _system(self, subtype: str, data: dict[str, Any]) -> Iterator[Event]:
        match subtype:
            case "init":
                session = data.get("session_id")
                if isinstance(session, str) and session != self._continuation:
                    self._continuation = session
                    yield Started(session)
            case "session_state_changed":
                self.idle = data.get("state") == "idle"
            case "api_retry":
                yield from self._retry(data)
            case "compact_boundary":
                self._compacted = True
                yield Working()
            case _:
                yield Working()

    def _retry(self, data: dict[str, Any]) -> Iterator[Event]:
        status, attempt, delay_ms = data.get("error_status"), data.get("attempt"), data.get("retry_delay_ms")
        note("claude.retry", status=status, attempt=attempt, delay_ms=delay_ms)
        if status in _HOPELESS_STATUSES and isinstance(attempt, int) and attempt >= _HOPELESS_AFTER:
            self._interrupt_due = self._interrupt_due or self._hopeless is None
            self._hopeless = _HOPELESS_STATUSES[status]
        yield Waiting(f"HTTP {status}", delay_ms / 1000 if isinstance(delay_ms, (int, float)) else 0.0)

    def _rate_limit(self, info: Any) -> Iterator[Event]:
        if info.status == "rejected":
            left_s = max(0.0, info.resets_at - self._clock()) if info.resets_at else 0.0
            yield Waiting(f"limit {info.rate_limit_type or 'unknown'}", left_s)

    def _result(self, message: Any) -> Iterator[Event]:
        answered = self._answered(message)
        held, self._held = self._held, []
        compacted, self._compacted = self._compacted, False
        if not message.is_error:
            text = message.result or ""
            if text in held:
                # `result` is the last text only; what came just before it belongs to the answer, too.
                text = "\n\n".join(held)
            if not text and compacted:
                text = "I have compacted our conversation."
            if answered or text:
                yield Result(text, answered, key=message.uuid or "")
            return
        hopeless, self._hopeless = self._hopeless, None
        if (message.terminal_reason or "").startswith("aborted"):
            yield Failed(hopeless or INTERRUPTED, answered, cancelled=hopeless is None)
            return
        note("claude.error", subtype=message.subtype, status=message.api_error_status, errors=message.errors)
        yield Failed(hopeless or _reason(message.api_error_status, message.subtype), answered)

    def _answered(self, message: Any) -> tuple[str, ...]:
        """Keys of the prompts that a result is for."""
        named: Iterable[str] = message.user_message_uuids or filter(None, (message.user_message_uuid,))
        uuids = [uuid for uuid in named if uuid in self.outstanding]
        of_its_own = isinstance(message.origin, dict) and message.origin.get("kind") != "human"
        if not uuids and self.outstanding and not of_its_own:
            # Some results name none, for one of a turn that was interrupted early. It was the oldest's turn.
            uuids = [next(iter(self.outstanding))]
        self._taken_in.difference_update(uuids)
        return tuple(self.outstanding.pop(uuid) for uuid in uuids)


def _timeout_s(tool: str, arguments: dict[str, Any]) -> float | None:
    if tool != "Bash":
        return None
    timeout_ms = arguments.get("timeout")
    if isinstance(timeout_ms, (int, float)) and not isinstance(timeout_ms, bool) and timeout_ms > 0:
        return min(timeout_ms / 1000, 3600.0)
    return _BASH_DEFAULT_S


def _reason(status: int | None, subtype: str) -> str:
    if status is not None:
        fault = "has a fault" if status >= 500 else "refused the request"
        return f"{_REASONS.get(status, f'the service of the model {fault}')} (HTTP {status})"
    return _SUBTYPES.get(subtype, "the agent program met an error of its own")
