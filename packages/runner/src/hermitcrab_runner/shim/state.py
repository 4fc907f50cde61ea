"""session_state, kept by the host too: a foreign runner finds its conversation again even where its file is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from hermitcrab_wire import frames

TRANSIENT = frozenset({"current_in_reply_to"})
"""What a v2 runner tells its own tools through its file, anew in each turn: of no use to another container."""


class StateMirror:
    def __init__(self, send: Callable[[frames.Frame], None]) -> None:
        self._send = send
        self._unique = os.urandom(6).hex()
        self._count = 0
        self.known: dict[str, str] = {}
        """What the host has."""

    def look(self, state: Mapping[str, str]) -> None:
        """Tell the host what has changed since it was last told."""
        state = {key: value for key, value in state.items() if key not in TRANSIENT}
        for key in [*state, *(each for each in self.known if each not in state)]:
            value = state.get(key)
            if value != self.known.get(key):
                self._count += 1
                self._send(frames.SetState(id=f"state-{self._unique}-{self._count}", key=key, value=value))
        self.known = dict(state)
