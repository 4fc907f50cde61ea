"""The other end of the link in a history: real frames on a socket in memory, and turns that a message's words choose.

It does what the real runner does about its link (dials, resumes, repeats what was not acknowledged, gives up without a
host) and sends files through the real courier. What it says depends only on the rows that it is handed, so that a
second attempt in another container says the same under the same ids.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.logic.spec import RUN
from hermitcrab.model.container import ContainerStatus
from hermitcrab.store.clock import timestamp, utc_now
from hermitcrab.testing.fake_engine import Behaviour, FakeContainer, FakeProcess
from hermitcrab_runner.courier import Courier
from hermitcrab_wire import codec, frames
from hermitcrab_wire.codec import LineBuffer
from hermitcrab_wire.limits import BEAT_INTERVAL_S, PROTOCOL
from hermitcrab_wire.parsing import parse

if TYPE_CHECKING:
    from hermitcrab.testing.histories.world import World

ORPHANED_AFTER_S = 120.0
WELCOME_WITHIN_S = 10.0
ROWS_IN_A_TURN = 5
LONG_WORDS = 40
"""Of a long answer: more than one message of the platforms here takes."""

Row = dict[str, Any]


class SimulatedRunner(Behaviour, asyncio.Protocol):
    def __init__(self, world: World, container: FakeContainer) -> None:
        self._world, self._container = world, container
        self.session, self.generation = container.spec.session, container.spec.generation
        self._loop = world.loop
        self._process: FakeProcess | None = None
        self._transport: Any = None
        self._buffer = LineBuffer()
        self._welcomed = self._welcomed_before = False
        self._unacknowledged: dict[tuple[str, str], frames.Frame] = {}
        self._held: dict[str, Row] = {}
        self._done: set[str] = set()
        self._turn: list[str] = []
        """Rows that are being answered, or whose completion is not acknowledged."""
        self._courier = Courier(self._send, str(world.files))
        self._draining = False
        self._silent = False
        """It hangs: it neither beats nor answers."""
        self._alone_since = world.loop.time()
        self._wait_s = 0.05
        self._timers: set[asyncio.TimerHandle] = set()
        self._held_up: list[Callable[[], None]] = []
        """What came due while the container was frozen."""
        self._obeys = world.dice.random() < 0.9

    # Its process.

    def start(self, process: FakeProcess) -> None:
        self._process = process
        self._world.note("runner", self._container.spec.name, self.generation, "begins")
        self._later(0.02 + self._world.dice.random() * 0.1, self._dial)

    def signal(self, process: FakeProcess, number: signal.Signals) -> None:
        if number is signal.SIGTERM and self._obeys and not self._silent:
            process.exit(0)

    def ended(self) -> None:
        """The container is gone, and this with it."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._held_up.clear()
        self._process = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def frozen(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def thawed(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()
        held_up, self._held_up = self._held_up, []
        for each in held_up:
            each()

    @property
    def connected(self) -> bool:
        return self._welcomed

    # Its link.

    def _dial(self) -> None:
        address = next(mount.source for mount in self._container.spec.mounts if mount.target == RUN)
        self._buffer = LineBuffer()
        try:
            self._loop.dial(str(Path(address) / "link.sock"), lambda: self)
        except OSError:
            self._dial_again()

    def _dial_again(self) -> None:
        if self._loop.time() - self._alone_since > ORPHANED_AFTER_S:
            self._exit(75)
            return
        self._later(self._wait_s * (0.5 + self._world.dice.random() / 2), self._dial)
        self._wait_s = min(self._wait_s * 2, 2.0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        spec = self._container.spec
        hello = frames.Hello(
            protocol=PROTOCOL,
            generation=self.generation,
            provider="echo",
            version="0",
            resumes=self._welcomed_before,
            holds=list(self._held),
            writable=[each for each in spec.env["HERMITCRAB_WRITABLE"].split(":") if each],
        )
        self._write(hello)
        self._later(WELCOME_WITHIN_S, lambda: self._hang_up_without_welcome(transport))

    def _hang_up_without_welcome(self, transport: asyncio.BaseTransport) -> None:
        if self._transport is transport and not self._welcomed:
            self._hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport, self._welcomed = None, False
        if self._process is not None:
            self._dial_again()

    def data_received(self, data: bytes) -> None:
        for line in self._buffer.feed(data):
            if self._process is not None and not self._silent:
                self._handle(parse(codec.decode(line), frames.FROM_HOST))

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _send(self, frame: frames.Frame) -> None:
        """Now, or as soon as there is a link; what wants an acknowledgement is repeated until it has one."""
        match frame:
            case frames.Claim():
                self._unacknowledged["claim", frame.turn] = frame
            case frames.Complete():
                self._unacknowledged["complete", frame.turn] = frame
            case frames.Out() | frames.SetState():
                self._unacknowledged["commit", frame.id] = frame
        if self._welcomed:
            self._write(frame)

    def _write(self, frame: frames.Frame) -> None:
        if self._transport is not None and not self._silent:
            if not isinstance(frame, frames.Beat):
                self._world.note("says", self.session, self.generation, _words(frame))
            self._transport.write(codec.encode(frame.to_json()))

    def _handle(self, frame: frames.Frame) -> None:
        self._world.note("hears", self.session, self.generation, _words(frame))
        self._acknowledge(frame)
        if isinstance(frame, frames.Welcome):
            self._welcome(frame)
        if self._courier.receive(frame):
            return
        match frame:
            case frames.Inbound():
                for row in frame.rows:
                    self._world.handed(self, row)
                    if row["id"] not in self._held and row["id"] not in self._done:
                        self._held[row["id"]] = row
                self._begin_turn()
            case frames.Completed():
                self._completed(frame.turn)
            case frames.Refused() if frame.id is None:
                if frame.code in {"stale-generation", "protocol"}:
                    self._exit(76)
            case frames.Refused():
                self._world.refused(self, frame)
                self._refused(frame)
            case frames.Drain():
                self._draining = True
                self._leave_if_drained()
            case _:
                pass

    def _welcome(self, frame: frames.Welcome) -> None:
        self._world.welcomed(self, frame)
        self._welcomed = self._welcomed_before = True
        self._alone_since, self._wait_s = self._loop.time(), 0.05
        for each in list(self._unacknowledged.values()):
            self._write(each)
        self._beat()
        self._begin_turn()

    def _acknowledge(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Claimed():
                self._unacknowledged.pop(("claim", frame.turn), None)
            case frames.Completed():
                self._unacknowledged.pop(("claim", frame.turn), None)
                self._unacknowledged.pop(("complete", frame.turn), None)
            case frames.Committed():
                self._world.committed(self, frame.id, self._unacknowledged.pop(("commit", frame.id), None))
            case frames.Refused() if frame.id is not None:
                for kind in ("complete", "commit", "claim"):
                    if self._unacknowledged.pop((kind, frame.id), None) is not None:
                        return

    def _beat(self) -> None:
        if self._transport is not None and self._welcomed and not self._silent:
            self._write(frames.Beat(activity="thinking" if self._turn else "idle"))
            transport = self._transport
            self._later(BEAT_INTERVAL_S, lambda: self._beat() if self._transport is transport else None)

    # Its turns.

    def _begin_turn(self) -> None:
        triggers = [key for key, row in self._held.items() if row["trigger"]][:ROWS_IN_A_TURN]
        if self._turn or not triggers or self._process is None:
            return
        context = [key for key, row in self._held.items() if not row["trigger"]]
        self._turn = [*context, *triggers]
        self._send(frames.Claim(turn=f"turn-{triggers[0]}", ids=self._turn))
        self._later(self._world.thinks_s(self._verb(triggers[0])), lambda: self._answer(triggers))

    def _verb(self, key: str) -> str:
        return str(self._held[key]["content"].get("text", "echo")).split()[0] if key in self._held else "echo"

    def _answer(self, triggers: list[str]) -> None:
        outs: list[Row] = []
        failed = None
        for key in triggers:
            row = self._held.get(key)
            if row is None:
                return
            verb = self._verb(key)
            match verb:
                case "poison":
                    self._exit(70)
                    return
                case "die" if self._world.first_time(key, verb):
                    self._exit(1)
                    return
                case "hang" if self._world.first_time(key, verb):
                    self._silent = True
                    return
                case "hang-up" if self._world.first_time(key, verb):
                    self._hang_up()
                case "fail":
                    failed = "the provider could not"
                    continue
            outs += self._said(verb, key, row)
        self._courier.send(frames.Complete(turn=f"turn-{triggers[0]}", ids=list(self._turn), outs=outs, failed=failed))

    def _said(self, verb: str, key: str, row: Row) -> list[Row]:
        """What a turn ends with; what is said in its middle is sent at once."""
        words = str(row["content"].get("text") or row["content"].get("selectedOption"))
        answer: Row = {"id": f"out-{key}", "kind": "chat", "content": {"text": f"Echo {words}"}, "in_reply_to": key}
        match verb:
            case "mid":
                self._courier.send(
                    frames.Out(id=f"mid-{key}", kind="chat", content={"text": f"Mid {words}"}, in_reply_to=key)
                )
            case "state":
                self._world.sets_state(self, words)
                self._send(frames.SetState(id=f"state-{key}", key="last", value=words))
            case "file" | "large":
                name = self._world.file_for(words, large=verb == "large")
                answer["content"] = {"text": f"Echo {words}", "files": [name]}
                answer["files"] = [name]
            case "long":
                answer["content"] = {"text": f"Echo {words} " + "and so on " * LONG_WORDS}
            case "later":
                answer["deliver_after"] = timestamp(utc_now() + timedelta(seconds=self._world.later_s(key)))
            case "edit":
                content = {"operation": "edit", "messageId": f"out-{key}", "text": f"Edited {words}"}
                return [answer, {"id": f"edit-{key}", "kind": "chat", "content": content, "in_reply_to": key}]
            case "react":
                content = {"operation": "reaction", "messageId": key, "emoji": "+1"}
                return [{"id": f"react-{key}", "kind": "chat", "content": content, "in_reply_to": key}, answer]
            case "ask":
                question: Row = {
                    "type": "ask_question",
                    "title": "T",
                    "question": f"Which {words}?",
                    "options": ["a", "b"],
                }
                return [answer, {"id": f"ask-{key}", "kind": "chat", "content": question, "in_reply_to": key}]
            case "elsewhere":
                away = {"id": f"away-{key}", "kind": "chat", "content": {"text": f"Away {words}"}, "to": "desk"}
                return [answer, away]
        return [answer]

    def _completed(self, turn: str) -> None:
        if not self._turn:
            return
        for key in self._turn:
            self._world.completed(self, key)
            self._held.pop(key, None)
            self._done.add(key)
        self._turn = []
        del turn
        self._leave_if_drained()
        self._begin_turn()

    def _refused(self, frame: frames.Refused) -> None:
        """A completion was refused: the turn ends without words, as the real runner would end it with an excuse."""
        if self._turn and frame.id is not None and frame.id.startswith("turn-"):
            self._send(frames.Complete(turn=frame.id, ids=list(self._turn), outs=[], failed="it was refused"))

    def _leave_if_drained(self) -> None:
        if self._draining and not self._turn and not self._unacknowledged:
            self._write(frames.Bye(reason="drained"))
            self._exit(0)

    # Its time.

    def _later(self, seconds: float, function: Callable[[], None]) -> None:
        def due() -> None:
            self._timers.discard(timer)
            if self._process is None:
                return
            if self._container.status is ContainerStatus.FROZEN:
                self._held_up.append(function)
            else:
                function()

        timer = self._loop.call_later(seconds, due, context=self._world.context)
        self._timers.add(timer)

    def _exit(self, code: int) -> None:
        if self._process is not None:
            self._process.exit(code)


def _words(frame: frames.Frame) -> str:
    for name in ("turn", "id", "ids"):
        if (value := getattr(frame, name, None)) is not None:
            return f"{frame.type} {value}"
    if isinstance(frame, frames.Inbound):
        return f"inbound {[row['id'] for row in frame.rows]}"
    return frame.type
