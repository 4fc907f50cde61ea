"""What the host is told of a foreign runner's rows: that they are in work, and that they are done. In bounded frames.

A v2 runner knows no turns. Here each frame is one, named after its first row, so that repeating it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hermitcrab_runner.digest import turn_id
from hermitcrab_runner.shim.ledger import Held, Ledger
from hermitcrab_wire import faults, frames
from hermitcrab_wire.limits import MAX_IDS_IN_A_FRAME


class Turns:
    def __init__(self, ledger: Ledger, send: Callable[[frames.Frame], None]) -> None:
        self._ledger, self._send = ledger, send
        self._finishing: dict[str, list[str]] = {}

    @property
    def unacknowledged(self) -> list[str]:
        """Ids of rows that the host was told of as done, and has not said so yet. Other threads may ask."""
        return [key for ids in list(self._finishing.values()) for key in ids]

    def claim(self, rows: Sequence[Held]) -> None:
        ids = [each.row.id for each in rows]
        for at in range(0, len(ids), MAX_IDS_IN_A_FRAME):
            part = ids[at : at + MAX_IDS_IN_A_FRAME]
            self._send(frames.Claim(turn=turn_id(part[0]), ids=part))
        if ids:
            faults.point("runner.claimed")

    def complete(self, rows: Sequence[Held], *, failed: str | None = None, outs: Sequence[dict[str, Any]] = ()) -> None:
        """The rows are answered, or `failed`; `outs` are the last words on them."""
        faults.point("runner.completing")
        for at in range(0, len(rows), MAX_IDS_IN_A_FRAME):
            ids = [each.row.id for each in rows[at : at + MAX_IDS_IN_A_FRAME]]
            turn = turn_id(ids[0])
            self._finishing[turn] = ids
            self._ledger.complete(ids)
            self._send(frames.Complete(turn=turn, ids=ids, outs=list(outs), failed=failed))
            outs = ()

    def acknowledged(self, turn: str) -> None:
        """The host has it, or wants none of it."""
        self._finishing.pop(turn, None)
