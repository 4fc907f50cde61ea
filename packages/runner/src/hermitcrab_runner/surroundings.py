"""What the host told at hello, as the turn loop needs it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hermitcrab_runner import prompt
from hermitcrab_runner.prompt import Destination
from hermitcrab_runner.providers.base import ProviderSettings
from hermitcrab_runner.rows import Row, text_of
from hermitcrab_runner.turn_state import ToolLimits
from hermitcrab_wire import frames
from hermitcrab_wire.limits import MAX_IDS_IN_A_FRAME

_MOST_ROWS = 10
_SECONDS_AT_MOST = 10 * 86_400.0
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")
_ZONES = "/usr/share/zoneinfo"


class Surroundings:
    """Kept up to date by each welcome: the host may have restarted with another configuration."""

    def __init__(self, provider: str, settings: ProviderSettings, *, generation: int) -> None:
        """`settings` holds what the container's environment said."""
        self._state_key = f"continuation:{provider}"
        self._settings = settings
        self._continuation: str | None = None
        self._unique = f"{generation}-{os.urandom(4).hex()}"
        self._count = 0
        self.known = False
        self.destinations: tuple[Destination, ...] = ()
        self.names: frozenset[str] = frozenset()
        self.most_rows = _MOST_ROWS
        self.timezone = "UTC"
        self.tool_limits = ToolLimits()

    def update(self, welcome: frames.Welcome) -> ProviderSettings | None:
        """Take a welcome in. Returns the provider's settings when they are new."""
        config = welcome.config
        self.destinations = prompt.parse_destinations(welcome.destinations)
        self.names = frozenset(each.name for each in self.destinations)
        self.most_rows = _between(config.get("max_messages_per_prompt"), _MOST_ROWS, MAX_IDS_IN_A_FRAME)
        self.timezone = _use_zone(text_of(config.get("timezone")) or os.environ.get("TZ", ""))
        usual = ToolLimits()
        self.tool_limits = ToolLimits(
            _seconds(config.get("tool_timeout_s"), usual.timeout_s), _seconds(config.get("tool_grace_s"), usual.grace_s)
        )
        if not self.known:
            # Later this process knows better than the host, whose state may wait behind a frame of ours.
            self._continuation = text_of(welcome.state.get(self._state_key)) or None
        settings = self._settings._replace(
            instructions=prompt.instructions(text_of(config.get("assistant_name")), self.destinations),
            continuation=self._continuation,
            model=text_of(config.get("model")) or None,
            effort=text_of(config.get("effort")) or None,
            mcp_servers=servers if isinstance(servers := config.get("mcp_servers"), Mapping) else {},
            additional_directories=_texts(config.get("additional_directories")),
        )
        if self.known and settings == self._settings:
            return None
        self.known = True
        self._settings = settings
        return settings

    @property
    def workdir(self) -> str:
        """The agent's folder."""
        return self._settings.workdir

    def compose(self, rows: Sequence[Row]) -> str:
        return prompt.compose(rows, self.destinations, timezone=self.timezone)

    def correction(self, unknown: Sequence[str]) -> str:
        return prompt.correction(unknown, self.destinations)

    def remember(self, continuation: str | None) -> str | None:
        """The state's key to change, or None when the host knows this already."""
        if continuation == self._continuation:
            return None
        self._continuation = continuation
        # Not new settings: the provider itself said so.
        self._settings = self._settings._replace(continuation=continuation)
        return self._state_key

    def unique(self) -> str:
        """A word that no other runner and no other call gets."""
        self._count += 1
        return f"{self._unique}-{self._count}"


def _between(value: Any, default: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        return default
    return min(value, most)


def _seconds(value: object, usual: float) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < _SECONDS_AT_MOST else usual


def _texts(value: object) -> tuple[str, ...]:
    return tuple(filter(None, map(text_of, value))) if isinstance(value, (list, tuple)) else ()


def _use_zone(name: str) -> str:
    """Make a time zone this process's own, by the C library. What it does not know is UTC, and is called so."""
    if not _ZONE.fullmatch(name) or not os.path.isfile(f"{_ZONES}/{name}"):
        name = "UTC"
    if os.environ.get("TZ") != name:
        os.environ["TZ"] = name
    time.tzset()
    return name
