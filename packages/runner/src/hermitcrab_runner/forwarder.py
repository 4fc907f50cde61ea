"""Loopback TCP to the gateway's Unix socket, for programs that only know `host:port`.

One thread for all connections. Each direction holds at most one buffer: whoever reads slowly slows the other side.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from hermitcrab_runner.link import connect_unix
from hermitcrab_runner.logs import note

_BUFFER_BYTES = 64 * 1024
_CONNECTIONS_AT_MOST = 256


@dataclass(slots=True)
class _End:
    """One of the two sockets of a connection, with what waits to be written to it."""

    sock: socket.socket
    pending: bytearray = field(default_factory=bytearray)
    reads: bool = True
    """Its peer may still send."""
    closing: bool = False
    """The other side has ended; once `pending` is written, this one is told so."""
    shut: bool = False
    other: _End | None = None


class Forwarder:
    """Listens from the moment it is made until `close`."""

    def __init__(self, gateway: str, *, connect: Callable[[str], socket.socket] = connect_unix) -> None:
        self._gateway = gateway
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._waker, self._wake = socket.socketpair()
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._connections = 0
        self._thread = threading.Thread(target=self._run, name="forwarder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._wake.close()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            for key, mask in self._selector.select():
                if key.fileobj is self._waker:
                    self._close_all()
                    return
                if key.fileobj is self._listener:
                    self._accept()
                    continue
                end: _End = key.data
                try:
                    if mask & selectors.EVENT_WRITE:
                        self._write(end)
                    if mask & selectors.EVENT_READ:
                        self._read(end)
                except OSError:
                    self._drop(end)
                else:
                    self._watch(end)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # It hung up while it waited.
        if self._connections >= _CONNECTIONS_AT_MOST:
            client.close()
            return
        try:
            gateway = self._connect(self._gateway)
        except OSError as error:
            note("gateway.unreachable", error=error.strerror or error)
            client.close()
            return
        near, far = _End(client), _End(gateway)
        near.other, far.other = far, near
        for end in (near, far):
            end.sock.setblocking(False)
            self._selector.register(end.sock, selectors.EVENT_READ, end)
        self._connections += 1

    def _read(self, end: _End) -> None:
        other = end.other
        if other is None or not end.reads or other.pending:
            return
        try:
            data = end.sock.recv(_BUFFER_BYTES)
        except BlockingIOError:
            return
        if data:
            other.pending += data
        else:
            end.reads = False
            other.closing = True
        self._write(other)

    def _write(self, end: _End) -> None:
        if end.pending:
            try:
                del end.pending[: end.sock.send(end.pending)]
            except BlockingIOError:
                return
        if end.closing and not end.pending and not end.shut:
            end.shut = True
            end.sock.shutdown(socket.SHUT_WR)

    def _watch(self, end: _End) -> None:
        """Wait for what each of the two can do next; with nothing left to do, close both."""
        other = end.other
        if other is None:
            return
        if end.shut and other.shut:
            self._drop(end)
            return
        for each, opposite in ((end, other), (other, end)):
            events = selectors.EVENT_READ if each.reads and not opposite.pending else 0
            events |= selectors.EVENT_WRITE if each.pending else 0
            known = each.sock.fileno() in self._selector.get_map()
            if events and known:
                self._selector.modify(each.sock, events, each)
            elif events:
                self._selector.register(each.sock, events, each)
            elif known:
                self._selector.unregister(each.sock)

    def _drop(self, end: _End) -> None:
        other = end.other
        if other is None:
            return
        self._connections -= 1
        end.other = other.other = None
        for each in (end, other):
            if each.sock.fileno() in self._selector.get_map():
                self._selector.unregister(each.sock)
            each.sock.close()

    def _close_all(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
