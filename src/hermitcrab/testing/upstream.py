"""A model API's stand-in on loopback, whose every byte a test decides."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

import anyio
import anyio.abc
import anyio.streams.tls
import h11


@dataclass(slots=True)
class Exchange:
    """One request that the upstream got, and the way to answer it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    _stream: anyio.abc.ByteStream
    _http: h11.Connection
    _ended: bool = field(default=False)
    body: bytes = field(default=b"")
    keep: bool = field(default=True)
    """Set to False to close the connection after the answer."""

    def header(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found == name]

    async def body_part(self) -> bytes | None:
        """The next piece of the body; None at its end."""
        while not self._ended:
            event = self._http.next_event()
            if isinstance(event, h11.Data):
                self.body += event.data
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                self._ended = True
                return None
            self._http.receive_data(await self._stream.receive())
        return None

    async def read_body(self) -> bytes:
        while await self.body_part() is not None:
            pass
        return self.body

    async def send(self, raw: bytes) -> None:
        await self._stream.send(raw)

    async def reply(self, body: bytes, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *(f"{n}: {v}" for n, v in headers)]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    async def begin_events(self) -> None:
        await self.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def event(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def end_events(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def until_cut(self) -> None:
        """Return when the other side closes the connection."""
        try:
            while True:
                await self._stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return


Answer = Callable[[Exchange], Awaitable[None]]


class FakeUpstream:
    """Listens on 127.0.0.1 and answers each request with `answer`. `exchanges` keeps what came, oldest first."""

    def __init__(self, answer: Answer, *, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.url = ""
        self._tls = tls
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        listener: anyio.abc.Listener[anyio.abc.ByteStream] = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        if self._tls is not None:
            listener = anyio.streams.tls.TLSListener(listener, self._tls, standard_compatible=False)
        self.url = f"http{'s' if self._tls else ''}://{'localhost' if self._tls else '127.0.0.1'}:{port}"
        await self._stack.enter_async_context(listener)
        group = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(group.cancel_scope.cancel)
        group.start_soon(listener.serve, self._serve)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _serve(self, stream: anyio.abc.ByteStream) -> None:
        self.connections += 1
        ahead = b""
        async with stream:
            try:
                while (exchange := await self._receive(stream, ahead)) is not None:
                    self.exchanges.append(exchange)
                    await self.answer(exchange)
                    await exchange.read_body()
                    if not exchange.keep:
                        return
                    ahead = exchange._http.trailing_data[0]  # noqa: SLF001  # two parts of one fake
            except (anyio.EndOfStream, anyio.BrokenResourceError, h11.RemoteProtocolError):
                return

    async def _receive(self, stream: anyio.abc.ByteStream, ahead: bytes) -> Exchange | None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=128 * 1024)
        http.receive_data(ahead) if ahead else None
        while True:
            event = http.next_event()
            if isinstance(event, h11.Request):
                headers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
                return Exchange(event.method.decode(), event.target.decode(), headers, stream, http)
            try:
                http.receive_data(await stream.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return None
