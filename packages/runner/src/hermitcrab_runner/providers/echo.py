"""The provider without a model: it says what it was told. For tests, demonstrations and benchmarks.

Some words make it do more: `/sleep N` answers after N seconds (and can be interrupted), `/exit N` ends the runner's
process with code N, and lines of the form `/tool NAME {JSON}` use those tools, one after another, and answer with what
they replied.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import deque

from hermitcrab_runner.providers.base import (
    Emit,
    Failed,
    Prompt,
    ProviderSettings,
    Result,
    ToolBegan,
    ToolCall,
    ToolEnded,
)
from hermitcrab_runner.tools.requests import ASK

_TRICK = re.compile(r"/(sleep|exit) ([0-9]{1,6}(?:\.[0-9]{1,3})?)\s*")
_TOOL = re.compile(r"^/tool (\w+) (\{.*\})\s*$", re.MULTILINE)


class EchoProvider:
    native_commands: frozenset[str] = frozenset()
    takes_follow_ups = True

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._lock = threading.Lock()
        self._queued: deque[Prompt] = deque()
        self._timer: threading.Timer | None = None
        self._uses: deque[tuple[str, str]] | None = None
        """Tools that the first of the queued prompts has still to use; None: it uses none."""
        self._replies: list[str] = []

    def configure(self, settings: ProviderSettings) -> None:
        """There is nothing to configure."""

    def ask(self, prompt: Prompt) -> None:
        with self._lock:
            self._queued.append(prompt)
            if self._timer is None and self._uses is None:
                self._work()

    def interrupt(self) -> None:
        with self._lock:
            if self._timer is None and self._uses is None:
                return
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._uses = None
            self._emit(Failed("it was interrupted", (self._queued.popleft().key,), cancelled=True))
            self._work()

    def forget(self) -> None:
        """It remembers nothing."""

    def close(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()

    def _work(self) -> None:
        """Answer what is queued, up to one that sleeps. Call with the lock held."""
        while self._queued:
            prompt = self._queued[0]
            trick = _TRICK.match(prompt.plain)
            if trick is not None and trick[1] == "exit":
                os._exit(int(float(trick[2])) & 0xFF)
            if trick is not None:
                self._timer = threading.Timer(float(trick[2]), self._awake)
                self._timer.daemon = True
                self._timer.start()
                return
            if uses := _TOOL.findall(prompt.plain):
                self._uses, self._replies = deque(uses), []
                self._use_next(self._uses)
                return
            self._answer()

    def _awake(self) -> None:
        with self._lock:
            if threading.current_thread() is not self._timer:
                return  # It was interrupted when it had already begun to wake up.
            self._timer = None
            self._answer()
            self._work()

    def _use_next(self, uses: deque[tuple[str, str]]) -> None:
        """Call with the lock held."""
        name, text = uses.popleft()
        key = f"{self._queued[0].key}-{len(self._replies)}"

        def replied(reply: str, _failed: bool) -> None:
            self._emit(ToolEnded(key))
            with self._lock:
                if self._uses is not uses:
                    return  # It was interrupted meanwhile.
                self._replies.append(reply)
                if uses:
                    self._use_next(uses)
                    return
                self._uses = None
                self._answer("\n".join(self._replies))
                self._work()

        try:
            arguments = json.loads(text)
        except (ValueError, RecursionError):
            arguments = {}
        self._emit(ToolBegan(key, name, is_agent=name == ASK))
        self._emit(ToolCall(name, arguments, replied))

    def _answer(self, text: str | None = None) -> None:
        prompt = self._queued.popleft()
        self._emit(Result(f"Echo: {prompt.plain if text is None else text}", (prompt.key,)))
