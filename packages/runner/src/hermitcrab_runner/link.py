"""The runner's end of the link: dials the host, says hello, repeats what was not acknowledged, and beats.

One thread runs `Link.run` and owns the connection; any thread may `send`. What the host says goes, frame by frame, to
`deliver`. A broken link is re-dialled for as long as the host may be restarting; a container without a host ends.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from hermitcrab_runner.logs import note
from hermitcrab_runner.probe import Proof
from hermitcrab_wire import frames
from hermitcrab_wire.codec import LineBuffer, WireError, decode, encode
from hermitcrab_wire.limits import BEAT_INTERVAL_S, MAX_FRAME_BYTES, PROTOCOL
from hermitcrab_wire.parsing import parse

EXIT_ORPHANED = 75
EXIT_STALE = 76
EXIT_PROTOCOL = 77

_READ_BYTES = 64 * 1024
_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 2.0
_GROWTH = 2
_GROWTH_WHEN_TOLD = 8
"""Of the pause between two dials. Who is told when a host listens again need not look for it often; hundreds would,
beside the host that starts."""
_WELCOME_WITHIN_S = 10.0
_SHORTEST_BEAT_S = 0.05
_LONGEST_BEAT_S = 600.0
_BACKLOG_BYTES_AT_MOST = 2 * MAX_FRAME_BYTES
"""Beats and logs are left out beyond this: the host does not read, and has no use for old ones."""

_FINAL_REFUSALS = {"stale-generation": EXIT_STALE, "protocol": EXIT_PROTOCOL}


class Pulse(NamedTuple):
    """What the runner does right now, for its beats."""

    activity: str = "idle"
    detail: str | None = None
    until: float | None = None
    """On the monotonic clock."""


class LinkSettings(NamedTuple):
    path: str
    generation: int
    provider: str
    version: str
    born_at_s: float
    orphan_s: float
    beat_s: float = BEAT_INTERVAL_S
    proof: Proof = Proof([], [])
    """Where it can write, told in each hello."""
    reports: str = "failed"
    """Of which ends of what it said it wants to hear."""


class Link:
    def __init__(
        self,
        settings: LinkSettings,
        *,
        holds: Callable[[], list[str]],
        deliver: Callable[[frames.Frame], None],
        lost: Callable[[int], None],
        on_signal: Callable[[int], None] = lambda _number: None,
    ) -> None:
        """`lost` is called once, with an exit code, when there is no use in dialling any more."""
        self._settings = settings
        self._holds = holds
        self._deliver = deliver
        self._lost = lost
        self._on_signal = on_signal
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._welcomed = False
        self._welcomed_before = False
        self._backlog = bytearray()
        self._unacknowledged: dict[tuple[str, str], bytes] = {}
        self._pulse = Pulse()
        self._closed = False
        self._beat_s = settings.beat_s
        self._announced = False
        """Something was made in the socket's folder: a host may listen there again."""
        self._folder = -1
        self._wake_reader, self.wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        """The writing end also takes signal numbers (signal.set_wakeup_fd)."""

    @property
    def unacknowledged(self) -> int:
        return len(self._unacknowledged)

    def send(self, frame: frames.Frame) -> None:
        """Say it now, or as soon as there is a link. Frames without an acknowledgement are lost with a lost link.

        Raises WireError for a frame that cannot be sent at all.
        """
        line = encode(frame.to_json())
        key = _key_of(frame)
        with self._lock:
            if key is not None:
                self._unacknowledged[key] = line
            if self._welcomed and (key is not None or len(self._backlog) < _BACKLOG_BYTES_AT_MOST):
                self._backlog += line
                self._flush()

    def show(self, pulse: Pulse) -> None:
        """What the next beats tell. What changes how long the host should wait is told at once.

        That a turn begins or ends, claims and completions tell already.
        """
        before, self._pulse = self._pulse, pulse
        if before != pulse and not {before.activity, pulse.activity} <= {"idle", "thinking"}:
            self._beat()

    def close(self) -> None:
        """End the link; `run` returns soon. What was sent is still flushed, within a second."""
        self._closed = True
        self._wake()

    def run(self) -> None:
        wait_s = _FIRST_WAIT_S
        alone_since = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while not self._closed:
                refusal = self._converse(selector)
                if self._welcomed:
                    wait_s, alone_since = _FIRST_WAIT_S, time.monotonic()
                self._disconnect(selector)
                if self._closed:
                    return
                if refusal is not None and (code := _FINAL_REFUSALS.get(refusal.code)) is not None:
                    note("link.refused", code=refusal.code, text=refusal.text)
                    self._lost(code)
                    return
                if time.monotonic() - alone_since >= self._settings.orphan_s:
                    note("link.orphaned", after_s=round(time.monotonic() - alone_since))
                    self._lost(EXIT_ORPHANED)
                    return
                # Between half of it and all of it, so that many runners do not dial a restarted host in step.
                announced = self._pause(selector, wait_s * (0.5 + os.urandom(1)[0] / 510))
                told = self._ask_to_be_told()  # before dialling, so that no socket is made unseen in between
                longer_s = wait_s * (_GROWTH_WHEN_TOLD if told else _GROWTH)
                wait_s = _FIRST_WAIT_S if announced else min(longer_s, _LONGEST_WAIT_S)

    def _converse(self, selector: selectors.BaseSelector) -> frames.Refused | None:
        """One connection from dialling to its end. Returns a refusal that came instead of a welcome."""
        try:
            connection = connect_unix(self._settings.path)
        except OSError as error:
            note("link.unreachable", error=error.strerror or error)
            return None
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
        buffer = LineBuffer()
        with self._lock:
            self._socket = connection
            self._backlog = bytearray(encode(self._hello().to_json()))
            self._flush()
        deadline = time.monotonic() + _WELCOME_WITHIN_S
        next_beat = deadline
        while True:
            if self._welcomed and (now := time.monotonic()) >= next_beat:
                self._beat()
                next_beat = now + self._beat_s
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._backlog else 0)
            selector.modify(connection, events)
            ready = selector.select(max(0.0, next_beat - time.monotonic()))
            if not ready and not self._welcomed:
                note("link.no-welcome")
                return None
            for key, mask in ready:
                if key.fd == self._wake_reader:
                    self._hear_signals()
                    continue
                if mask & selectors.EVENT_WRITE:
                    with self._lock:
                        self._flush()
                if mask & selectors.EVENT_READ:
                    welcomed = self._welcomed
                    try:
                        data = connection.recv(_READ_BYTES)
                        lines = buffer.feed(data)
                    except BlockingIOError:
                        continue
                    except (OSError, WireError) as error:
                        note("link.broken", error=error)
                        return None
                    for line in lines:
                        refusal = self._hear(line)
                        if refusal is not None and not self._welcomed:
                            return refusal
                    if not data:
                        return None
                    if self._welcomed and not welcomed:
                        next_beat = time.monotonic() + self._beat_s
            if self._closed:
                return None

    def _hello(self) -> frames.Hello:
        return frames.Hello(
            protocol=PROTOCOL,
            generation=self._settings.generation,
            provider=self._settings.provider,
            version=self._settings.version,
            pid=os.getpid(),
            uptime_ms=round((time.monotonic() - self._settings.born_at_s) * 1000),
            rss_kb=resident_kb(),
            resumes=self._welcomed_before,
            holds=self._holds(),
            writable=self._settings.proof.writable,
            unwritable=self._settings.proof.unwritable,
            reports=self._settings.reports,
        )

    def _hear(self, line: bytes) -> frames.Refused | None:
        try:
            frame = parse(decode(line), frames.FROM_HOST)
        except WireError as error:
            # A newer host may say more than this runner understands.
            note("link.not-understood", code=error.code, error=error)
            return None
        if isinstance(frame, frames.Welcome):
            self._beat_s = _interval(frame.config.get("beat_s"), self._settings.beat_s)
            with self._lock:
                self._welcomed = self._welcomed_before = True
                self._backlog += b"".join(self._unacknowledged.values())
                self._flush()
            self._beat()
        elif not self._welcomed:
            return frame if isinstance(frame, frames.Refused) else None
        self._acknowledge(frame)
        self._deliver(frame)
        return None

    def _acknowledge(self, frame: frames.Frame) -> None:
        keys: list[tuple[str, str]] = []
        match frame:
            case frames.Claimed():
                keys = [("claim", frame.turn)]
            case frames.Completed():
                keys = [("claim", frame.turn), ("complete", frame.turn)]
            case frames.Committed():
                keys = [("commit", frame.id)]
            case frames.Refused() if frame.id is not None:
                keys = [("complete", frame.id), ("commit", frame.id), ("claim", frame.id)]
        with self._lock:
            for key in keys:
                if self._unacknowledged.pop(key, None) is not None and isinstance(frame, frames.Refused):
                    return  # The host refuses one frame at a time.

    def _beat(self) -> None:
        pulse = self._pulse
        until_ms = None if pulse.until is None else max(0, round((pulse.until - time.monotonic()) * 1000))
        self.send(frames.Beat(activity=pulse.activity, detail=pulse.detail, until_ms=until_ms, rss_kb=resident_kb()))

    def _flush(self) -> None:
        """Write what the socket takes. Call with the lock held."""
        if self._socket is None or not self._backlog:
            return
        try:
            sent = self._socket.send(self._backlog)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # The reading side hears of it, too.
        del self._backlog[:sent]
        if self._backlog:
            self._wake()

    def _wake(self) -> None:
        try:
            os.write(self.wake_writer, b"\0")
        except BlockingIOError:
            return  # It is full of wakes already.

    def _hear_signals(self) -> None:
        try:
            numbers = os.read(self._wake_reader, 4096)
        except BlockingIOError:
            return
        for number in numbers:
            if number == signal.SIGIO:
                self._announced = True
            elif number:
                self._on_signal(number)

    def _pause(self, selector: selectors.BaseSelector, seconds: float) -> bool:
        """Wait, but no longer than until a host may listen again; whether it may."""
        until = time.monotonic() + seconds
        while not self._closed and not self._announced and (left := until - time.monotonic()) > 0:
            for _ in selector.select(left):
                self._hear_signals()
        announced, self._announced = self._announced, False
        return announced

    def _ask_to_be_told(self) -> bool:
        """Have the kernel send SIGIO once when something is made in the socket's folder. Whether it will.

        Without it (a sandbox that emulates the kernel, or nobody handles the signal) the pauses alone must do.
        """
        if not callable(signal.getsignal(signal.SIGIO)):
            return False
        import fcntl  # noqa: PLC0415  # most runners never lose their link

        try:
            if self._folder < 0:
                path = os.path.dirname(self._settings.path)  # pathlib would cost the runner memory
                self._folder = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.fcntl(self._folder, fcntl.F_NOTIFY, fcntl.DN_CREATE)
        except OSError as error:
            note("link.not-watched", error=error.strerror or error)
            return False
        return True

    def _disconnect(self, selector: selectors.BaseSelector) -> None:
        with self._lock:
            connection, self._socket = self._socket, None
            self._welcomed = False
            last_words, self._backlog = bytes(self._backlog), bytearray()
        if connection is None:
            return
        selector.unregister(connection)
        with connection:
            if self._closed and last_words:
                connection.settimeout(1.0)
                try:
                    connection.sendall(last_words)
                except OSError as error:
                    note("link.last-words-lost", error=error)


def connect_unix(path: str) -> socket.socket:
    """A connected socket. A path that is longer than an address may be goes by its folder's descriptor."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = -1
    try:
        if len(os.fsencode(path)) > 107:  # sizeof(sun_path) - 1
            head, _, name = path.rpartition("/")
            folder = os.open(head or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            path = f"/proc/self/fd/{folder}/{name}"
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return connection


def _interval(value: object, usual: float) -> float:
    """How often to beat, as the host wants it: within reason, whatever it says."""
    if not (isinstance(value, (int, float)) and value > 0):
        return usual
    return min(max(value, _SHORTEST_BEAT_S), _LONGEST_BEAT_S)


def resident_kb() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def _key_of(frame: frames.Frame) -> tuple[str, str] | None:
    """What the host's acknowledgement of a frame names; None for a frame that gets none."""
    match frame:
        case frames.Claim():
            return "claim", frame.turn
        case frames.Complete():
            return "complete", frame.turn
        case frames.Out() | frames.SetState():
            return "commit", frame.id
        case _:
            return None
