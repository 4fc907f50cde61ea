"""Unix sockets in folders of any depth.

A socket's address holds 107 bytes, and a home may lie deeper than that. Addressed through a descriptor of its folder
(`/proc/self/fd/N/name`), only the socket's own name counts. The descriptor also pins the folder: a rename or a
symbolic link put in its place in between changes nothing. The link, the gateway and the control server all bind here.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hermitcrab.errors import BadInputError, HomeError

BACKLOG = 64
"""Connections that wait to be accepted. A session's container opens a few; more than this is a fault or an attack."""

CONNECT_TIMEOUT_S = 5.0
"""Connecting blocks only while the listener's backlog is full."""


@contextmanager
def short_address(path: Path) -> Iterator[str]:
    """An address of the socket `path` that is short enough for the kernel, valid inside the block."""
    if path.name in {"", ".."} or "\0" in str(path):
        raise BadInputError(f"{str(path)!r} is no path of a socket")
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def bind_unix(folder: Path, name: str, mode: int) -> socket.socket:
    """A listening socket `folder`/`name`, not blocking, open to whom `mode` says and to nobody else before that.

    A socket that an earlier process left there is replaced. Raises HomeError when the folder cannot hold a socket
    or something else has the name.
    """
    if not name or "/" in name or name in {".", ".."} or "\0" in name:
        raise BadInputError(f"{name!r} is no name of a socket")
    path = folder / name
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with short_address(path) as address:
            _remove_stale(address, path)
            # The file takes its rights from the socket's inode, so that it is never wider than this, not even between
            # bind and chmod; chmod then adds what the umask took away.
            os.fchmod(listener.fileno(), mode)
            listener.bind(address)
            os.chmod(address, mode)  # noqa: PTH101  # hundreds are bound when a host comes back
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise HomeError(
            f"Could not listen on {path}: {error.strerror or error}",
            hint="The folder must exist, belong to the user that runs the host, and lie on a local file system.",
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def connect_unix(path: Path, *, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
    """A connected, blocking socket to `path`. Raises OSError as connect does: nobody there, refused, not allowed."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout_s)
        with short_address(path) as address:
            connection.connect(address)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def _remove_stale(address: str, path: Path) -> None:
    try:
        found = os.lstat(address)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise HomeError(
            f"{path} is in the way: it is not a socket", hint="Move it away; Hermitcrab does not delete it."
        )
    os.unlink(address)  # noqa: PTH108  # as above
