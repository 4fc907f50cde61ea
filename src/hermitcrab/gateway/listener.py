"""The gateway: one Unix socket per session, behind which model APIs answer and nothing else does.

The socket is the identity (law 5): who asks is decided by where they ask, never by what they say. `containers` opens
a door before a container is made and revokes it when the container ends.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from hermitcrab.errors import ConflictError, HermitcrabError, SettingsError
from hermitcrab.gateway.agent import AgentConnection, AgentGoneError, refusal_body
from hermitcrab.gateway.audit import Audit, AuditRecord, Notify
from hermitcrab.gateway.keyring import Keyring
from hermitcrab.gateway.limits import GatewayLimits
from hermitcrab.gateway.relay import OK, Passage, Relay
from hermitcrab.gateway.route import Route
from hermitcrab.logic.routes import Call, Head, Refusal, Target, decide, known_method
from hermitcrab.model.container import Finding
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.settings.sockets import bind_unix

if TYPE_CHECKING:
    import httpx2

log = structlog.get_logger()

SOCKET_NAME = "gateway.sock"
SOCKET_MODE = 0o666
"""A container's user is seldom the host's. Who can reach the folder decides: it lies in the home, which is 0700, and
is mounted into one container."""

GOODBYE_S = 0.5
"""For a last 503 to leave when the gateway closes."""

ACCEPT_PAUSE_S = 0.1
"""After a failed accept (out of descriptors), so that the loop does not spin."""

SHUTTING_DOWN = Refusal(status=503, rule="shutting-down", message="The gateway is closing.", retry=True)
TOO_MANY = Refusal(status=503, rule="too-many-connections", message="Too many connections at once.", retry=True)


class Gateway:
    """Serves every session's door for as long as its context is open."""

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        audit: Audit | None = None,
        notify: Notify | None = None,
        limits: GatewayLimits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls`: for upstreams under a private authority; None: what this machine trusts. It must verify."""
        if tls is not None and (tls.verify_mode != ssl.CERT_REQUIRED or not tls.check_hostname):
            raise SettingsError(
                "Upstreams must be verified.", hint="Add the private authority; do not switch checks off."
            )
        self.routes: Mapping[str, Route] = {route.prefix: route for route in routes}
        if len(self.routes) != len(routes):
            raise SettingsError("Two routes have the same prefix.")
        self.calls: Mapping[str, Sequence[Call]] = {route.prefix: route.calls for route in routes}
        self.limits = limits or GatewayLimits()
        self.closing = False
        self.keyring = Keyring(routes, notify)
        self._audit = audit
        self._tls = tls
        self._tls_made = anyio.Lock()
        self._doors: dict[SessionId, _Door] = {}
        # At its debug level, the HTTP library writes the headers of answers into the log.
        logging.getLogger("httpcore2").setLevel(logging.INFO)

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self.closing = True
        self._group.cancel_scope.cancel()
        return await self._group.__aexit__(kind, error, trace)

    async def open(self, session: SessionId, generation: Generation, folder: Path) -> Path:
        """Serve `session` on a socket in `folder`, and return the socket's path. Closes an older generation's door.

        Opening what is open already does nothing. Raises ConflictError for a generation older than the open one.
        """
        if self.closing:
            raise ConflictError("The gateway is closing.")
        while (earlier := self._doors.get(session)) is not None and earlier.scope.cancel_called:
            await earlier.closed.wait()
        if earlier is not None:
            if earlier.generation > generation or (earlier.generation == generation and earlier.folder != folder):
                raise ConflictError(f"Generation {earlier.generation} of session {session} has the gateway already.")
            if earlier.generation == generation:
                return folder / SOCKET_NAME
            earlier.scope.cancel()
        door = _Door(self, session, generation, folder)
        self._doors[session] = door
        try:
            await self._group.start(door.serve)
        except BaseException:
            door.abandon()
            raise
        if earlier is not None:
            await earlier.closed.wait()
        return folder / SOCKET_NAME

    async def revoke(self, session: SessionId, generation: Generation) -> None:
        """Close that door and cut what is open through it. One that is closed already, or another's, is left alone."""
        door = self._doors.get(session)
        if door is not None and door.generation == generation:
            door.scope.cancel()
            await door.closed.wait()

    def reopen(self) -> int:
        """Cut what is open through the gateway and listen anew, at every door. How many doors there are."""
        for door in self._doors.values():
            door.cut.cancel()
        return len(self._doors)

    async def findings(self) -> list[Finding]:
        """How each route stands: whether its key can be read, and whether the upstream still takes it."""
        return await self.keyring.findings()

    async def tls(self) -> ssl.SSLContext:
        """The one TLS context; loading what the machine trusts takes tens of milliseconds."""
        async with self._tls_made:
            if self._tls is None:
                import httpx2  # noqa: PLC0415  # 170 ms that a host without a model request need not pay

                self._tls = await anyio.to_thread.run_sync(lambda: httpx2.create_ssl_context(trust_env=False))
            return self._tls

    def record(self, record: AuditRecord) -> None:
        log.info("gateway.request", **{name: getattr(record, name) for name in AuditRecord.__slots__})
        if self._audit is not None:
            self._audit(record)

    def forget(self, door: _Door) -> None:
        if self._doors.get(door.session) is door:
            del self._doors[door.session]
            self.keyring.forget(door.session)


class _Door:
    """One session's socket and everything that is open through it."""

    def __init__(self, gateway: Gateway, session: SessionId, generation: Generation, folder: Path) -> None:
        self.session = session
        self.generation = generation
        self.folder = folder
        self.scope = anyio.CancelScope()
        self.cut = anyio.CancelScope()
        """Cancelled to end all that is open, after which the door listens anew."""
        self.closed = anyio.Event()
        self._gateway = gateway
        self._socket = bind_unix(folder, SOCKET_NAME, SOCKET_MODE)
        self._file = (folder / SOCKET_NAME).stat()
        self._connections: set[socket.socket] = set()
        # Upstream connections are never shared between sessions: an answer that an upstream slips in behind another
        # one can reach nobody else.
        self._transport: httpx2.AsyncHTTPTransport | None = None

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        task_status.started()  # before anything can cancel: from here on, `_close` runs whatever happens
        try:
            with self.scope:
                while True:
                    with self.cut:
                        async with anyio.create_task_group() as group:
                            while True:
                                await self._accept(group)
                    self.cut = anyio.CancelScope()
                    await self._listen_anew()
        finally:
            await self._close()

    def abandon(self) -> None:
        """For a door that never came to serve."""
        if not self.closed.is_set():
            self._remove_file()
            self._socket.close()
            self._gateway.forget(self)
            self.closed.set()

    async def _accept(self, group: anyio.abc.TaskGroup) -> None:
        await anyio.wait_readable(self._socket)
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # whoever knocked has gone
        except OSError:
            log.exception("gateway.accept_failed", session=self.session)
            await anyio.sleep(ACCEPT_PAUSE_S)
            return
        if len(self._connections) >= self._gateway.limits.connections:
            with connection, contextlib.suppress(OSError):
                connection.setblocking(False)
                connection.send(_goodbye(TOO_MANY))
            return
        self._connections.add(connection)
        group.start_soon(self._converse, connection)

    async def _converse(self, connection: socket.socket) -> None:
        try:
            # The plain stream over asyncio's own transport: waiting on it can be cancelled at any moment.
            async with await anyio.abc.SocketStream.from_socket(connection) as stream:
                agent = AgentConnection(stream, self._gateway.limits)
                try:
                    await self._answer_requests(agent)
                except anyio.get_cancelled_exc_class():
                    if self._gateway.closing and agent.answering:
                        with (
                            anyio.move_on_after(GOODBYE_S, shield=True),
                            contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError),
                        ):
                            await stream.send(_goodbye(SHUTTING_DOWN))
                    raise
        except AgentGoneError:
            return  # the record of its last request says so
        except Exception as error:  # noqa: BLE001  # the boundary of one connection: the others go on
            log.error("gateway.fault", session=self.session, **_describe(error))
        finally:
            self._connections.discard(connection)

    async def _answer_requests(self, connection: AgentConnection) -> None:
        while (head := await connection.next_request()) is not None:
            await self._answer(connection, head)
            if not connection.reusable:
                await connection.linger()
                return

    async def _answer(self, connection: AgentConnection, head: Head | Refusal) -> None:
        began = time.monotonic()
        target = decide(head, self._gateway.calls) if isinstance(head, Head) else head
        rule = "cut"
        try:
            if isinstance(target, Refusal):
                rule = target.rule
                await connection.refuse(target)
                return
            assert isinstance(head, Head)
            route = self._gateway.routes[target.prefix]
            credential = await self._gateway.keyring.credential(self.session, route)
            if isinstance(credential, Refusal):
                rule = credential.rule
                await connection.refuse(credential)
                return
            passage = Passage(head=head, target=target, route=route, credential=credential, limits=self._gateway.limits)
            relay = Relay(connection, await self._transport_for(), passage)
            try:
                await relay.run()
            finally:
                if relay.rule != OK:
                    rule = relay.rule
                elif connection.complete:  # even if the door was closed behind its last byte
                    rule = OK
                self._gateway.keyring.judge(self.session, route, relay.upstream_status)
        finally:
            self._record(connection, head, target, rule, began)

    async def _transport_for(self) -> httpx2.AsyncHTTPTransport:
        if self._transport is None:
            import httpx2  # noqa: PLC0415  # as above

            context = await self._gateway.tls()
            if self._transport is None:
                self._transport = httpx2.AsyncHTTPTransport(
                    verify=context,
                    trust_env=False,
                    http2=False,
                    retries=0,
                    limits=httpx2.Limits(max_connections=None, max_keepalive_connections=4, keepalive_expiry=30.0),
                )
        return self._transport

    def _record(
        self,
        connection: AgentConnection,
        head: Head | Refusal,
        target: Target | Refusal,
        rule: str,
        began: float,
    ) -> None:
        route = self._gateway.routes[target.prefix] if isinstance(target, Target) else None
        self._gateway.record(
            AuditRecord(
                session=self.session,
                generation=self.generation,
                method=known_method(head.method) if isinstance(head, Head) else "other",
                route=route.prefix if route is not None else None,
                host=route.host if route is not None else None,
                call=str(target.call) if isinstance(target, Target) else None,
                status=connection.status,
                rule=rule,
                bytes_in=connection.bytes_in,
                bytes_out=connection.bytes_out,
                ms=round((time.monotonic() - began) * 1000),
            )
        )

    async def _listen_anew(self) -> None:
        """On another socket under the same name. Where that cannot be made, on the one that there is."""
        await self._let_go()
        try:
            fresh = bind_unix(self.folder, SOCKET_NAME, SOCKET_MODE)
            self._file = (self.folder / SOCKET_NAME).stat()
        except (HermitcrabError, OSError) as error:
            log.error("gateway.not-reopened", session=self.session, text=str(error))
            return
        self._socket.close()
        self._socket = fresh

    async def _close(self) -> None:
        self._remove_file()
        self._socket.close()
        await self._let_go()
        self._gateway.forget(self)
        self.closed.set()

    async def _let_go(self) -> None:
        """Of everything that is open through this door."""
        for connection in self._connections:  # accepted, but cancelled before anybody listened to them
            connection.close()
        self._connections.clear()
        transport, self._transport = self._transport, None
        if transport is not None:
            with anyio.move_on_after(GOODBYE_S, shield=True):
                await transport.aclose()

    def _remove_file(self) -> None:
        """Only our own: a newer generation may have put its socket there."""
        path = self.folder / SOCKET_NAME
        try:
            found = path.lstat()
            if (found.st_dev, found.st_ino) == (self._file.st_dev, self._file.st_ino):
                path.unlink()
        except FileNotFoundError:
            return  # the session's folder went first


def _describe(error: BaseException) -> dict[str, str]:
    """Which fault, and where. Neither its text nor the values around it: they may hold the key."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    where = traceback.extract_tb(error.__traceback__)[-1]
    return {"error": type(error).__name__, "where": f"{where.filename}:{where.lineno}"}


def _goodbye(refusal: Refusal) -> bytes:
    """A whole answer in one piece, for where no conversation takes place any more."""
    text = refusal_body(refusal)
    head = (
        f"HTTP/1.1 {refusal.status} Service Unavailable\r\ncontent-type: application/json\r\n"
        f"content-length: {len(text)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("ascii") + text
