"""What one runner last said of itself, and when, on the host's clock. `logic/liveness.py` judges by it."""

from __future__ import annotations

import time
from collections.abc import Callable

from hermitcrab.logic.liveness import Signs
from hermitcrab_wire import frames

_ACTIVITY_CHARACTERS_AT_MOST = 40
_DETAIL_CHARACTERS_AT_MOST = 200
_TOOL_CHARACTERS_AT_MOST = 100


class Pulse:
    """Of one generation. A frame's words are an agent's: they are cut, and no time in them is believed unchecked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._born_at = self._at = self._since = clock()
        self._until: float | None = None
        self.activity = "starting"
        self.detail: str | None = None
        self.rss_kb: int | None = None
        self.note = ""
        """What people should know of this runner."""
        self.reminded = False
        """It was told to stop the tool that it speaks of."""

    @property
    def signs(self) -> Signs:
        return Signs(
            beat_at=self._at,
            since=self._since,
            activity=self.activity,
            detail=self.detail,
            until=self._until,
            born_at=self._born_at,
        )

    def beat(self, beat: frames.Beat) -> None:
        self.show(beat.activity, beat.detail, beat.until_ms)
        if beat.rss_kb is not None:
            self.rss_kb = beat.rss_kb

    def show(self, activity: str, detail: str | None = None, until_ms: int | None = None) -> None:
        """It lives, and does this now. Any frame that tells so counts as a beat."""
        activity = activity[:_ACTIVITY_CHARACTERS_AT_MOST]
        detail = detail[:_DETAIL_CHARACTERS_AT_MOST] if detail else None
        self._at = self._clock()
        if (activity, detail) != (self.activity, self.detail):
            self.activity, self.detail, self._since, self.reminded = activity, detail, self._at, False
        self._until = self._at + until_ms / 1000 if until_ms is not None else None

    def thawed(self) -> None:
        """It could not beat while it was frozen."""
        self._at = self._since = self._clock()

    def tool_stopped(self, stopped: frames.ToolStopped) -> str:
        """A tool of its that hung. Returns the tool's name as it may be shown."""
        tool = stopped.tool[:_TOOL_CHARACTERS_AT_MOST]
        self.note = f"the tool {tool} was stopped after {stopped.after_ms / 1000:.0f} s"
        return tool
