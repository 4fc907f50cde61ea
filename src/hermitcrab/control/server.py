"""The host's admin socket, `<home>/run/control.sock`: for the user who runs the host (and root), and nobody else.

The socket's mode keeps others out; the peer's uid, told by the kernel, is checked on top. A request is answered in a
task of its own, so that a slow one holds up no other; everything a client can make the host hold is bounded.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import structlog
from anyio.abc import SocketAttribute, SocketStream, TaskGroup, TaskStatus

from hermitcrab.control.protocol import CANCEL, INTERNAL, Json, Params, error_to_json
from hermitcrab.errors import BadInputError, HermitcrabError, sole
from hermitcrab.settings.sockets import bind_unix
from hermitcrab_wire.codec import LineBuffer, WireError, decode, encode

SOCKET_NAME = "control.sock"

MOST_CONNECTIONS = 64
MOST_REQUESTS = 64
"""Requests that run at once on one connection."""

READ_BYTES = 65_536
LINES_WAITING = 64
"""Lines that wait to be written to one client; beyond that, its requests wait."""

ACCEPT_AGAIN_AFTER_S = 0.2
SENT_WITHIN_S = 30.0
"""A client that does not read for this long loses its connection."""

Emit = Callable[[Json], Awaitable[None]]
Method = Callable[[Params, Emit], Awaitable[Json]]
"""Answers one request. A streaming method calls `emit` on the way."""

_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def serving(folder: Path, methods: Mapping[str, Method]) -> AsyncIterator[None]:
    """Answer requests on `folder`/control.sock for as long as the block lasts."""
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(ControlServer(folder, methods).serve)
            yield
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise sole(group) from None


class ControlServer:
    def __init__(
        self, folder: Path, methods: Mapping[str, Method], *, allowed_uids: frozenset[int] | None = None
    ) -> None:
        self._folder = folder
        self._methods = methods
        self._allowed_uids = allowed_uids if allowed_uids is not None else frozenset({0, os.geteuid()})
        self._connections = 0

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `started` means that a client can connect."""
        path = self._folder / SOCKET_NAME
        with bind_unix(self._folder, SOCKET_NAME, 0o600) as listener:
            ours = path.stat()
            try:
                async with anyio.create_task_group() as tasks:
                    task_status.started()
                    while True:
                        tasks.start_soon(self._serve_one, await _accepted(listener))
            finally:
                # Whoever bound here since then keeps what is theirs.
                with suppress(FileNotFoundError):
                    if os.path.samestat(ours, path.stat()):
                        path.unlink()

    async def _serve_one(self, stream: SocketStream) -> None:
        self._connections += 1
        try:
            async with stream:
                if (uid := _peer_uid(stream)) not in self._allowed_uids:
                    _log.warning("control.refused", uid=uid)
                elif self._connections > MOST_CONNECTIONS:
                    _log.warning("control.too-many-connections", most=MOST_CONNECTIONS)
                else:
                    await _Connection(stream, self._methods).run()
        except Exception:  # noqa: BLE001  # one connection is a boundary: the others and the host go on
            _log.exception("control.connection-failed")
        finally:
            self._connections -= 1


class _Connection:
    """One client. Lines out go through one queue, so that a request that is cancelled never leaves half a line."""

    def __init__(self, stream: SocketStream, methods: Mapping[str, Method]) -> None:
        self._stream = stream
        self._methods = methods
        self._running: dict[int, anyio.CancelScope] = {}
        self._outgoing, self._lines = anyio.create_memory_object_stream[bytes](LINES_WAITING)

    async def run(self) -> None:
        async with anyio.create_task_group() as writing:
            writing.start_soon(self._write)
            with self._outgoing:
                async with anyio.create_task_group() as requests:
                    await self._read(requests)
                    requests.cancel_scope.cancel()

    async def _read(self, requests: TaskGroup) -> None:
        lines = LineBuffer()
        try:
            while True:
                for line in lines.feed(await self._stream.receive(READ_BYTES)):
                    await self._begin(decode(line), requests)
        except WireError as error:
            # The stream is out of step: nothing after this can be trusted to be where it seems.
            await self._send({"id": None, "error": error_to_json(error)})
        except _GONE:
            return

    async def _write(self) -> None:
        """Send what is queued until the queue is closed; a client that does not read ends its connection."""
        with self._lines:
            try:
                async for line in self._lines:
                    with anyio.fail_after(SENT_WITHIN_S):
                        await self._stream.send(line)
            except (TimeoutError, *_GONE):
                await anyio.aclose_forcefully(self._stream)

    async def _begin(self, message: Json, requests: TaskGroup) -> None:
        number, method, params = message.get("id"), message.get("method"), message.get("params", {})
        if not isinstance(number, int) or isinstance(number, bool) or number in self._running:
            raise WireError("malformed", "a request needs an `id` of its own, a whole number")
        try:
            if not isinstance(method, str) or not isinstance(params, dict):
                raise BadInputError("A request has a `method` and `params`.")
            if method == CANCEL:
                await self._send({"id": number, "result": {"cancelled": self._cancel(Params(method, params))}})
                return
            if (found := self._methods.get(method)) is None:
                raise BadInputError(
                    f"This host knows no method {method[:60]!r}.", hint="Host and client may differ in version."
                )
            if len(self._running) >= MOST_REQUESTS:
                raise HermitcrabError(f"More than {MOST_REQUESTS} requests at once.", hint="Wait for some answers.")
        except HermitcrabError as error:
            await self._send({"id": number, "error": error_to_json(error)})
            return
        scope = self._running[number] = anyio.CancelScope()
        requests.start_soon(self._answer, number, found, Params(method, params), scope)

    def _cancel(self, params: Params) -> bool:
        scope = self._running.get(params.integer("request", default=-1, least=-1, most=2**53))
        if scope is None:
            return False
        scope.cancel()
        return True

    async def _answer(self, number: int, method: Method, params: Params, scope: anyio.CancelScope) -> None:
        async def emit(event: Json) -> None:
            await self._send({"id": number, "event": event})

        reply: Json = {"error": error_to_json(HermitcrabError("The request was cancelled."))}
        try:
            with scope:
                reply = await _outcome(method, params, emit)
        finally:
            del self._running[number]
        await self._send({"id": number, **reply})

    async def _send(self, message: Json) -> None:
        try:
            line = encode(message)
        except WireError as error:
            line = encode({"id": message["id"], "error": error_to_json(error)})
        try:
            await self._outgoing.send(line)
        except anyio.BrokenResourceError:
            return  # the writer gave up on this client; the reader is about to see the end


async def _outcome(method: Method, params: Params, emit: Emit) -> Json:
    try:
        return {"result": await method(params, emit)}
    except HermitcrabError as error:
        return {"error": error_to_json(error)}
    except Exception:  # noqa: BLE001  # a handler is a boundary: the fault is logged, other requests go on
        _log.exception("control.request-failed")
        failure = error_to_json(HermitcrabError("The host failed at this request.", hint="Its log says where."))
        return {"error": {**failure, "code": INTERNAL}}


async def _accepted(listener: socket.socket) -> SocketStream:
    while True:
        await anyio.wait_readable(listener)
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue  # the client left while it queued
        except OSError as error:
            # Out of descriptors: some request may give one back.
            _log.warning("control.accept-failed", reason=str(error))
            await anyio.sleep(ACCEPT_AGAIN_AFTER_S)
            continue
        connection.setblocking(False)
        return await SocketStream.from_socket(connection)


def _peer_uid(stream: SocketStream) -> int:
    raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610  # not a database
    credentials = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid
