"""The gateway's end of one connection from a container: requests in, answers out, one after the other.

The head is read by our own strict reader (`logic/routes.py`), which refuses what could be understood in two ways; the
body and the answer's framing are h11's. Every wait has an end. `listener.py` makes one per connection.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable
from http import HTTPStatus

import anyio
import anyio.abc
import h11

from hermitcrab.errors import HermitcrabError
from hermitcrab.gateway.limits import GatewayLimits
from hermitcrab.logic.routes import Head, Refusal, read_head

RECEIVE_BYTES = 64 * 1024
MAX_BYTES_AHEAD = 64 * 1024
"""Of later requests, read while an earlier one is answered."""

PHRASES = {status.value: status.phrase for status in HTTPStatus}

LINGER_BYTES = 1024 * 1024
LINGER_S = 1.0
"""An agent that is refused in the middle of its body gets this long to read why before the connection closes."""

BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")


class AgentGoneError(HermitcrabError):
    """The agent hung up, or no longer takes what it asked for."""


class BodyRefusedError(HermitcrabError):
    """The body of a request may not pass."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class AgentConnection:
    """One connection. `next_request`, then `body` and `refuse` or `begin` ... `finish`, and again while `reusable`."""

    def __init__(self, stream: anyio.abc.SocketStream, limits: GatewayLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._http = self._parser()
        self._ahead = b""
        self.answering = False
        """A request was read and nothing of an answer was sent yet."""
        self.body_read = anyio.Event()
        self.bytes_in = 0
        self.bytes_out = 0
        self.status = 0

    async def next_request(self) -> Head | Refusal | None:
        """The next request's head, why it is refused, or None when the agent has no more to ask."""
        if self._http.our_state is not h11.IDLE:
            self._ahead = self._http.trailing_data[0]
            self._http = self._parser()
        self.body_read = anyio.Event()
        self.bytes_in = self.bytes_out = self.status = 0
        raw = await self._receive_head()
        if raw is None:
            return None
        self.answering = True
        if isinstance(raw, Refusal):
            return raw
        head = read_head(raw)
        if isinstance(head, Refusal):
            return head
        try:
            self._http.receive_data(raw + self._ahead)
            if not isinstance(self._http.next_event(), h11.Request):
                return _unreadable()
        except h11.RemoteProtocolError:
            return _unreadable()
        self._ahead = b""
        return head

    async def body(self) -> AsyncIterator[bytes]:
        """The request's body as it comes. Raises BodyRefusedError or AgentGoneError in the middle of it."""
        while True:
            event = self._next_event()
            if isinstance(event, h11.Data):
                self.bytes_in += len(event.data)
                if self.bytes_in > self._limits.body_bytes:
                    raise BodyRefusedError(too_large(self._limits.body_bytes))
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self.body_read.set()
                return
            elif event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                self._http.receive_data(await self._receive_body_part())
            else:
                raise AgentGoneError("The agent hung up in the middle of a request.")

    def skip_empty_body(self) -> None:
        """See the end of a request that has no body, so that its connection can be watched and used again."""
        try:
            if isinstance(self._http.next_event(), h11.EndOfMessage):
                self.body_read.set()
        except h11.RemoteProtocolError:
            return  # h11 keeps the fault in mind: the connection is not reusable

    async def hung_up(self) -> None:
        """Return when the agent hangs up while it waits for its answer. Needs the body to be read."""
        await self.body_read.wait()
        ahead = len(self._http.trailing_data[0])
        while ahead <= MAX_BYTES_AHEAD:
            try:
                part = await self._stream.receive(RECEIVE_BYTES)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return
            ahead += len(part)
            self._http.receive_data(part)
        await anyio.sleep_forever()  # it has written so much ahead that only a failing answer can tell

    async def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None) -> None:
        """Send an answer's head. `length`: of the body that follows, None if only its end will tell."""
        framing = (
            (b"transfer-encoding", b"chunked") if length is None else (b"content-length", str(length).encode("ascii"))
        )
        self.answering = False
        self.status = status
        await self._send(
            h11.Response(
                status_code=status,
                reason=PHRASES.get(status, ""),
                headers=[*headers, *([] if status in {204, 304} else [framing]), *self._closing_header()],
            )
        )

    async def send(self, part: bytes) -> None:
        """Send a piece of the body; returns when the agent's socket has taken it."""
        await self._send(h11.Data(data=part))
        self.bytes_out += len(part)

    async def finish(self) -> None:
        """The answer is complete. Raises AgentGoneError if its announced length was not kept."""
        try:
            await self._send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise AgentGoneError("The answer was shorter than announced.") from error

    async def refuse(self, refusal: Refusal) -> None:
        """Answer in our own words. A connection whose request was not read to its end closes afterwards."""
        if self._http.their_state is h11.SEND_BODY and self.bytes_in == 0:
            self.skip_empty_body()
        text = refusal_body(refusal)
        headers = [(b"content-type", b"application/json")]
        if not refusal.retry:
            headers.append((b"x-should-retry", b"false"))
        await self.begin(refusal.status, headers, len(text))
        await self.send(text)
        await self.finish()

    @property
    def complete(self) -> bool:
        """Whether an answer was sent to its end."""
        return self._http.our_state in {h11.DONE, h11.MUST_CLOSE, h11.CLOSED}

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on this connection."""
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def _parser(self) -> h11.Connection:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=RECEIVE_BYTES)

    async def _receive_head(self) -> bytes | Refusal | None:
        """The bytes of the next head; what follows them stays in `_ahead`."""
        received, self._ahead = self._ahead, b""
        try:
            if not received:
                with anyio.fail_after(self._limits.idle_s):
                    received = await self._stream.receive(RECEIVE_BYTES)
        except (TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError):
            return None
        try:
            with anyio.fail_after(self._limits.head_s):
                while (end := received.find(b"\r\n\r\n")) == -1 and len(received) <= self._limits.head_bytes:
                    if BARE_LINE_FEED.search(received):
                        return _unreadable()
                    received += await self._stream.receive(RECEIVE_BYTES)
        except TimeoutError:
            return Refusal(status=408, rule="head-timeout", message="The request did not come in time.", retry=True)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return None
        if end == -1 or end > self._limits.head_bytes:
            return Refusal(status=431, rule="head-too-large", message="The headers are too large.")
        self._ahead = received[end + 4 :]
        return received[: end + 4]

    async def _receive_body_part(self) -> bytes:
        try:
            with anyio.fail_after(self._limits.body_quiet_s):
                return await self._stream.receive(RECEIVE_BYTES)
        except TimeoutError:
            raise BodyRefusedError(
                Refusal(status=408, rule="body-timeout", message="The body did not come in time.", retry=True)
            ) from None
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            raise AgentGoneError("The agent hung up in the middle of a request.") from None

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError:
            raise BodyRefusedError(_unreadable()) from None

    def _closing_header(self) -> list[tuple[bytes, bytes]]:
        return [] if self._http.their_state is h11.DONE else [(b"connection", b"close")]

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if not data:
            return
        try:
            with anyio.fail_after(self._limits.agent_write_s):
                await self._stream.send(data)
        except (TimeoutError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise AgentGoneError("The agent no longer takes its answer.") from None

    async def linger(self) -> None:
        """Close in an orderly way. On unread bytes the connection would be reset, and the answer perhaps not read."""
        if self._http.their_state in {h11.DONE, h11.MUST_CLOSE, h11.CLOSED}:
            return
        left = LINGER_BYTES
        with anyio.move_on_after(LINGER_S):
            try:
                await self._stream.send_eof()
                while left > 0:
                    left -= len(await self._stream.receive(RECEIVE_BYTES))
            except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
                return


def too_large(limit: int) -> Refusal:
    return Refusal(status=413, rule="body-too-large", message=f"A request's body may have {limit} bytes.")


def refusal_body(refusal: Refusal) -> bytes:
    """What an agent reads. The shape is one that the model APIs' own clients understand and show."""
    kinds = {400: "invalid_request_error", 403: "permission_error", 413: "request_too_large"}
    error = {
        "type": kinds.get(refusal.status, "api_error"),
        "message": f"Hermitcrab gateway: {refusal.message}",
        "rule": refusal.rule,
    }
    return json.dumps({"type": "error", "error": error}).encode()


def _unreadable() -> Refusal:
    return Refusal(status=400, rule="malformed", message="Not a request that can be read in only one way.")
