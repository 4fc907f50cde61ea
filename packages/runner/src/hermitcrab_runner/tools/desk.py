"""Calls of tools that are under way: each gets its reply when the host has what was said, or the answer is here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hermitcrab_runner.outs import Outbox
from hermitcrab_runner.providers.base import ToolCall
from hermitcrab_runner.rows import Row, text_of
from hermitcrab_runner.tools.requests import InvalidError, Request, request_of
from hermitcrab_wire import frames


class _Waiting(NamedTuple):
    call: ToolCall
    request: Request
    until: float | None = None
    """When a question is given up, on the loop's clock."""


class Desk:
    def __init__(self, send: Callable[[frames.Frame], None], clock: Callable[[], float], workdir: str) -> None:
        self._send, self._clock, self._workdir = send, clock, workdir
        self._waiting: dict[str, _Waiting] = {}
        """By the id of what was said."""

    @property
    def deadline(self) -> float | None:
        return min((each.until for each in self._waiting.values() if each.until is not None), default=None)

    def take(
        self, call: ToolCall, outbox: Outbox, names: frozenset[str], answered: Callable[[str], Row | None]
    ) -> None:
        """Say what the call asks for. `answered` finds a question's answer among rows that came before."""
        try:
            request = request_of(call.name, call.arguments, names, self._workdir)
            out = outbox.put(
                request.content,
                kind=request.kind,
                to=request.to,
                files=request.files,
                deliver_after=request.deliver_after,
            )
        except InvalidError as error:
            call.answer(f"Error: {error}", True)
            return
        until = None if request.waits_s is None else self._clock() + request.waits_s
        self._waiting[out.id] = _Waiting(call, request, until)
        for each in outbox.flush(keep=0):
            self._send(each)
        if until is not None and (row := answered(out.id)) is not None:
            self.hear(row)

    def committed(self, frame: frames.Committed) -> None:
        """The host has it. Only a question waits for more."""
        waiting = self._waiting.get(frame.id)
        if waiting is not None and waiting.until is None:
            del self._waiting[frame.id]
            number = str(frame.seq if frame.seq is not None else frame.id)
            waiting.call.answer(waiting.request.reply.replace("{id}", number, 1), False)

    def delivered(self, frame: frames.Delivered) -> None:
        """What became of something said. A question that nobody will see is not waited for."""
        if frame.failed is not None and (waiting := self._waiting.pop(frame.id, None)) is not None:
            waiting.call.answer(f"Error: the question did not arrive: {frame.failed}", True)

    def refused(self, frame: frames.Refused) -> bool:
        """Whether it was a tool's: the model hears of it, so that nobody else need to."""
        waiting = self._waiting.pop(frame.id or "", None)
        if waiting is None:
            return False
        if frame.code == "id-reused":
            # An attempt at this turn that broke off had said it already, in answer to fewer messages.
            waiting.call.answer("It has been sent before.", False)
        else:
            waiting.call.answer(f"Error: {frame.text}", True)
        return True

    def awaits(self, row: Row) -> bool:
        """Whether the row answers a question that a call waits for."""
        return row.question in self._waiting

    def hear(self, row: Row) -> None:
        """The answer to a question is here."""
        waiting = self._waiting.pop(row.question or "", None)
        if waiting is not None:
            waiting.call.answer(text_of(row.content.get("selectedOption")), False)

    def check_time(self) -> None:
        """Give up waiting for answers that have not come in time."""
        now = self._clock()
        for key, each in list(self._waiting.items()):
            if each.until is not None and now >= each.until:
                del self._waiting[key]
                each.call.answer(
                    f"Error: Question timed out after {each.request.waits_s:g}s. An answer that comes later reaches you"
                    " as a message.",
                    True,
                )

    def turn_ended(self) -> None:
        """Nobody is left who could use an answer; one that comes is a message like any other."""
        for key in [key for key, each in self._waiting.items() if each.until is not None]:
            self._waiting.pop(key).call.answer("Error: the turn is over", True)
