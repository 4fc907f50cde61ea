"""The client's end of the control socket: what every `crab` command and the interactive chat speak through."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import anyio
from anyio.abc import SocketStream
from anyio.streams.memory import MemoryObjectSendStream

from hermitcrab.control.protocol import CANCEL, Json, error_from_json
from hermitcrab.errors import HermitcrabError, HostUnreachableError, sole
from hermitcrab.settings.home import Home
from hermitcrab.settings.sockets import connect_unix
from hermitcrab_wire.codec import LineBuffer, WireError, decode, encode

READ_BYTES = 65_536
SENT_WITHIN_S = 10.0

START_HINT = "Start it with: crab up"


class ControlClient:
    """One connection to the host of a home. Calls and streams may run at once."""

    def __init__(self, stream: SocketStream, home: Path) -> None:
        self._stream = stream
        self._numbers = itertools.count(1)
        self._sending = anyio.Lock()
        self._replies: dict[int, MemoryObjectSendStream[Json]] = {}
        self._lost: HermitcrabError = HostUnreachableError(
            f"The host on {home} went away before it answered.", hint=START_HINT
        )
        self._open = True

    @classmethod
    @asynccontextmanager
    async def connect(cls, home: Home) -> AsyncIterator[Self]:
        """A connection for as long as the block lasts. Raises HostUnreachableError when no host answers."""
        stream = await _open(home)
        try:
            async with stream, anyio.create_task_group() as tasks:
                client = cls(stream, home.path)
                tasks.start_soon(client._receive)
                yield client
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise sole(group) from None

    async def call(self, method: str, **params: object) -> Json:
        """The result of one request. Raises the error that the host reported, or HostUnreachableError.

        Parameters that are None are left out.
        """
        async with self._request(method, params) as replies:
            async for reply in replies:
                if "event" not in reply:
                    return _result(reply)
        raise self._lost

    async def stream(self, method: str, **params: object) -> AsyncGenerator[Json]:
        """The events of one request, until it ends. Who leaves early wraps it in `contextlib.aclosing`."""
        async with self._request(method, params) as replies:
            async for reply in replies:
                if "event" not in reply:
                    _result(reply)
                    return
                if isinstance(event := reply["event"], dict):
                    yield event
        raise self._lost

    @asynccontextmanager
    async def _request(self, method: str, params: dict[str, object]) -> AsyncIterator[AsyncIterable[Json]]:
        """Send a request; its replies, up to and including the last. Left early, the host is told to stop."""
        if not self._open:
            raise self._lost
        number = next(self._numbers)
        sender, replies = anyio.create_memory_object_stream[Json](math.inf)
        self._replies[number] = sender
        try:
            with sender, replies:
                given = {name: value for name, value in params.items() if value is not None}
                await self._send({"id": number, "method": method, "params": given})
                yield replies
        finally:
            if self._replies.pop(number, None) is not None and self._open:
                # A host that went away meanwhile has nothing left to cancel.
                with suppress(HermitcrabError):
                    await self._send({"id": next(self._numbers), "method": CANCEL, "params": {"request": number}})

    async def _send(self, message: Json) -> None:
        line = encode(message)
        try:
            # Half a line would spoil the connection for everybody on it, so that no cancellation may cut it.
            with anyio.CancelScope(shield=True), anyio.fail_after(SENT_WITHIN_S):
                async with self._sending:
                    await self._stream.send(line)
        except (TimeoutError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise self._lost from error

    async def _receive(self) -> None:
        lines = LineBuffer()
        try:
            while True:
                for line in lines.feed(await self._stream.receive(READ_BYTES)):
                    self._dispatch(decode(line))
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, WireError):
            self._open = False
            for sender in self._replies.values():
                sender.close()

    def _dispatch(self, message: Json) -> None:
        number = message.get("id")
        if number is None and "error" in message:
            # The host could not read what we sent and gives the connection up: that is how every request ends.
            self._lost = error_from_json(message["error"])
            return
        if not isinstance(number, int) or (sender := self._replies.get(number)) is None:
            return  # the answer to a request that was left early
        sender.send_nowait(message)
        if "event" not in message:
            del self._replies[number]
            sender.close()


async def _open(home: Home) -> SocketStream:
    try:
        connection = await anyio.to_thread.run_sync(connect_unix, home.control_socket)
    except PermissionError as error:
        raise HostUnreachableError(
            f"The host on {home.path} belongs to another user.", hint="Run crab as the user who runs the host."
        ) from error
    except OSError as error:
        raise HostUnreachableError(f"No host runs on {home.path}.", hint=START_HINT) from error
    return await SocketStream.from_socket(connection)


def _result(reply: Json) -> Json:
    if "error" in reply:
        raise error_from_json(reply["error"])
    result = reply.get("result")
    return result if isinstance(result, dict) else {}
