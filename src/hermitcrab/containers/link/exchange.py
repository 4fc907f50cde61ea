"""One session's rows on its link: what is pushed, claimed, said and completed, and when each is on disk (law 8).

An exchange lives as long as one generation of the session's container, over any number of broken links. What a frame
says of session, sender or routing is ignored: the session is the socket's, the addresses are the mailbox's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio import to_thread

from hermitcrab.containers.link.feeding import UNKNOWN, Feed, place_json
from hermitcrab.containers.link.pulse import Pulse
from hermitcrab.containers.link.saying import RefusedError, Sayings, code_of
from hermitcrab.containers.link.server import Connection
from hermitcrab.containers.link.uploads import Uploads
from hermitcrab.errors import BadInputError, ConflictError
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.groups import Destination
from hermitcrab.model.ids import Generation, MessageId
from hermitcrab.model.messages import Address, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab_wire import faults, frames
from hermitcrab_wire.codec import WireError
from hermitcrab_wire.limits import (
    MAX_STATE_BYTES,
    OLDEST_PROTOCOL,
    PROTOCOL,
)

REQUEST = "system"
"""The kind of what an agent says to the host, and to no chat."""

REPORTED_AT_HELLO = 64
"""Messages whose fate a runner hears at its hello, if it wants to."""

ARRIVED = frozenset({"delivered", "confirmed"})
BADLY = frozenset({"failed", "refused", "unknown-after-crash"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outward:
    """What an exchange tells the rest of the host."""

    ready: Callable[[frames.Hello], None]
    """The runner said hello, and was welcomed."""
    admit: Callable[[frames.Hello], Awaitable[str]] | None = None
    """Asked before the welcome: why the container may have no message; nothing when it may."""
    said: Callable[[Sequence[OutboundRow]], None]
    """Rows wait for delivery: these, if nothing else is new."""
    working: Callable[[], None]
    """A turn began or goes on; its chat may show that somebody is writing."""
    asked: Callable[[dict[str, Any]], Awaitable[None]] | None = None
    """The agent asks something of the host. Raises RefusedError when it does not get it. None: it never does."""
    farewell: Callable[[str], None]
    """The runner is about to end by its own will."""
    offended: Callable[[str], None]
    """The runner broke the contract of the link."""
    gone: Callable[[], None]
    """The link is lost. The runner dials again, or it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the runner is told at hello, read afresh each time so that an administrator's changes count."""

    config: dict[str, Any]
    destinations: list[Destination]
    home_address: Address | None
    """The session's own chat; None for a session that belongs to no chat."""


class Exchange(Feed):
    """Implements `link.LinkHandler` for one session and generation."""

    def __init__(
        self,
        session: Session,
        generation: Generation,
        *,
        mailboxes: Mailboxes,
        outbox: Path,
        surroundings: Callable[[], Awaitable[Surroundings]],
        outward: Outward,
        clock: Callable[[], float] = time.monotonic,
        careful: bool = False,
    ) -> None:
        """`outbox`: for files that the agent sends. `clock`: by which it is judged whether the runner lives.

        `careful`: hand it one row to answer after the other, so that it is known which of them ends it.
        """
        super().__init__(session, generation, mailboxes=mailboxes, careful=careful)
        self.pulse = Pulse(clock)
        self._surroundings = surroundings
        self._outward = outward
        self._around: Surroundings | None = None
        self._uploads = Uploads(outbox, generation)
        self._sayings = Sayings(session, mailboxes, self._uploads, lambda: self._flow.outstanding)
        self._greeted_before = False
        self._answers: dict[str, tuple[anyio.Event, list[frames.Answer]]] = {}
        self._reports = ""
        """Of which ends of what it said the runner wants to hear."""

    def remind(self, reason: str) -> bool:
        """Tell the runner, once for each tool, that its turn is to be given up. False: it was told, or has no link."""
        if self.pulse.reminded or not self.send(frames.Cancel(reason=reason)):
            return False
        self.pulse.reminded = True
        return True

    # The link's side.

    async def greet(self, hello: frames.Hello, connection: Connection) -> frames.Refused | None:
        if not OLDEST_PROTOCOL <= hello.protocol <= PROTOCOL:
            return frames.Refused(code="protocol", text=f"this host speaks protocols {OLDEST_PROTOCOL} to {PROTOCOL}")
        if hello.generation != self.generation:
            return frames.Refused(code="stale-generation", text=f"generation {self.generation} has this socket now")
        if self._outward.admit is not None and (why_not := await self._outward.admit(hello)):
            return frames.Refused(code="not-admitted", text=why_not[:1000])
        surroundings = await self._surroundings()
        flow = self._flow
        news, linked = flow.news, flow.connection is not None
        # A runner that a host before this one has greeted: what that host found in the way, it has swept.
        known = self._mailboxes.foreseen(self.session) if hello.resumes else None
        state, waits = (known.state, known.is_waiting) if known is not None else await self._look(hello)
        self._greeted_before = True
        # What was pushed on another link meanwhile may be lost with it.
        waits = waits or flow.news != news or linked or flow.connection is not None
        if flow.connection is not None:
            # The runner re-dials only when its old link is lost; one runner has one link.
            flow.connection.cut()
        flow.connection, self._around = connection, surroundings
        # What a resuming runner still holds is outstanding; anything else that was pushed may be lost.
        held = set(hello.holds) if hello.resumes else set()
        flow.outstanding = {MessageId(each): flow.outstanding.get(MessageId(each)) for each in held}
        flow.taken &= flow.outstanding.keys()
        flow.last_seq, flow.more_waits = UNKNOWN, waits
        self.pulse.show("idle")
        if not connection.send(self._welcome(surroundings, state)):
            # The state is the agent's own. It may cost the session its memory, and never its next start.
            log.error("state.does-not-fit", session=self.session.id, keys=len(state))
            connection.send(self._welcome(surroundings, {}))
        faults.point("link.welcomed")
        self._reports = hello.reports
        if hello.reports == "all":
            # What was delivered while there was no link, as far as anybody may still refer to it.
            for row in await self._mailboxes.run(self.session, lambda mailbox: mailbox.newest_said(REPORTED_AT_HELLO)):
                self.report(row)
        self._outward.ready(hello)
        if flow.more_waits:
            await self.pump()
        return None

    async def _look(self, hello: frames.Hello) -> tuple[dict[str, str], bool]:
        """The state that the mailbox has for the runner, and whether any row is unfinished there."""
        first = not self._greeted_before

        def look(mailbox: Mailbox) -> tuple[dict[str, str], bool, int]:
            if first:
                self._uploads.sweep(mailbox.kept_files())
            return mailbox.state(), mailbox.is_waiting(), mailbox.last_seq()

        state, waits, last_seq = await self._mailboxes.look(self.session, look)
        if first and not hello.resumes:
            self._on_wake_until = last_seq
        return state, waits

    def _welcome(self, surroundings: Surroundings, state: dict[str, str]) -> frames.Welcome:
        return frames.Welcome(
            protocol=PROTOCOL,
            generation=self.generation,
            session=self.session.id,
            config=surroundings.config,
            destinations=[_destination_json(each) for each in surroundings.destinations],
            state=dict(state),
            routing=place_json(surroundings.home_address) if surroundings.home_address else None,
        )

    async def handle(self, frame: frames.Frame, connection: Connection) -> None:
        if connection is not self._flow.connection:
            return  # A link that was replaced; its runner repeats on the new one what was not acknowledged.
        match frame:
            case frames.Beat():
                self.pulse.beat(frame)
                await self.note_claims()
                if frame.activity in {"thinking", "tool"}:
                    self._outward.working()
            case frames.Claim():
                await self._claim(frame, connection)
            case frames.Out():
                await self._out(frame, connection)
            case frames.FileBegin() | frames.FileChunk() | frames.FileEnd():
                await self._file(frame, connection)
            case frames.Complete():
                await self._complete(frame, connection)
            case frames.ToolStopped():
                self._tool_stopped(frame)
            case frames.SetState():
                await self._set_state(frame, connection)
            case frames.Answer():
                self._answered(frame)
            case frames.Log():
                log.info("runner.log", session=self.session.id, generation=self.generation, text=frame.text[:2000])
            case frames.Bye():
                self._outward.farewell(frame.reason[:200])

    def broke_contract(self, error: WireError) -> None:
        self._outward.offended(f"{error.code}: {error}")

    def gone(self, connection: Connection) -> None:
        if connection is self._flow.connection:
            self._flow.connection = None
            self._outward.gone()

    # The host's side.

    async def ask(self, subject: str, arguments: dict[str, Any]) -> frames.Answer:
        """Ask the runner itself. Returns when it answers; the caller sets the deadline."""
        connection = self._flow.connection
        if connection is None:
            raise ConflictError(f"session {self.session.id} has no link", hint="Send it a message first, to wake it.")
        key = f"ask-{len(self._answers)}-{time.monotonic_ns()}"
        event: anyio.Event = anyio.Event()
        answer: list[frames.Answer] = []
        self._answers[key] = (event, answer)
        try:
            connection.send(frames.Ask(id=key, subject=subject, arguments=arguments))
            await event.wait()
        finally:
            del self._answers[key]
        return answer[0]

    def report(self, row: OutboundRow) -> None:
        """Tell the runner what became of something that it said, if it wants to know and it has ended."""
        connection, arrived = self._flow.connection, row.delivery in ARRIVED
        wanted = {"all": ARRIVED | BADLY, "failed": BADLY}.get(self._reports, frozenset())
        if connection is not None and row.delivery in wanted:
            failed = None if arrived else (row.reason or row.delivery)
            connection.send(frames.Delivered(id=row.id, failed=failed, platform_id=row.platform_message_id))

    def cut(self) -> bool:
        """End the link that there is; the runner dials again. False: there is none."""
        if self._flow.connection is None:
            return False
        self._flow.connection.cut()
        return True

    def send(self, frame: frames.Cancel | frames.Drain) -> bool:
        """Tell the runner to cancel or drain. False: there is no link to say it on."""
        if self._flow.connection is None:
            return False
        self._flow.connection.send(frame)
        return True

    # Frames, one by one.

    async def _claim(self, frame: frames.Claim, connection: Connection) -> None:
        ids = [MessageId(each) for each in frame.ids if each in self._flow.outstanding]
        if ids:
            self._flow.claimed[frame.turn] = ids
            self._flow.taken.update(ids)
        faults.point("link.claimed")
        self.pulse.show("thinking")
        connection.send(frames.Claimed(turn=frame.turn))
        self._outward.working()

    async def _out(self, frame: frames.Out, connection: Connection) -> None:
        try:
            if frame.kind == REQUEST and self._outward.asked is not None:
                await self._outward.asked(frame.content)
                connection.send(frames.Committed(id=frame.id))
                return
            row = await self._row(frame.to_json())
            kept = await self._mailboxes.run(self.session, lambda mailbox: _kept(mailbox, row))
        except (RefusedError, ConflictError, BadInputError) as error:
            connection.send(frames.Refused(code=code_of(error), text=str(error), id=frame.id))
            return
        connection.send(frames.Committed(id=frame.id, seq=kept.seq if kept is not None else None))
        faults.point("outbound.acknowledged")
        self._outward.said(() if kept is None else (kept,))

    async def _complete(self, frame: frames.Complete, connection: Connection) -> None:
        try:
            outs = [await self._row(each) for each in frame.outs]
            ids = [MessageId(each) for each in frame.ids]
            said = await self._mailboxes.run(
                self.session, lambda mailbox: mailbox.finish(frame.turn, ids, outs, frame.failed)
            )
        except (RefusedError, ConflictError, BadInputError) as error:
            connection.send(frames.Refused(code=code_of(error), text=str(error), id=frame.turn))
            return
        flow = self._flow
        flow.claimed.pop(frame.turn, None)
        for each in frame.ids:
            flow.outstanding.pop(MessageId(each), None)
            flow.taken.discard(MessageId(each))
        connection.send(frames.Completed(turn=frame.turn))
        faults.point("outbound.acknowledged")
        self.pulse.show("idle" if not flow.outstanding else "thinking")
        self._outward.said(said)
        if flow.more_waits:
            await self.pump()

    async def _row(self, said: dict[str, Any]) -> OutboundRow:
        surroundings = self._around
        if surroundings is None:
            raise WireError("malformed", "nothing can be said before hello")
        return await self._sayings.row(said, surroundings.destinations, surroundings.home_address)

    async def _file(self, frame: frames.FileBegin | frames.FileChunk | frames.FileEnd, connection: Connection) -> None:
        reply = await to_thread.run_sync(self._uploads.handle, frame)
        if reply is not None:
            connection.send(reply)

    async def _set_state(self, frame: frames.SetState, connection: Connection) -> None:
        def change(mailbox: Mailbox) -> bool:
            after = mailbox.state()
            after.pop(frame.key, None)
            if frame.value is not None:
                after[frame.key] = frame.value
            # As it travels: escapes can make text six times as long, and the whole must fit into one welcome.
            if len(json.dumps(after, ensure_ascii=False).encode()) > MAX_STATE_BYTES:
                return False
            mailbox.set_state(frame.key, frame.value)
            return True

        if await self._mailboxes.run(self.session, change):
            connection.send(frames.Committed(id=frame.id))
        else:
            connection.send(
                frames.Refused(code="too-large", text=f"the state may have {MAX_STATE_BYTES} bytes", id=frame.id)
            )

    def _tool_stopped(self, frame: frames.ToolStopped) -> None:
        tool = self.pulse.tool_stopped(frame)
        log.warning(
            "tool.stopped",
            session=self.session.id,
            generation=self.generation,
            tool=tool,
            after_s=round(frame.after_ms / 1000, 1),
        )

    def _answered(self, frame: frames.Answer) -> None:
        if waiting := self._answers.get(frame.id):
            event, answer = waiting
            answer.append(frame)
            event.set()


def _kept(mailbox: Mailbox, row: OutboundRow) -> OutboundRow | None:
    """The row as it is kept, now or since it was said before."""
    said = mailbox.append([row])
    return said[0] if said else mailbox.outbound(row.id)


def _destination_json(destination: Destination) -> dict[str, Any]:
    return {
        "name": destination.name,
        "display_name": destination.display_name or destination.name,
        "type": destination.type,
        "channel_type": destination.channel_type,
        "platform_id": destination.platform_id,
        "agent_group_id": destination.agent_group_id,
    }
