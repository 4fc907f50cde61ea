"""Bytes through loopback to the gateway's socket: whole, in order, with ends and with back-pressure."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab_runner.forwarder import Forwarder


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "gateway.sock"))
        listener.listen()
        listener.settimeout(DEADLINE_S)
        yield listener


@pytest.fixture
def forwarder(tmp_path: Path) -> Iterator[Forwarder]:
    forwarder = Forwarder(str(tmp_path / "gateway.sock"))
    yield forwarder
    forwarder.close()


def pair(forwarder: Forwarder, gateway: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(("127.0.0.1", forwarder.port), timeout=DEADLINE_S)
    accepted, _ = gateway.accept()
    accepted.settimeout(DEADLINE_S)
    return client, accepted


def fill(connection: socket.socket) -> int:
    """Send until there is no room left: in the kernel's buffers on either side and in the forwarder's."""
    sent = 0
    connection.settimeout(0.5)
    while sent < 64 * 1024 * 1024:
        try:
            sent += connection.send(b"x" * 65536)
        except TimeoutError:
            break
    assert sent < 64 * 1024 * 1024, "the forwarder takes all there is"
    return sent


def everything(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_bytes_go_both_ways_and_each_end_is_passed_on(forwarder: Forwarder, gateway: socket.socket) -> None:
    client, upstream = pair(forwarder, gateway)
    with client, upstream:
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        assert everything(upstream) == b"request"
        upstream.sendall(b"answer")
        upstream.close()
        assert everything(client) == b"answer"


def test_a_reader_that_does_not_read_stops_the_sender_and_nothing_is_lost(
    forwarder: Forwarder, gateway: socket.socket
) -> None:
    client, upstream = pair(forwarder, gateway)
    with client, upstream:
        sent = fill(client)
        client.setblocking(True)
        client.shutdown(socket.SHUT_WR)
        assert len(everything(upstream)) == sent


def test_connections_do_not_wait_for_each_other(forwarder: Forwarder, gateway: socket.socket) -> None:
    first, first_upstream = pair(forwarder, gateway)
    second, second_upstream = pair(forwarder, gateway)
    with first, first_upstream, second, second_upstream:
        second.sendall(b"quick")
        assert second_upstream.recv(10) == b"quick"
        first.sendall(b"slow")
        assert first_upstream.recv(10) == b"slow"


def test_without_a_gateway_the_client_is_hung_up_on(tmp_path: Path) -> None:
    forwarder = Forwarder(str(tmp_path / "nobody.sock"))
    with socket.create_connection(("127.0.0.1", forwarder.port), timeout=DEADLINE_S) as client:
        assert client.recv(1) == b""
    forwarder.close()


def test_a_reset_on_one_side_ends_the_other(forwarder: Forwarder, gateway: socket.socket) -> None:
    client, upstream = pair(forwarder, gateway)
    with upstream:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
        assert everything(upstream) == b""
    again, upstream = pair(forwarder, gateway)
    with again, upstream:
        again.sendall(b"still here")
        assert upstream.recv(20) == b"still here"
