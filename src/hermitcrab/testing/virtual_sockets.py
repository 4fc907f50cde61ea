"""Unix sockets in memory, for one event loop: what is written arrives in pieces, late, and not always.

The loop's own streams and everything above them run over these as over the kernel's. A socket is still a name in a
folder, so that a host that dies leaves it behind, and whoever dials it then is refused.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermitcrab.errors import HomeError

Factory = Callable[[], asyncio.Protocol]


@dataclass(slots=True)
class Weather:
    """How bytes travel. `None` in place of a generator: whole, at once."""

    randomness: random.Random | None = None
    late_s: float = 0.003
    """A piece arrives at most so much later."""
    whole: float = 0.6
    """How often all that was written arrives in one piece."""
    breaks: float = 0.0
    """How often a connection is cut when a piece is about to arrive."""


class Network:
    """All sockets of one loop."""

    def __init__(self, weather: Weather | None = None) -> None:
        self.weather = weather or Weather()
        self._listening: dict[str, MemoryServer] = {}
        self.connections: dict[int, tuple[str, MemoryTransport, MemoryTransport]] = {}
        """Open ones, by number: the address, the dialling end and the listening end."""
        self._made = 0

    def listen(self, address: str, server: MemoryServer) -> None:
        self._listening[address] = server

    def forget(self, address: str, server: MemoryServer) -> None:
        if self._listening.get(address) is server:
            del self._listening[address]

    def addresses(self) -> list[str]:
        """Where somebody listens."""
        return list(self._listening)

    def dial(self, loop: asyncio.AbstractEventLoop, address: str, factory: Factory) -> tuple[Any, asyncio.Protocol]:
        """Raises FileNotFoundError or ConnectionRefusedError as the kernel does."""
        server = self._listening.get(address)
        if server is None:
            if Path(address).exists():
                raise ConnectionRefusedError(address)
            raise FileNotFoundError(address)
        near_protocol, far_protocol = factory(), server.factory()
        near = MemoryTransport(loop, near_protocol, self)
        far = MemoryTransport(loop, far_protocol, self)
        near.peer, far.peer = far, near
        self._made += 1
        near.number = far.number = self._made
        self.connections[self._made] = address, near, far
        near_protocol.connection_made(near)
        # As with a kernel, the other side has the connection when it gets to accepting it.
        server.context_run(far_protocol.connection_made, far)
        return near, near_protocol

    def cut(self, number: int) -> None:
        """Both ends lose the connection; each has got some first part of what was on its way, perhaps half a frame."""
        if (found := self.connections.get(number)) is not None:
            for end in found[1:]:
                end.lose()

    def silence(self) -> None:
        """Whoever listened is gone, as a process that was killed: nothing that it still does is seen."""
        self._listening.clear()
        for _, near, far in list(self.connections.values()):
            far.silenced = True
            far.lose()
            near.lose(heard_end=True)

    def end(self, number: int) -> None:
        self.connections.pop(number, None)

    def piece(self, waiting: int) -> int:
        """How much of that arrives next."""
        dice = self.weather.randomness
        if dice is None or waiting <= 1 or dice.random() < self.weather.whole:
            return waiting
        return dice.randint(1, waiting)

    def still_arrives(self, waiting: int) -> int:
        """How much of that is beyond the place where a connection is cut."""
        dice = self.weather.randomness
        return waiting if dice is None else dice.randint(0, waiting)

    def breaks(self) -> bool:
        dice = self.weather.randomness
        return dice is not None and dice.random() < self.weather.breaks

    def delay_s(self) -> float:
        dice = self.weather.randomness
        return 0.0 if dice is None else dice.random() * self.weather.late_s


@dataclass(slots=True, eq=False)
class MemoryListener:
    """What `bind_unix` gives in place of a socket."""

    path: Path

    def close(self) -> None:
        """Nothing to do."""


def bind(folder: Path, name: str, mode: int) -> MemoryListener:
    """In place of `settings.sockets.bind_unix`: a name in the folder, and no socket. Raises HomeError."""
    path = folder / name
    try:
        path.unlink(missing_ok=True)
        path.touch(mode=mode)
    except OSError as error:
        raise HomeError(f"Could not listen on {path}: {error.strerror or error}") from error
    return MemoryListener(path)


class MemoryServer:
    def __init__(self, network: Network, listener: MemoryListener, factory: Factory) -> None:
        self._network, self._address, self.factory = network, str(listener.path), factory
        self._context = contextvars.copy_context()
        """Whoever listens: what arrives is theirs to handle."""

    def context_run(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._context.copy().run(function, *arguments)

    async def start_serving(self) -> None:
        self._network.listen(self._address, self)

    def close(self) -> None:
        self._network.forget(self._address, self)

    async def wait_closed(self) -> None:
        """Nothing to wait for."""


@dataclass(eq=False)
class MemoryTransport(asyncio.Transport):
    """One end. What it writes lies in `outgoing` until the other end has got it."""

    loop: asyncio.AbstractEventLoop
    protocol: asyncio.Protocol
    network: Network
    number: int = 0
    outgoing: bytearray = field(default_factory=bytearray)
    ends: bool = False
    """Nothing more is written; the other end hears of it after what is on its way."""
    lost: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.peer: MemoryTransport = self
        self._reading = True
        self._moving = False
        self._paused_writing = False
        self.silenced = False
        """Whoever had this end is gone: nothing that it still does is seen."""

    # What a protocol calls.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.lost or self.ends or self.silenced or not data:
            return
        self.outgoing += data
        if not self._paused_writing and len(self.outgoing) > _HIGH_WATER:
            self._paused_writing = True
            self.protocol.pause_writing()
        self._move()

    def close(self) -> None:
        if not self.lost and not self.ends:
            self.ends = True
            if self.outgoing:
                self._move()
            else:
                self._finish()

    def abort(self) -> None:
        """What the other end has not got may still arrive, up to some point, as from a kernel's buffer."""
        if not self.lost:
            del self.outgoing[self.network.still_arrives(len(self.outgoing)) :]
            self.ends = True
            self._arrive_all()
            self._finish()

    def is_closing(self) -> bool:
        return self.lost or self.ends

    def get_write_buffer_size(self) -> int:
        return len(self.outgoing)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """They are what they are."""

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self.peer._move()  # noqa: SLF001

    def is_reading(self) -> bool:
        return self._reading

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        del name
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def can_write_eof(self) -> bool:
        return False

    # How bytes travel.

    def _move(self) -> None:
        if not self._moving and not self.lost and (self.outgoing or self.ends):
            self._moving = True
            self.loop.call_later(self.network.delay_s(), self._arrive)

    def _arrive(self) -> None:
        self._moving = False
        if self.lost or not self.peer._reading:  # noqa: SLF001  # both belong to this file
            return
        if self.outgoing:
            if self.network.breaks():
                self.network.cut(self.number)
                return
            self._hand_over(self.network.piece(len(self.outgoing)))
        if self.outgoing:
            self._move()
        elif self.ends:
            self._finish()

    def _arrive_all(self) -> None:
        if self.outgoing:
            self._hand_over(len(self.outgoing))

    def _hand_over(self, size: int) -> None:
        data = bytes(self.outgoing[:size])
        del self.outgoing[:size]
        if not self.peer.lost and not self.peer.silenced:
            self.peer.protocol.data_received(data)
        if self._paused_writing and not self.lost and len(self.outgoing) < _LOW_WATER:
            self._paused_writing = False
            self.protocol.resume_writing()

    def _finish(self) -> None:
        """This end is closed, and the other one hears of it."""
        self._end(None)
        if not self.peer.lost:
            self.peer.lose(heard_end=True)

    def lose(self, *, heard_end: bool = False) -> None:
        """The connection is gone without this end's doing."""
        if self.lost:
            return
        if not heard_end:
            del self.outgoing[self.network.still_arrives(len(self.outgoing)) :]
            self._arrive_all()
        if not self.silenced and heard_end:
            self.protocol.eof_received()
        self._end(None if heard_end else ConnectionResetError("the connection was cut"))

    def _end(self, error: Exception | None) -> None:
        if self.lost:
            return
        self.lost = True
        self.outgoing.clear()
        self.network.end(self.number)
        if not self.silenced:
            self.loop.call_soon(self.protocol.connection_lost, error)


_HIGH_WATER = 64 * 1024
_LOW_WATER = 16 * 1024
