"""The ends of turns: completions on their way, until the host says that each is on disk, or refuses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hermitcrab_runner.outs import Outbox
from hermitcrab_runner.turn_state import Group, TurnState
from hermitcrab_wire import faults, frames
from hermitcrab_wire.limits import INBOUND_WINDOW, MAX_IDS_IN_A_FRAME

_DONE_AT_MOST = 4 * INBOUND_WINDOW


class Finishing:
    def __init__(self, state: TurnState, send: Callable[[frames.Frame], None], held: dict[str, None]) -> None:
        """`held`: ids of rows that are not done; they leave it here."""
        self._state, self._send, self._held = state, send, held

    def complete(self, group: Group, failed: str | None = None) -> None:
        faults.point("runner.answered")
        self._send_all(group.outbox.flush())
        self._state.finishing[group.turn] = group
        ids = group.ids[:MAX_IDS_IN_A_FRAME]
        if len(ids) < len(
            group.rows
        ):  # Several prompts that one result answered may have more rows than a frame may name.
            self.complete(Group(group.rows[len(ids) :], Outbox((), ())), failed)
            group.rows = group.rows[: len(ids)]
        self._send(frames.Complete(turn=group.turn, ids=ids, outs=group.outbox.rest(), failed=failed))
        faults.point("runner.completing")

    def completed(self, turn: str) -> None:
        """It is on the host's disk."""
        faults.point("runner.completed")
        group = self._state.finishing.pop(turn, None)
        if group is not None:
            self._forget_rows(group)

    def refused(self, key: str, code: str) -> None:
        """The host took a completion not, or something that was said in mid-turn."""
        group = self._state.finishing.get(key)
        if group is None and code == "id-reused":
            return  # An attempt at this turn that broke off has said it, in answer to fewer messages.
        if group is None:
            # Something said in mid-turn. Its chat is told that a part is missing, once and without the part.
            for each in (*self._state.asked.values(), *self._state.finishing.values()):
                self._send_all(each.outbox.lost(key))
            return
        # The rows must not wait for ever: give up the words, then the notice about them, then say nothing.
        if notice := group.outbox.instead(code):
            self._send(frames.Complete(turn=group.turn, ids=group.ids, outs=[notice], failed=f"refused: {code}"))
        elif group.outbox.silenced():
            self._send(frames.Complete(turn=group.turn, ids=group.ids, failed=f"refused: {code}"))
        else:
            del self._state.finishing[key]
            self._forget_rows(group)

    def _forget_rows(self, group: Group) -> None:
        for key in group.ids:
            self._held.pop(key, None)
            self._state.done[key] = None
        while len(self._state.done) > _DONE_AT_MOST:
            del self._state.done[next(iter(self._state.done))]

    def _send_all(self, outs: Iterable[frames.Out]) -> None:
        for out in outs:
            self._send(out)
