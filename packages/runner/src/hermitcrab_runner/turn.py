"""The turn loop: rows in, claims and completions out, one provider in between.

An actor: everything that happens comes to `handle` as one value after another, in one thread, so that there is no
state that two threads share. What it must never do: complete a row before a result that came after the row was asked
(law 8), or say something twice under different ids.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hermitcrab_runner.commands import CLEAR, command_of
from hermitcrab_runner.digest import turn_id
from hermitcrab_runner.finishing import Finishing
from hermitcrab_runner.link import Pulse
from hermitcrab_runner.logs import note
from hermitcrab_runner.outs import Outbox
from hermitcrab_runner.portions import take_next
from hermitcrab_runner.providers import base
from hermitcrab_runner.reply import Reply, clean, parse_reply
from hermitcrab_runner.rows import Row, parse_row
from hermitcrab_runner.surroundings import Surroundings
from hermitcrab_runner.tools.desk import Desk
from hermitcrab_runner.turn_state import Group, Stalled, Tool, TurnState
from hermitcrab_wire import faults, frames
from hermitcrab_wire.limits import INBOUND_WINDOW

KEPT_CONTEXT = INBOUND_WINDOW // 2
"""Rows that only give context and may wait for one that triggers. The oldest beyond it are let go: they would fill the
host's window, and the row that triggers would never come."""

_REASON_CHARACTERS_AT_MOST = 500
_LOG_CHARACTERS_AT_MOST = 2000
_TOOL_CHARACTERS_AT_MOST = 100


class Tick:
    """Time has passed."""


class Terminated:
    """The container is asked to end."""


class TurnLoop:
    def __init__(
        self,
        *,
        send: Callable[[frames.Frame], None],
        show: Callable[[Pulse], None],
        provider: base.Provider,
        surroundings: Surroundings,
        held: dict[str, None] | None = None,
        ask: Callable[[frames.Ask], None] = lambda _ask: None,
        unacknowledged: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._show = show
        self._unacknowledged = unacknowledged
        self._provider = provider
        self._surroundings = surroundings
        self._ask = ask
        self._clock = clock
        self._state = TurnState()
        self._numbers = itertools.count(1)
        self._draining = False
        self._desk = Desk(send, clock, surroundings.workdir)
        self.held: dict[str, None] = {} if held is None else held
        """Ids of all rows received and not done. Other threads may copy it."""
        self._finishing = Finishing(self._state, send, self.held)
        self.finished = False
        """Everything is said, and the process may end."""
        self.exit_code = 0

    @property
    def deadline(self) -> float | None:
        """When `handle(Tick())` is due, on the clock."""
        times = (self._state.deadline, self._desk.deadline)
        return min((each for each in times if each is not None), default=None)

    def handle(self, item: frames.Frame | base.Event | Tick | Terminated) -> None:
        """Take in one thing that happened, and do what follows from it."""
        match item:
            case frames.Inbound():
                self._receive(item.rows)
            case frames.Completed():
                self._finishing.completed(item.turn)
            case frames.Committed():
                self._desk.committed(item)
            case frames.Delivered():
                self._desk.delivered(item)
            case frames.Refused():
                self._refused(item)
            case frames.Welcome():
                self._welcomed(item)
            case frames.Ask():
                self._ask(item)
            case frames.Cancel():
                note("turn.cancel", reason=item.reason)
                self._provider.interrupt()
            case frames.Drain():
                self._drain(item.within_ms / 1000)
            case Terminated():
                self._drain(None)
            case Tick():
                self._check_time()
            case frames.Frame():
                pass  # Claimed: the link has noted it.
            case _:
                self._provider_event(item)
        self._begin_what_can()
        self._show(self._state.pulse(draining=self._draining))
        if self._draining and not (self._state.asked or self._state.finishing or self._unacknowledged()):
            self._leave("drained")

    # From the host.

    def _welcomed(self, welcome: frames.Welcome) -> None:
        settings = self._surroundings.update(welcome)
        self._state.limits = self._surroundings.tool_limits
        if settings is not None:
            self._provider.configure(settings)

    def _receive(self, messages: Iterable[Mapping[str, Any]]) -> None:
        for message in messages:
            row = parse_row(message)
            if row is None:
                note("row.without-id")
            elif row.id not in self.held and row.id not in self._state.done:
                self.held[row.id] = None
                if not (self._desk.awaits(row) and self._join(row)):
                    self._state.waiting.append(row)
        faults.point("runner.received")

    def _refused(self, refused: frames.Refused) -> None:
        note("host.refused", code=refused.code, text=refused.text, id=refused.id or "-")
        if refused.id is not None and not self._desk.refused(refused):
            self._finishing.refused(refused.id, refused.code)

    # Beginning.

    def _begin_what_can(self) -> None:
        state = self._state
        while not self._draining and self._surroundings.known:
            if state.asked and not self._provider.takes_follow_ups:
                return
            if any(row.is_suspect for group in state.asked.values() for row in group.rows):
                return
            self._let_old_context_go()
            first = next((index for index, row in enumerate(state.waiting) if row.trigger), None)
            if first is None or (state.asked and (state.waiting[first].is_suspect or state.waiting[first].question)):
                return  # The turn that runs may be one that asks again what was answered.
            command = command_of(state.waiting[first], self._provider.native_commands)
            if command is not None:
                if state.asked:
                    return  # A command is a turn of its own.
                self._command(command, first)
                continue
            self._begin(take_next(state.waiting, first, self._surroundings.most_rows, self._provider.native_commands))

    def _begin(self, rows: tuple[Row, ...], *, raw: str | None = None) -> None:
        group = self._claim(rows)
        text = raw if raw is not None else self._surroundings.compose(rows)
        plain = "\n".join(row.text for row in rows if row.trigger)
        self._ask_provider(group, text, plain)

    def _claim(self, rows: tuple[Row, ...]) -> Group:
        group = Group(rows, Outbox(rows, self._surroundings.destinations))
        self._send(frames.Claim(turn=group.turn, ids=group.ids))
        faults.point("runner.claimed")
        return group

    def _ask_provider(self, group: Group, text: str, plain: str) -> None:
        key = f"{group.turn}-{next(self._numbers)}"
        self._state.asked[key] = group
        self._provider.ask(base.Prompt(key, text, plain))

    def _command(self, command: str, index: int) -> None:
        waiting = self._state.waiting
        row = waiting[index]
        if command == CLEAR:
            # What came before it would be context for a conversation that is about to be forgotten.
            rows = tuple(waiting[: index + 1])
            del waiting[: index + 1]
            group = self._claim(rows)
            self._provider.forget()
            self._remember(None)
            group.outbox.say(None, "Session cleared.")
            self._finishing.complete(group)
        else:
            del waiting[index]
            self._begin((row,), raw=row.text.strip())

    def _let_old_context_go(self) -> None:
        waiting = self._state.waiting
        quiet = next((index for index, row in enumerate(waiting) if row.trigger), len(waiting))
        if (surplus := quiet - KEPT_CONTEXT) > 0:
            rows = tuple(waiting[:surplus])
            del waiting[:surplus]
            note("context.let-go", rows=len(rows))
            self._finishing.complete(self._claim(rows))

    # From the provider.

    def _provider_event(self, event: base.Event) -> None:
        state = self._state
        state.progress_at = self._clock()
        if not isinstance(event, (base.Waiting, base.Started)):
            state.waits = None
        match event:
            case base.Started():
                self._remember(event.continuation)
            case base.Forgotten():
                self._remember(None)
            case base.ToolBegan():
                name = clean(event.name)[:_TOOL_CHARACTERS_AT_MOST]
                state.tools[event.key] = Tool(name, self._clock(), event.timeout_s, event.is_agent)
            case base.ToolEnded():
                state.tools.pop(event.key, None)
            case base.ToolCall():
                self._use_tool(event)
            case base.Waiting():
                state.waits, state.waits_until = event, self._clock() + event.seconds
            case base.Progress():
                self._progress(event.text)
            case base.Result():
                self._result(event)
            case base.Failed():
                if (group := self._take(event.answered)) is not None:
                    self._fail(group, event)
            case base.GivenBack():
                self._take_back(event.keys)
        if not state.asked:
            state.tools.clear()
            state.stalled = None
            self._desk.turn_ended()

    def _remember(self, continuation: str | None) -> None:
        key = self._surroundings.remember(continuation)
        if key is not None:
            self._send(frames.SetState(id=f"{key}-{self._surroundings.unique()}", key=key, value=continuation))

    def _take(self, keys: Sequence[str]) -> Group | None:
        """The groups of these prompts as one, under the turn of the oldest. They are no longer asked."""
        asked = self._state.asked
        found = [asked.pop(key) for key in list(asked) if key in keys]
        if not found:
            return None
        whole = found[0]
        for each in found[1:]:
            whole.rows += each.rows
            whole.corrected |= each.corrected
        whole.outbox.answers(whole.rows)
        return whole

    def _take_back(self, keys: Sequence[str]) -> None:
        if (group := self._take(keys)) is not None:
            self._state.waiting[:0] = group.rows

    def _use_tool(self, call: base.ToolCall) -> None:
        """Of several prompts that are out, the oldest is what the agent works on."""
        group = next(iter(self._state.asked.values()), None)
        if group is None:
            outbox = Outbox((), self._surroundings.destinations, seed=self._surroundings.unique())
            self._desk.take(call, outbox, self._surroundings.names, lambda _key: None)
        else:
            self._desk.take(call, group.outbox, self._surroundings.names, self._answer_before)

    def _answer_before(self, question: str) -> Row | None:
        """The answer to a question that an attempt which broke off has asked, if it came meanwhile."""
        for row in (*self._state.waiting, *(row for group in self._state.asked.values() for row in group.rows)):
            if row.question == question:
                if row in self._state.waiting and self._join(row):
                    self._state.waiting.remove(row)
                return row
        return None

    def _join(self, row: Row) -> bool:
        """The answer to a question belongs to the turn that asked, and ends with it."""
        group = next(iter(self._state.asked.values()), None)
        if group is None:
            return False
        group.rows += (row,)
        group.outbox.answers(group.rows)
        self._send(frames.Claim(turn=turn_id(row.id), ids=[row.id]))
        self._desk.hear(row)
        return True

    def _progress(self, text: str) -> None:
        group = next(iter(self._state.asked.values()), None)
        if group is None:
            return
        reply = parse_reply(text, self._surroundings.names, blocks_only=True)
        for said in reply.said:
            group.outbox.say(said.to, said.text)
        self._send_all(group.outbox.flush(keep=0))

    def _result(self, result: base.Result) -> None:
        reply = parse_reply(result.text, self._surroundings.names)
        if reply.scratch:
            self._log("kept to itself", reply.scratch)
        group = self._take(result.answered)
        if group is None:
            self._spoke_up(reply, result.key)
            return
        for said in reply.said:
            group.outbox.say(said.to, said.text)
        if reply.undeliverable:
            for said in reply.undeliverable:
                self._log(f"not sent, as {said.to!r} is no destination", said.text)
            names = sorted({said.to or "" for said in reply.undeliverable})
            if self._provider.takes_follow_ups and not group.corrected and not self._draining:
                # The model may still say it to somebody; until then these rows are not answered.
                group.corrected = True
                self._send_all(group.outbox.flush(keep=0))
                self._ask_provider(group, self._surroundings.correction(names), "")
                return
            group.outbox.say(None, "Part of my answer was for somebody I cannot write to, and was not sent.")
        self._finishing.complete(group)

    def _spoke_up(self, reply: Reply, key: str) -> None:
        """Words that answer no row, for one after a background task: said, as they may not vanish."""
        outbox = Outbox((), self._surroundings.destinations, seed=key or self._surroundings.unique())
        for said in reply.said:
            outbox.say(said.to, said.text)
        self._send_all(outbox.flush(keep=0))

    def _fail(self, group: Group, failed: base.Failed) -> None:
        stalled, self._state.stalled = self._state.stalled, None
        reason = clean(stalled.reason if stalled is not None else failed.reason)[:_REASON_CHARACTERS_AT_MOST]
        note("turn.failed", turn=group.turn, reason=reason)
        asked_for = failed.cancelled and stalled is None
        text = "I was stopped before I had finished this." if asked_for else f"I could not answer: {reason}."
        group.outbox.say(None, text)
        self._finishing.complete(group, failed=reason)

    def _send_all(self, outs: Iterable[frames.Out]) -> None:
        for out in outs:
            self._send(out)

    def _log(self, event: str, text: str) -> None:
        self._send(frames.Log(text=clean(f"{event}: {text}")[:_LOG_CHARACTERS_AT_MOST]))

    # Time and the end.

    def _check_time(self) -> None:
        now = self._clock()
        self._desk.check_time()
        if self._state.waits is not None and now >= self._state.waits_until:
            # The harness says nothing when it asks the model again, and nothing until that answers.
            self._state.waits, self._state.progress_at = None, now
        for key, tool in list(self._state.tools.items()):
            overdue_at = self._state.overdue_at(tool)
            if overdue_at is not None and now >= overdue_at:
                del self._state.tools[key]
                self._stop_turn_of(tool, now - tool.began)
        if self._state.drain_until is not None and now >= self._state.drain_until:
            self._leave("the time to drain is over")

    def _stop_turn_of(self, tool: Tool, after_s: float) -> None:
        note("tool.stalled", tool=tool.name, after_s=round(after_s))
        self._send(frames.ToolStopped(tool=tool.name, after_ms=round(after_s * 1000)))
        if self._state.stalled is None:
            self._state.stalled = Stalled(tool.name, after_s)
            self._provider.interrupt()

    def _drain(self, within_s: float | None) -> None:
        note("drain", within_s=within_s, asked=len(self._state.asked), waiting=len(self._state.waiting))
        self._draining = True
        if within_s is not None:
            self._state.drain_until = self._clock() + within_s

    def _leave(self, reason: str) -> None:
        if not self.finished:
            self.finished = True
            self._send(frames.Bye(reason=f"{reason}; {len(self.held)} rows given back" if self.held else reason))
