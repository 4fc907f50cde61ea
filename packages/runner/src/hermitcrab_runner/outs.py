"""What one turn says, on its way out: ids that a second attempt finds again, addresses, and frames that fit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hermitcrab_runner.digest import out_id
from hermitcrab_runner.prompt import Destination
from hermitcrab_runner.reply import clean, cut_files
from hermitcrab_runner.rows import Row
from hermitcrab_wire import frames
from hermitcrab_wire.limits import (
    MAX_CONTENT_BYTES,
    MAX_FILES_IN_A_MESSAGE,
    MAX_FRAME_BYTES,
    MAX_OUTS_IN_A_COMPLETION,
)

_COMPLETION_BYTES = MAX_FRAME_BYTES - 256 * 1024
"""For the outs in a completion; the rest is for up to 256 ids and for the frame itself."""


class Outbox:
    def __init__(self, rows: Sequence[Row], destinations: Sequence[Destination], *, seed: str = "") -> None:
        """`rows` are answered. Without any, `seed` stands for the first one's id."""
        self._seed = rows[0].id if rows else seed
        self._rows = rows
        self._destinations = destinations
        self._occurrences: Counter[tuple[str | None, str]] = Counter()
        self._outs: list[frames.Out] = []
        self._sent: set[str] = set()
        self._notices = 0

    def answers(self, rows: Sequence[Row]) -> None:
        """More rows are answered than were known at first."""
        self._rows = rows

    def say(self, to: str | None, text: str) -> None:
        to, answered = self._address(to)
        words, paths = cut_files(clean(text), MAX_FILES_IN_A_MESSAGE)
        for number, piece in enumerate(_pieces(words)):
            content: dict[str, Any] = {"text": piece}
            files = paths if number == 0 and paths else None
            if files:
                content["files"] = [path.rstrip("/").rpartition("/")[2] or "file" for path in files]
            key = self._id(to, content)
            # The courier sends the files first, and puts their ids in the place of the paths.
            out = frames.Out(id=key, kind="chat", content=content, to=to, in_reply_to=answered, files=files)
            self._outs.append(out)

    def put(
        self,
        content: dict[str, Any],
        *,
        kind: str = "chat",
        to: str | None = None,
        files: Sequence[str] = (),
        deliver_after: str | None = None,
    ) -> frames.Out:
        """Something that is not only words. `files` are paths, one for each name in `content`."""
        to, answered = self._address(to)
        made: dict[str, Any] = json.loads(clean(json.dumps(content, ensure_ascii=False)))
        out = frames.Out(
            id=self._id(to, made),
            kind=kind,
            content=made,
            to=to,
            in_reply_to=answered,
            files=list(files) or None,
            deliver_after=deliver_after,
        )
        self._outs.append(out)
        return out

    def flush(self, keep: int = MAX_OUTS_IN_A_COMPLETION) -> list[frames.Out]:
        """What must go in frames of its own so that at most `keep` outs, and few enough bytes, are left."""
        sizes = [_size(out.to_json()) for out in self._outs]
        left = len(self._outs)
        room = _COMPLETION_BYTES
        while left and len(self._outs) - left < keep and (room := room - sizes[left - 1]) >= 0:
            left -= 1
        now, self._outs = self._outs[:left], self._outs[left:]
        self._sent.update(out.id for out in now)
        return now

    def rest(self) -> list[dict[str, Any]]:
        """What is left, as a completion takes it."""
        return [{key: value for key, value in out.to_json().items() if key != "type"} for out in self._outs]

    def lost(self, key: str) -> list[frames.Out]:
        """The host refused something that was flushed: its chat hears that a part is missing, once."""
        if key not in self._sent or self._notices:
            return []
        self._notices = 1
        self.say(None, "Part of my answer could not be passed on.")
        return [self._outs.pop()]

    def instead(self, code: str) -> dict[str, Any] | None:
        """The host refused a completion: one sentence in place of its outs. None when that was tried already."""
        if self._notices > 1 or not self._outs:
            return None
        self._notices = 2
        self._outs = []
        self.say(None, f"I had an answer, but it could not be passed on ({code}).")
        return self.rest()[0]

    def silenced(self) -> bool:
        """Whether there was still something to give up; now there is nothing."""
        had, self._outs = bool(self._outs), []
        return had

    def _id(self, to: str | None, content: dict[str, Any]) -> str:
        self._occurrences[to, (canonical := json.dumps(content, ensure_ascii=False, sort_keys=True))] += 1
        return out_id(self._seed, to, content, self._occurrences[to, canonical])

    def _address(self, to: str | None) -> tuple[str | None, str | None]:
        """The destination to name, and the row that this answers.

        A chat that a row came from is addressed through that row: the host then finds the thread, too.
        """
        triggers = [row for row in self._rows if row.trigger] or list(self._rows)
        if to is None:
            return None, triggers[-1].id if triggers else None
        destination = next((each for each in self._destinations if each.name == to), None)
        if destination is not None:
            for row in reversed(triggers):
                if destination.is_origin_of(row):
                    return None, row.id
        return to, None


def _pieces(text: str) -> list[str]:
    """The text in parts of which each fits a message."""
    if _size({"text": text}) <= MAX_CONTENT_BYTES:
        return [text]
    middle = len(text) // 2
    cut = max(text.rfind("\n", middle // 2, middle), text.rfind(" ", middle // 2, middle)) + 1 or middle
    return _pieces(text[:cut]) + _pieces(text[cut:])


def _size(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
