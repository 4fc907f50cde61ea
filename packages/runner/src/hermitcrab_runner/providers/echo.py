"""The provider without a model: it says what it was told. For tests, demonstrations and benchmarks.

Two words make it behave badly on purpose: `/sleep N` answers after N seconds (and can be interrupted), `/exit N` ends
the runner's process with code N.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque

from hermitcrab_runner.providers.base import Emit, Failed, Prompt, ProviderSettings, Result

_TRICK = re.compile(r"/(sleep|exit) ([0-9]{1,6}(?:\.[0-9]{1,3})?)\s*")


class EchoProvider:
    native_commands: frozenset[str] = frozenset()
    takes_follow_ups = True

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._lock = threading.Lock()
        self._queued: deque[Prompt] = deque()
        self._timer: threading.Timer | None = None

    def configure(self, settings: ProviderSettings) -> None:
        """There is nothing to configure."""

    def ask(self, prompt: Prompt) -> None:
        with self._lock:
            self._queued.append(prompt)
            if self._timer is None:
                self._work()

    def interrupt(self) -> None:
        with self._lock:
            if self._timer is None:
                return
            self._timer.cancel()
            self._timer = None
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
            self._answer()

    def _awake(self) -> None:
        with self._lock:
            if threading.current_thread() is not self._timer:
                return  # It was interrupted when it had already begun to wake up.
            self._timer = None
            self._answer()
            self._work()

    def _answer(self) -> None:
        prompt = self._queued.popleft()
        self._emit(Result(f"Echo: {prompt.plain}", (prompt.key,)))
