"""The host's end of the links: one listening socket for each live session, one connection on it.

This file knows bytes, frames and limits; what frames mean is `exchange.py`'s. The peer is an adversary (law 4): it may
send anything, at any speed, and never read. It can end its own link that way, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio
import structlog
from anyio.lowlevel import checkpoint

from hermitcrab.errors import HermitcrabError
from hermitcrab.settings.sockets import bind_unix
from hermitcrab_wire import codec, frames
from hermitcrab_wire.codec import LineBuffer, WireError
from hermitcrab_wire.limits import MAX_FRAME_BYTES
from hermitcrab_wire.parsing import parse

SOCKET_NAME = "link.sock"

_OURS_TO_REMOVE: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
"""The socket was bound through a descriptor that is closed by now: later Pythons would look for it, to remove it in the
end, through whatever has that number then."""

_READ_BYTES = 64 * 1024
_UNREAD_BYTES_AT_MOST = 2 * MAX_FRAME_BYTES
"""What a peer that does not read may leave lying in our memory before its link is cut."""

_HELD_FOR_S = 0.01
"""How long what follows is held for a peer that has not read what came before."""

_FRAMES_AT_A_TIME = 16
_HELLO_WITHIN_S = 10.0
_UNKNOWN_FRAMES_AT_MOST = 100
_PAUSE_AFTER_FAILURE_S = 0.5
_FRAMES_FOR_A_LINK = 20
"""What a link costs before its first frame, as frames: greeting a runner takes far longer than reading a line."""

_CONNECTIONS_AT_MOST = 4
"""On one session's socket at a time: the runner's, and a few that have not been cut yet."""

Beside = Callable[..., object]
"""Starts a function with its arguments as a task, as a task group's `start_soon` does, or, when it is closed, not."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLimits:
    """How fast one session may send before it is read more slowly, over all its links. Never a reason to refuse."""

    frames_per_s: float = 2000.0
    burst_frames: float = 4000.0
    bytes_per_s: float = 32 * 1024 * 1024
    burst_bytes: float = 64 * 1024 * 1024


class Connection:
    """One accepted connection, as the exchange uses it. `send` never waits and never raises."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.closed = False
        self._held = bytearray()
        """What follows while a peer does not read, kept together: from Python 3.12 on a transport keeps each piece that
        it was given by itself, and counts all of them again with every other one."""
        self._lying = 0
        """How much the transport had when it was last given something that it could not write at once."""
        self._later: asyncio.TimerHandle | None = None

    def send(self, frame: frames.Frame) -> bool:
        """False: it was not sent, and never will be, as no frame can hold it. On a link that is gone, all is lost."""
        if self.closed or self._writer.is_closing():
            return True
        try:
            line = codec.encode(frame.to_json())
        except WireError as error:
            log.error("link.frame-not-sent", type=frame.type, code=error.code, text=str(error))
            return False
        if self._later is None and not self._writer.transport.get_write_buffer_size():
            self._writer.write(line)
            self._lying = self._writer.transport.get_write_buffer_size()
        else:
            self._held += line
            if self._later is None:
                self._later = asyncio.get_running_loop().call_later(_HELD_FOR_S, self.let_go)
        if self._lying + len(self._held) > _UNREAD_BYTES_AT_MOST:
            log.warning("link.peer-does-not-read")
            self.cut()
        return True

    def let_go(self) -> None:
        """Give the transport what was held back."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._held and not self.closed and not self._writer.is_closing():
            self._writer.write(bytes(self._held))
            self._lying = self._writer.transport.get_write_buffer_size()
        self._held.clear()

    def cut(self) -> None:
        """Close at once; what was not sent yet is dropped."""
        if not self.closed:
            self.closed = True
            self.let_go()
            self._writer.transport.abort()


class LinkHandler(Protocol):
    """What becomes of a session's frames."""

    async def greet(self, hello: frames.Hello, connection: Connection) -> frames.Refused | None:
        """Take the connection over, or say why not."""

    async def handle(self, frame: frames.Frame, connection: Connection) -> None:
        """Act on one frame. Raises WireError when the frame breaks the contract."""

    def broke_contract(self, error: WireError) -> None:
        """The peer sent what no honest runner sends; its link has been cut."""

    def gone(self, connection: Connection) -> None:
        """The connection ended, for whatever reason."""


@asynccontextmanager
async def listening(
    folder: Path, handler: LinkHandler, beside: Beside, *, limits: LinkLimits | None = None
) -> AsyncIterator[Callable[[], None]]:
    """Serve `folder`/link.sock while the context is open. Leaving it cuts every connection.

    What serves them ends a moment after that, as it may be what leaves: whoever gave `beside` waits for it.
    """
    # One for all links: whoever dials again gets no new burst by it.
    throttle = _Throttle(limits or LinkLimits())
    open_connections: set[Connection] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(writer)
        if len(open_connections) >= _CONNECTIONS_AT_MOST:
            connection.cut()
            return
        open_connections.add(connection)
        beside(serve, reader, connection)

    async def serve(reader: asyncio.StreamReader, connection: Connection) -> None:
        try:
            await throttle.pay(_FRAMES_FOR_A_LINK, 0)
            await _serve_one(reader, connection, handler, throttle)
        except ConnectionError:
            log.debug("link.broken")
        except (HermitcrabError, OSError) as error:
            # A full disk, say. The runner dials again and repeats what was not acknowledged; not at full speed.
            log.warning("link.failed", folder=str(folder), text=str(error))
            await anyio.sleep(_PAUSE_AFTER_FAILURE_S)
        except Exception:  # the edge of one link: an error of ours costs this connection
            log.exception("link.broken-by-us", folder=str(folder))
            await anyio.sleep(_PAUSE_AFTER_FAILURE_S)
        finally:
            connection.cut()
            open_connections.discard(connection)
            handler.gone(connection)

    sock = bind_unix(folder, SOCKET_NAME, 0o666)
    # Not serving yet: a start that is called off in the middle of this must not leave a socket that nobody closes.
    server = await asyncio.start_unix_server(
        accept, sock=sock, limit=_READ_BYTES, start_serving=False, **_OURS_TO_REMOVE
    )

    def cut_all() -> None:
        for each in list(open_connections):
            each.cut()

    try:
        await server.start_serving()
        yield cut_all
    finally:
        server.close()
        cut_all()
        with contextlib.suppress(FileNotFoundError):
            (folder / SOCKET_NAME).unlink()


async def _serve_one(
    reader: asyncio.StreamReader, connection: Connection, handler: LinkHandler, throttle: _Throttle
) -> None:
    unknown = 0
    greeted = False
    incoming = _frames(reader, throttle)
    try:
        while True:
            try:
                message = await (anext(incoming) if greeted else _first(incoming))
            except (StopAsyncIteration, TimeoutError):
                return
            try:
                frame = parse(message, frames.FROM_RUNNER)
            except WireError as error:
                if error.code != "unknown-type":
                    raise
                unknown += 1
                if unknown > _UNKNOWN_FRAMES_AT_MOST:
                    raise WireError("malformed", "too many frames of unknown types") from error
                connection.send(frames.Refused(code=error.code, text=str(error)))
                continue
            if isinstance(frame, frames.Hello):
                refusal = await handler.greet(frame, connection)
                if refusal is not None:
                    connection.send(refusal)
                    # The refusal must reach the runner, which exits on it.
                    await _flushed(connection)
                    return
                greeted = True
            elif not greeted:
                raise WireError("malformed", "the first frame must be hello")
            else:
                await handler.handle(frame, connection)
    except WireError as error:
        connection.send(frames.Refused(code=error.code, text=str(error)))
        await _flushed(connection)
        handler.broke_contract(error)
    finally:
        await incoming.aclose()


async def _first(incoming: AsyncGenerator[dict[str, object]]) -> dict[str, object]:
    """What the peer says before it is known. Raises TimeoutError when it says nothing in time."""
    with anyio.fail_after(_HELLO_WITHIN_S):
        return await anext(incoming)


async def _flushed(connection: Connection) -> None:
    connection.let_go()
    with contextlib.suppress(ConnectionError), anyio.move_on_after(1):
        await connection._writer.drain()  # noqa: SLF001  # both belong to this file
        connection._writer.close()  # noqa: SLF001
        await connection._writer.wait_closed()  # noqa: SLF001


async def _frames(reader: asyncio.StreamReader, throttle: _Throttle) -> AsyncGenerator[dict[str, object]]:
    buffer = LineBuffer()
    while data := await reader.read(_READ_BYTES):
        lines = buffer.feed(data)
        await throttle.pay(len(lines), len(data))
        for number, line in enumerate(lines, start=1):
            yield codec.decode(line)
            if number % _FRAMES_AT_A_TIME == 0:
                await checkpoint()  # One read may hold hundreds; others are served in between.


class _Throttle:
    """Two token buckets. Paying waits until there is enough: the socket's own back-pressure does the rest."""

    def __init__(self, limits: LinkLimits) -> None:
        self._limits = limits
        self._frames = limits.burst_frames
        self._bytes = limits.burst_bytes
        self._at = time.monotonic()

    async def pay(self, frame_count: int, byte_count: int) -> None:
        now = time.monotonic()
        passed, self._at = now - self._at, now
        self._frames = min(self._limits.burst_frames, self._frames + passed * self._limits.frames_per_s) - frame_count
        self._bytes = min(self._limits.burst_bytes, self._bytes + passed * self._limits.bytes_per_s) - byte_count
        owed_s = max(-self._frames / self._limits.frames_per_s, -self._bytes / self._limits.bytes_per_s)
        if owed_s > 0:
            await anyio.sleep(owed_s)
