"""A daemon on a Unix socket that answers as Docker would, or as badly as a test wants. For tests of the adapter only:
what Docker and Podman really do, the conformance suite asks them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

VERSION = {"Version": "27.0", "ApiVersion": "1.41", "Components": [{"Name": "runc", "Version": "1.3.3"}]}
INFO = {
    "ServerVersion": "27.0",
    "Architecture": "x86_64",
    "SecurityOptions": ["name=seccomp,profile=builtin"],
    "Runtimes": {"runc": {}},
}


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    """Without the API's version."""
    query: dict[str, str]
    body: bytes


@dataclass(slots=True)
class FakeDocker:
    """Answers by `METHOD /path`; what is not listed is 404 as Docker words it."""

    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    """Status and JSON (or bytes, sent as they are)."""
    requests: list[Request] = field(default_factory=list)
    subscribed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when somebody listens to events; clear it to wait for the next one."""
    silent: set[str] = field(default_factory=set)
    """Requests that are never answered."""
    _listeners: list[asyncio.StreamWriter] = field(default_factory=list)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def asked(self, route: str) -> list[Request]:
        return [each for each in self.requests if f"{each.method} {each.path}" == route]

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event to everybody who listens."""
        for writer in self._listeners:
            writer.write(chunk(event))

    def cut(self) -> None:
        """Break every event stream in the middle."""
        for writer in self._listeners:
            writer.transport.abort()
        self._listeners.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._answer_one(reader, writer):
                pass
        self._writers.discard(writer)
        writer.close()

    def close_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await read_request(reader)
        path = request.path
        self.requests.append(request)
        route = f"{request.method} {path}"
        if route in self.silent:
            return True
        if route == "GET /events" and route not in self.answers:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            self._listeners.append(writer)
            self.subscribed.set()
            return True
        standard = {"GET /version": (200, VERSION), "GET /info": (200, INFO)}
        status, answer = self.answers.get(
            route, standard.get(route, (404, {"message": f"No such container: {path.split('/')[2:3]}"}))
        )
        writer.write(encoded(status, answer))
        await writer.drain()
        return True


def encoded(status: int, answer: Any) -> bytes:
    """A whole HTTP answer: JSON, or bytes as they are."""
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def read_request(reader: asyncio.StreamReader) -> Request:
    """The next request on a connection. Raises IncompleteReadError at its end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    method, target, _ = head.split(" ", 2)
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
    }
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    parts = urlsplit(target)
    path = re.sub(r"^/v\d+\.\d+(?=/)", "", parts.path)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    return Request(method, path, query, body)


def chunk(event: dict[str, Any]) -> bytes:
    """One event in an endless answer."""
    line = json.dumps(event).encode() + b"\n"
    return f"{len(line):x}\r\n".encode() + line + b"\r\n"


@contextlib.asynccontextmanager
async def fake_docker(socket: Path) -> AsyncIterator[FakeDocker]:
    """A daemon that listens on `socket` for as long as the context is open."""
    daemon = FakeDocker()
    server = await asyncio.start_unix_server(daemon.serve, socket)
    try:
        yield daemon
    finally:
        server.close()
        daemon.close_all()
        await server.wait_closed()
