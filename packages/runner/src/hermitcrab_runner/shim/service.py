"""The shim itself: frames of the host in, rows of the files out, and back; one foreign runner in between.

An actor, as the turn loop of our own runner is: everything that happens comes to `handle`, one thing after another.
What it must never do: complete a row before its answer is with the host (law 8), or send something twice.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from hermitcrab_runner import prompt
from hermitcrab_runner.digest import out_id
from hermitcrab_runner.link import Pulse
from hermitcrab_runner.logs import note
from hermitcrab_runner.reply import clean
from hermitcrab_runner.shim import feed, recovery, said
from hermitcrab_runner.shim.command import Exited
from hermitcrab_runner.shim.destinations import Directory
from hermitcrab_runner.shim.inbound import InboundFile
from hermitcrab_runner.shim.layout import DamagedError, Workspace, is_busy
from hermitcrab_runner.shim.ledger import Ack, Ledger
from hermitcrab_runner.shim.outbound import OutboundFile
from hermitcrab_runner.shim.state import StateMirror
from hermitcrab_runner.shim.times import iso_time
from hermitcrab_runner.shim.translate import OutRow, Place, home, in_row
from hermitcrab_runner.shim.turns import Turns
from hermitcrab_runner.shim.vital import LOOK_EVERY_S, Vital
from hermitcrab_runner.shim.watch import Changed
from hermitcrab_runner.turn import Terminated
from hermitcrab_wire import faults, frames
from hermitcrab_wire.limits import MAX_IDS_IN_A_FRAME

EXIT_DAMAGED = 74
EXIT_STUCK = 79

_MOST_ROWS = 10
_SETTLE_S = 0.05
"""Rows for a starting runner come right after the welcome; it must find them at its first look."""

_SETTLED_WITHIN_S = 1.0
_BUSY_AGAIN_S = 0.25
_LAST_WORDS_WITHIN_S = 5.0
_LOG_CHARACTERS_AT_MOST = 2000


class Runner(Protocol):
    """The foreign runner's process, as `command.Command` is one."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def ended(self) -> None: ...


class Shim:
    def __init__(
        self,
        workspace: Workspace,
        *,
        send: Callable[[frames.Frame], None],
        show: Callable[[Pulse], None],
        runner: Runner,
        ask: Callable[[frames.Ask], None] = lambda _ask: None,
        looking: Callable[[], None] = lambda: None,
        unacknowledged: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`looking` is called before the files are looked at."""
        self._workspace = workspace
        self._send, self._show, self._ask = send, show, ask
        self._runner, self._looking = runner, looking
        self._unacknowledged = unacknowledged
        self._clock, self._wall = clock, wall
        self._ledger = Ledger()
        self._vital = Vital(clock)
        self._said = said.Said(workspace, send=send, log=self._log, wall=wall)
        self._state = StateMirror(send)
        self._turns = Turns(self._ledger, send)
        self._inbound: InboundFile | None = None
        self._outbound: OutboundFile | None = None
        self._most = _MOST_ROWS
        self._directory = Directory()
        self._settle_until: float | None = None
        self._settle_since = 0.0
        self._begun = False
        self._restarting = False
        self._draining = False
        self._drain_until: float | None = None
        self._busy_until: float | None = None
        self._leave_by: float | None = None
        self._farewell: str | None = None
        self.finished = False
        """Everything is said, and the process may end."""
        self.exit_code = 0

    @property
    def holds(self) -> list[str]:
        """Ids of all rows received and not done. Other threads may ask."""
        return [*list(self._ledger.held), *self._turns.unacknowledged]

    @property
    def deadline(self) -> float | None:
        """When `handle(Tick())` is due, on the clock."""
        now = self._clock()
        times = [self._settle_until, self._drain_until, self._busy_until, self._leave_by]
        if self._begun and self._leave_by is None:
            ready, again = self._ledger.answered(self._vital.now(), active_at=self._vital.active_at)
            if ready and not self._said.busy:
                return now
            if again is not None:
                times.append(now + max(0.0, again - self._vital.now()))
            if self._ledger.in_work:
                times.append(now + LOOK_EVERY_S)
        return min((each for each in times if each is not None), default=None)

    def handle(self, item: Any) -> None:
        """Take in one thing that happened, and do what follows from it."""
        try:
            self._take(item)
            self._check_time()
            if self._begun and self._leave_by is None:
                self._go_on()
        except sqlite3.Error as error:
            if not is_busy(error):
                self._damaged(DamagedError(str(error)))
            else:
                # An agent that keeps its own file locked keeps itself waiting, and nobody else.
                note("database.busy", error=error)
                self._busy_until = self._clock() + _BUSY_AGAIN_S
        except DamagedError as error:
            self._damaged(error)
        self._show(self._vital.pulse(self._ledger, draining=self._draining))
        owing = self._unacknowledged() or self._said.busy
        if self._leave_by is not None and (not owing or self._clock() >= self._leave_by):
            self._leave()

    def _take(self, item: Any) -> None:
        match item:
            case frames.Inbound():
                self._receive(item.rows)
            case frames.Completed():
                faults.point("runner.completed")
                self._turns.acknowledged(item.turn)
            case frames.Committed():
                if self._inbound is not None:
                    self._said.committed(item.id, self._inbound)
            case frames.Delivered():
                if self._inbound is not None:
                    self._inbound.reported(item.id, item.platform_id, failed=item.failed is not None)
            case frames.FileReady():
                self._said.file_ready(item)
            case frames.FileStored():
                if self._inbound is not None:
                    self._said.file_stored(item, self._inbound)
            case frames.Refused():
                self._refused(item)
            case frames.Welcome():
                self._welcomed(item)
            case frames.Ask():
                self._ask(item)
            case frames.Cancel():
                self._cancel(item.reason)
            case frames.Drain():
                self._drain(item.within_ms / 1000)
            case Terminated():
                self._drain(None)
            case Changed():
                self._look()
            case Exited():
                self._exited(item.code)
            case _:
                pass  # Time has passed; or a frame that the link has noted, or that a newer host says besides.

    # From the host.

    def _welcomed(self, welcome: frames.Welcome) -> None:
        most = welcome.config.get("max_messages_per_prompt")
        self._most = min(most, MAX_IDS_IN_A_FRAME) if isinstance(most, int) and most > 0 else _MOST_ROWS
        self._said.destinations = prompt.parse_destinations(welcome.destinations)
        self._said.home = home(welcome.routing)
        self._said.reconnected()
        if self._inbound is None:
            self._state.known = {key: value for key, value in welcome.state.items() if isinstance(value, str)}
            self._inbound = InboundFile(self._workspace)
            if self._inbound.damage is not None:
                self._log(f"a database was damaged: {self._inbound.damage}")
            self._settle_since = self._clock()
            self._settle_until = self._settle_since + _SETTLE_S
        self._directory.met(self._said.home)
        self._show_destinations()

    def _receive(self, messages: Iterable[Mapping[str, Any]]) -> None:
        for message in messages:
            row = in_row(message, at=iso_time(self._wall()))
            if row is None:
                note("row.without-id")
            else:
                self._directory.met(Place(row.channel_type, row.platform_id))
                # Rows for a starting runner are none any more once it has looked for the first time.
                self._ledger.receive(row._replace(on_wake=0) if self._begun else row)
        self._show_destinations()
        if self._settle_until is not None:
            self._settle_until = min(self._clock() + _SETTLE_S, self._settle_since + _SETTLED_WITHIN_S)
        faults.point("runner.received")

    def _show_destinations(self) -> None:
        if self._inbound is not None:
            self._directory.show(self._said.destinations, self._said.home, self._inbound.write_destinations)

    def _refused(self, refused: frames.Refused) -> None:
        note("host.refused", code=refused.code, text=refused.text, id=refused.id or "-")
        self._turns.acknowledged(refused.id or "")
        if self._inbound is not None:
            self._said.refused(refused, self._inbound)

    def _cancel(self, reason: str) -> None:
        """A v2 runner cannot be interrupted: what it has in work is given up, and it is started anew."""
        note("foreign.cancel", reason=reason)
        work = self._ledger.in_work
        if not (work and self._begun and self._inbound is not None) or self._restarting:
            return
        trigger = next((each.row.id for each in work if each.row.trigger), work[0].row.id)
        content = {"text": "I was stopped before I had finished this."}
        notice = {"id": out_id(trigger, None, content, 1), "kind": "chat", "content": content, "in_reply_to": trigger}
        self._inbound.finish([each.row.id for each in work])
        self._turns.complete(work, failed=clean(f"cancelled: {reason}")[:500], outs=[notice])
        self._restarting = True
        self._runner.kill()

    def _drain(self, within_s: float | None) -> None:
        note("drain", within_s=within_s, claimed=len(self._ledger.claimed), waiting=len(self._ledger.waiting))
        self._draining = True
        if within_s is not None:
            self._drain_until = self._clock() + within_s
        if self._inbound is not None and self._begun:
            # What it has not taken yet, it shall not take any more.
            shown = self._ledger.shown
            self._inbound.withdraw(each.row.id for each in shown)
            for each in shown:
                each.shown = False
        if not self._begun:
            self._end("drained before it had begun")

    # The runner's life.

    def _begin(self) -> None:
        """Put the files in order by what the host says is still to be done, and start the runner."""
        inbound = self._inbound
        if inbound is None:
            return
        # Until it has succeeded: an agent's program may have one of the files locked just now.
        self._settle_until = self._clock() + _BUSY_AGAIN_S
        self._workspace.prepare()
        if self._outbound is not None:
            self._outbound.close()
        outbound = self._outbound = OutboundFile(self._workspace)
        if outbound.damage is not None:
            self._log(f"a database was damaged: {outbound.damage}")
        left = recovery.sort_out(
            [each.row for each in self._ledger.held.values()],
            acks=outbound.newest_acks(),
            outs=(outs := outbound.newest_said(said.RESENT_AT_MOST)),
            seqs=inbound.seqs([*self._ledger.held, *(out.in_reply_to for out in outs if out.in_reply_to is not None)]),
        )
        outbound.begin(self._state.known)
        outbound.forget_marks(left.again)
        inbound.begin()
        self._said.begin(inbound, outbound, repeated=left.said_before)
        outbound.start_reading()
        self._ledger.begin_again(answered=left.answered)
        if nobody := [self._ledger.held[key] for key in left.unheard]:
            self._turns.complete(nobody, failed="whoever asked for this answer is gone")
        self._vital.started()
        self._begun, self._restarting, self._settle_until = True, False, None
        self._feed()
        for each in self._ledger.held.values():
            if not each.shown:
                each.row = each.row._replace(on_wake=0)
        self._runner.start()

    def _exited(self, code: int) -> None:
        self._runner.ended()
        note("foreign.exited", code=code)
        if self._leave_by is not None:
            self._leave_by = self._clock()
            return
        self._look()
        if self._restarting and not self._draining:
            self._begun, self._settle_until = False, self._clock()
            return
        if self._draining:
            self._end("drained")
            return
        if not self._ledger.claimed:
            # Else a runner that ends before it takes anything would be started for the same messages for ever.
            self._turns.claim(self._ledger.shown)
        self._end(None, code)

    def _end(self, farewell: str | None, code: int = 0) -> None:
        """Leave as soon as the host has what was said."""
        self._farewell, self.exit_code = farewell, code
        self._leave_by = self._clock() + _LAST_WORDS_WITHIN_S

    def _leave(self) -> None:
        if not self.finished:
            self.finished = True
            if self._farewell is not None:
                left = len(self._ledger.held)
                text = f"{self._farewell}; {left} rows given back" if left else self._farewell
                self._send(frames.Bye(reason=clean(text)[:500]))
            self._runner.kill()

    def _damaged(self, error: DamagedError) -> None:
        """The runner's own file cannot be read any more; the next container begins with a new one."""
        note("database.damaged", error=error)
        self._log(f"the runner's database cannot be read, and it is ended: {error}")
        self._runner.kill()
        self._end(f"damaged: {error}", EXIT_DAMAGED)

    # What the files show.

    def _look(self) -> None:
        self._looking()
        self._busy_until = None
        outbound, inbound = self._outbound, self._inbound
        if outbound is None or inbound is None or not self._begun:
            return
        self._vital.saw(outbound.version(), self._workspace.heartbeat_at(), outbound.tool())
        more = True
        while more:
            # A mark may come before what was said with it, or after: neither is to be seen without the other.
            with outbound.moment():
                acks, found = outbound.acks(list(self._ledger.held)), outbound.said()
            self._observe(acks, inbound)
            for out in found:
                self._said.take(self._ledger.addressed(out) if isinstance(out, OutRow) else out, inbound)
                if isinstance(out, OutRow):
                    self._ledger.said(out)
            more = bool(found)
        self._state.look(outbound.state())

    def _observe(self, acks: Iterable[Ack], inbound: InboundFile) -> None:
        before = {key: each.marked_at for key, each in self._ledger.held.items()}
        self._turns.claim(self._ledger.observe(acks, self._vital.now()))
        marked = [key for key, each in self._ledger.held.items() if each.marked_at is not None and not before[key]]
        if marked:
            inbound.finish(marked)
            faults.point("runner.answered")

    def _go_on(self) -> None:
        ready, _ = self._ledger.answered(self._vital.now(), active_at=self._vital.active_at)
        if ready and not self._said.busy:  # A row ends after its answer is on its way, files and all.
            self._turns.complete([each for each in ready if not each.failed])
            self._turns.complete([each for each in ready if each.failed], failed="the runner gave it up")
            if not self._ledger.claimed:
                self._said.turn_ended()
        if self._draining:
            if not self._ledger.claimed:
                self._runner.stop()
        else:
            self._feed()

    def _feed(self) -> None:
        inbound = self._inbound
        if inbound is None:
            return
        lying = [each for each in self._ledger.shown if each.row.kind == "system"]
        if surplus := lying[: -feed.SYSTEM_ROWS_AT_MOST]:
            inbound.finish([each.row.id for each in surplus])
            self._turns.complete(surplus, failed="nobody has picked this answer up")
        waiting = self._ledger.waiting
        if not waiting:
            return
        portion = feed.portion(waiting, shown=len(self._ledger.shown), most=self._most)
        for row in inbound.write(portion.now) if portion.now else ():
            held = self._ledger.held[row.id]
            held.row, held.shown = row, True
        if portion.let_go:
            note("context.let-go", rows=len(portion.let_go))
            self._turns.complete([self._ledger.held[row.id] for row in portion.let_go])

    def _check_time(self) -> None:
        now = self._clock()
        if self._settle_until is not None and now >= self._settle_until:
            self._begin()
        if self._busy_until is not None and now >= self._busy_until:
            self._look()
        if self._drain_until is not None and now >= self._drain_until:
            self._drain_until = None
            self._runner.stop()
        if self._begun and self._leave_by is None and (stuck := self._vital.stuck(self._ledger)) is not None:
            note("foreign.stuck", reason=stuck.reason, row=stuck.message_id or "-")
            self._log(f"the foreign runner is stuck ({stuck.reason}): {stuck.text}")
            self._runner.kill()
            self._end(f"stuck: {stuck.text}", EXIT_STUCK)

    def _log(self, text: str) -> None:
        self._send(frames.Log(text=clean(text)[:_LOG_CHARACTERS_AT_MOST]))
