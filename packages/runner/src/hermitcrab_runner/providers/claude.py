"""Claude Code as the agent harness, through its SDK, in a thread with an event loop of its own.

One process of the harness serves turn after turn, as starting it takes a second. It is replaced when the settings have
changed, when the conversation is to be forgotten, and when it has died. The SDK is imported in that thread, and only
once a session with this provider is up.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from dataclasses import dataclass

from hermitcrab_runner.logs import note, print_exception
from hermitcrab_runner.providers import claude_options
from hermitcrab_runner.providers.base import Emit, Failed, Prompt, ProviderSettings
from hermitcrab_runner.providers.claude_harness import Ask, Command, Configure, Forget, Harness, Interrupt, Stop

_CLOSE_WITHIN_S = 4.0


@dataclass(slots=True)
class _Shared:
    """What the turn loop's thread and the harness's thread both touch, under the lock."""

    settings: ProviderSettings | None = None
    harness: Harness | None = None
    thread: threading.Thread | None = None
    refusal: str | None = None
    """Why it cannot be had, whatever is tried."""


class ClaudeProvider:
    native_commands = claude_options.NATIVE_COMMANDS
    takes_follow_ups = True

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._lock = threading.Lock()
        self._shared = _Shared()
        self._early: deque[Command] = deque()
        """Commands from before the harness could take them."""

    def configure(self, settings: ProviderSettings) -> None:
        self._shared.settings = settings
        self._post(Configure(settings))

    def ask(self, prompt: Prompt) -> None:
        self._post(Ask(prompt))

    def interrupt(self) -> None:
        self._post(Interrupt())

    def forget(self) -> None:
        if self._shared.settings is not None:
            self._shared.settings = self._shared.settings._replace(continuation=None)
        self._post(Forget())

    def close(self) -> None:
        thread = self._shared.thread
        if thread is not None:
            self._post(Stop())
            thread.join(timeout=_CLOSE_WITHIN_S)

    def _post(self, command: Command) -> None:
        with self._lock:
            shared = self._shared
            if shared.refusal is not None:
                self._fail([command], shared.refusal)
            elif shared.harness is not None:
                shared.harness.post(command)
            else:
                self._early.append(command)
                if shared.thread is None:
                    shared.thread = threading.Thread(target=self._run, name="claude", daemon=True)
                    shared.thread.start()

    def _run(self) -> None:
        reason = "the agent program failed"
        try:
            self._serve()
        except ImportError as error:
            note("claude.packages-missing", error=error)
            reason = "the agent program is not installed in this container"
            self._shared.refusal = reason
        except Exception:  # noqa: BLE001  # the thread's boundary: people hear that it failed, the log hears how
            print_exception()
        with self._lock:
            shared = self._shared
            left = list(self._early)
            self._early.clear()
            if shared.harness is not None:
                left = [*shared.harness.left_over(), *left]
                shared.settings = shared.harness.settings  # It knows the conversation's latest token.
            # The next prompt starts another thread, unless there is no hope.
            shared.harness = shared.thread = None
            self._fail(left, reason)

    def _serve(self) -> None:
        settings = self._shared.settings or ProviderSettings()
        for name in claude_options.foreign_variables(os.environ):
            del os.environ[name]
        if settings.packages and settings.packages not in sys.path:
            sys.path.append(settings.packages)
        import anyio  # noqa: PLC0415  # these take 0.7 s and 40 MB, and are not in every container
        import claude_agent_sdk  # noqa: PLC0415

        from hermitcrab_runner.forwarder import Forwarder  # noqa: PLC0415

        async def serve() -> None:
            harness = Harness(claude_agent_sdk, forwarder.port, settings, self._emit)
            with self._lock:
                self._shared.harness = harness
                while self._early:
                    harness.post(self._early.popleft())
            await harness.serve()

        forwarder = Forwarder(settings.gateway)
        try:
            anyio.run(serve)
        finally:
            forwarder.close()

    def _fail(self, commands: list[Command], reason: str) -> None:
        for each in commands:
            if isinstance(each, Ask):
                self._emit(Failed(reason, (each.prompt.key,)))
