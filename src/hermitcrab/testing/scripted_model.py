"""A model that says what a script tells it: a small `/v1/messages` server on loopback.

It lets a test drive a real agent harness with neither a key nor a network, and then look at what the harness sent.
Used by our own tests, `crab demo` and anybody who writes a provider.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import h11

_READ_BYTES = 64 * 1024
_FAILURE_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One answer of the model. `after` holds it back until the test sets the event."""

    after: anyio.Event | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Say(Turn):
    """Text, in as many stream events as there are `parts`."""

    parts: tuple[str, ...]
    between: anyio.Event | None = None
    """Holds the stream back after its first part: a model that thinks while the connection stays open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UseTool(Turn):
    """A request to run a tool, after the words `before`; the tool's result comes with the next request."""

    name: str
    arguments: Mapping[str, Any]
    before: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail(Turn):
    """An HTTP error, as the real service sends it."""

    status: int
    message: str = "scripted failure"
    headers: Mapping[str, str] = field(default_factory=dict)


def say(*parts: str, after: anyio.Event | None = None, between: anyio.Event | None = None) -> Say:
    return Say(parts=parts, after=after, between=between)


def use_tool(name: str, arguments: Mapping[str, Any], *, before: str = "", after: anyio.Event | None = None) -> UseTool:
    return UseTool(name=name, arguments=arguments, before=before, after=after)


def fail(status: int, message: str = "scripted failure", **headers: str) -> Fail:
    return Fail(status=status, message=message, headers={key.replace("_", "-"): text for key, text in headers.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: Any
    """The decoded JSON; None without a body."""

    @property
    def is_for_the_model(self) -> bool:
        """Whether this asks the model to speak. Harnesses also probe, count tokens and invent titles."""
        return (
            self.method == "POST"
            and self.path.partition("?")[0].endswith("/v1/messages")
            and isinstance(self.body, dict)
            and bool(self.body.get("tools"))
        )

    @property
    def texts(self) -> list[str]:
        """Every text of every message in it, tool results included, in order."""
        return [text for message in (self.body or {}).get("messages", ()) for text in _texts(message.get("content"))]


Script = Iterable[Turn] | Callable[[Request], Turn]


class ScriptedModel:
    """The running server. `requests` grows with what came in."""

    def __init__(self, script: Script, port: int) -> None:
        self._script = script if callable(script) else iter(script)
        self.port = port
        self.requests: list[Request] = []
        self._changed = anyio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> list[Request]:
        """The requests that were for the model itself."""
        return [each for each in self.requests if each.is_for_the_model]

    async def asked_times(self, count: int) -> list[Request]:
        """Wait until the model was asked that often. The caller sets the deadline."""
        while len(self.asked) < count:
            await self._changed.wait()
        return self.asked

    def _record(self, request: Request) -> None:
        self.requests.append(request)
        self._changed.set()
        self._changed = anyio.Event()

    def _next_turn(self, request: Request) -> Turn:
        if callable(self._script):
            return self._script(request)
        if not request.is_for_the_model:
            return say("ok")
        return next(self._script, fail(400, "the script has no further turn"))

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        async with stream:
            try:
                while (request := await _receive(connection, stream)) is not None:
                    self._record(request)
                    await self._answer(request, connection, stream)
                    if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                        return
                    connection.start_next_cycle()
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, h11.RemoteProtocolError):
                return  # The harness was killed, or hung up on an answer that it no longer wants.

    async def _answer(self, request: Request, connection: h11.Connection, stream: anyio.abc.SocketStream) -> None:
        if request.method == "POST" and request.path.partition("?")[0].endswith("/count_tokens"):
            await _send_json(connection, stream, 200, {"input_tokens": 10})
            return
        if not (request.method == "POST" and request.path.partition("?")[0].endswith("/v1/messages")):
            await _send_json(connection, stream, 200, {}, without_body=request.method == "HEAD")
            return
        turn = self._next_turn(request)
        if turn.after is not None:
            await turn.after.wait()
        model = str(request.body.get("model", "scripted")) if isinstance(request.body, dict) else "scripted"
        match turn:
            case Fail():
                kind = _FAILURE_TYPES.get(turn.status, "api_error")
                body = {"type": "error", "error": {"type": kind, "message": turn.message}}
                await _send_json(connection, stream, turn.status, body, turn.headers)
            case _ if isinstance(request.body, dict) and request.body.get("stream"):
                held = turn.between if isinstance(turn, Say) else None
                await _send_stream(connection, stream, _events(turn, model, len(self.requests)), held)
            case _:
                await _send_json(connection, stream, 200, _message(turn, model, len(self.requests)))


@asynccontextmanager
async def scripted_model(script: Script) -> AsyncIterator[ScriptedModel]:
    """A model that answers by `script` for as long as the context is open.

    A list gives one turn to each request for the model; a function decides for every request to `/v1/messages`.
    """
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        model = ScriptedModel(script, listener.extra(anyio.abc.SocketAttribute.local_port))
        group.start_soon(listener.serve, model._serve)  # noqa: SLF001  # both belong to this file
        yield model
        group.cancel_scope.cancel()


async def _receive(connection: h11.Connection, stream: anyio.abc.SocketStream) -> Request | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                await stream.send(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            try:
                connection.receive_data(await stream.receive(_READ_BYTES))
            except anyio.EndOfStream:
                connection.receive_data(b"")
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return Request(
                method=head.method.decode(),
                path=head.target.decode(),
                headers={name.decode().lower(): value.decode("latin-1") for name, value in head.headers},
                body=json.loads(body) if body else None,
            )
        else:
            return None


async def _send_json(
    connection: h11.Connection,
    stream: anyio.abc.SocketStream,
    status: int,
    body: object,
    headers: Mapping[str, str] | None = None,
    *,
    without_body: bool = False,
) -> None:
    content = json.dumps(body).encode()
    lines = [("content-type", "application/json"), ("content-length", str(len(content))), *(headers or {}).items()]
    await stream.send(connection.send(h11.Response(status_code=status, headers=lines)) or b"")
    data = b"" if without_body else connection.send(h11.Data(data=content)) or b""
    await stream.send(data + (connection.send(h11.EndOfMessage()) or b""))


async def _send_stream(
    connection: h11.Connection,
    stream: anyio.abc.SocketStream,
    events: Iterable[dict[str, Any]],
    between: anyio.Event | None,
) -> None:
    head = h11.Response(status_code=200, headers=[("content-type", "text/event-stream"), ("cache-control", "no-cache")])
    await stream.send(connection.send(head) or b"")
    for event in events:
        block = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        await stream.send(connection.send(h11.Data(data=block)) or b"")
        if between is not None and event["type"] == "content_block_delta":
            await between.wait()
    await stream.send(connection.send(h11.EndOfMessage()) or b"")


def _content(turn: Turn, number: int) -> list[dict[str, Any]]:
    if isinstance(turn, UseTool):
        words = [{"type": "text", "text": turn.before}] if turn.before else []
        return [
            *words,
            {"type": "tool_use", "id": f"toolu_{number:08}", "name": turn.name, "input": dict(turn.arguments)},
        ]
    assert isinstance(turn, Say)
    return [{"type": "text", "text": "".join(turn.parts)}]


def _message(turn: Turn, model: str, number: int) -> dict[str, Any]:
    return {
        "id": f"msg_{number:08}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": _content(turn, number),
        "stop_reason": "tool_use" if isinstance(turn, UseTool) else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }


def _events(turn: Turn, model: str, number: int) -> Iterable[dict[str, Any]]:
    whole = _message(turn, model, number)
    yield {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}
    for index, block in enumerate(whole["content"]):
        if block["type"] == "tool_use":
            empty: dict[str, Any] = {**block, "input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
        else:
            empty = {**block, "text": ""}
            parts = turn.parts if isinstance(turn, Say) else (block["text"],)
            deltas = [{"type": "text_delta", "text": part} for part in parts]
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
        "usage": {"output_tokens": 5},
    }
    yield {"type": "message_stop"}


def _texts(content: object) -> Iterable[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for block in content:
            if isinstance(block, dict):
                if isinstance(block.get("text"), str):
                    yield block["text"]
                yield from _texts(block.get("content"))
