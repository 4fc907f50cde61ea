"""An agent that sends anything it likes on its link: it can end its own link, and nothing else (law 4, law 14)."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

import anyio
import pytest
from anyio import to_thread

from hermitcrab.containers.link import server as link
from hermitcrab.containers.link.server import Connection, LinkLimits
from hermitcrab.settings.sockets import connect_unix
from hermitcrab.testing import virtual_sockets
from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab.testing.links import serving
from hermitcrab.testing.mutated_frames import FROM_HOST, Mutator
from hermitcrab.testing.virtual_time import Clocks, VirtualLoop
from hermitcrab_runner import link as runner_link
from hermitcrab_wire import codec, frames
from hermitcrab_wire.codec import WireError
from hermitcrab_wire.limits import MAX_FRAME_BYTES

HELLO = frames.Hello(protocol=1, generation=1, provider="echo", version="test")


class RecordingHandler:
    """A `link.LinkHandler` that answers each claim and keeps what else it is given."""

    def __init__(self) -> None:
        self.frames: list[frames.Frame] = []
        self.offences: list[WireError] = []
        self.greeted = 0
        self.gone_count = 0

    async def greet(self, hello: frames.Hello, connection: Connection) -> frames.Refused | None:
        self.greeted += 1
        if hello.generation != 1:
            return frames.Refused(code="stale-generation", text="generation 1 has this socket now")
        return None

    async def handle(self, frame: frames.Frame, connection: Connection) -> None:
        self.frames.append(frame)
        if isinstance(frame, frames.Claim):
            connection.send(frames.Claimed(turn=frame.turn))

    def broke_contract(self, error: WireError) -> None:
        self.offences.append(error)

    def gone(self, connection: Connection) -> None:
        self.gone_count += 1


@asynccontextmanager
async def served(folder: Path, limits: LinkLimits | None = None) -> AsyncIterator[RecordingHandler]:
    handler = RecordingHandler()
    async with serving(folder, handler, limits=limits):
        yield handler


def talk(folder: Path, *parts: bytes, until_closed: bool = True) -> bytes:
    """Connect, send, and read until the host closes or has nothing more to say. Blocks; run it in a thread."""
    with connect_unix(folder / "link.sock") as peer:
        peer.settimeout(DEADLINE_S)
        try:
            for part in parts:
                peer.sendall(part)
            if not until_closed:
                peer.shutdown(socket.SHUT_WR)
            answer = b""
            while data := peer.recv(65536):
                answer += data
        except (ConnectionResetError, BrokenPipeError):
            return b""
        return answer


def line(frame: frames.Frame) -> bytes:
    return codec.encode(frame.to_json())


async def honest_claim_is_answered(folder: Path) -> None:
    answer = await to_thread.run_sync(
        lambda: talk(folder, line(HELLO), line(frames.Claim(turn="t", ids=["a"])), until_closed=False)
    )
    assert codec.decode(answer.splitlines()[-1]) == {"type": "claimed", "turn": "t"}


async def test_a_frame_before_hello_ends_the_link(tmp_path: Path) -> None:
    async with served(tmp_path) as handler:
        await to_thread.run_sync(lambda: talk(tmp_path, line(frames.Claim(turn="t", ids=[]))))
        assert [error.code for error in handler.offences] == ["malformed"]
        assert handler.frames == []
        await honest_claim_is_answered(tmp_path)


async def test_a_hello_of_another_generation_is_refused_and_told_so(tmp_path: Path) -> None:
    async with served(tmp_path) as handler:
        stale = frames.Hello(protocol=1, generation=7, provider="echo", version="test")
        answer = await to_thread.run_sync(lambda: talk(tmp_path, line(stale)))
        assert codec.decode(answer.splitlines()[0])["code"] == "stale-generation"
        assert handler.offences == []


async def test_an_unknown_frame_is_refused_politely_and_the_link_goes_on(tmp_path: Path) -> None:
    async with served(tmp_path) as handler:
        answer = await to_thread.run_sync(
            lambda: talk(
                tmp_path,
                line(HELLO),
                b'{"type":"teleport"}\n',
                line(frames.Claim(turn="t", ids=[])),
                until_closed=False,
            )
        )
        kinds = [codec.decode(each)["type"] for each in answer.splitlines()]
        assert kinds == ["refused", "claimed"]
        assert handler.offences == []


async def test_a_flood_of_unknown_frames_ends_the_link(tmp_path: Path) -> None:
    async with served(tmp_path) as handler:
        await to_thread.run_sync(lambda: talk(tmp_path, line(HELLO), b'{"type":"x"}\n' * 500))
        assert len(handler.offences) == 1


async def test_an_endless_line_ends_the_link_without_being_kept(tmp_path: Path) -> None:
    async with served(tmp_path) as handler:
        await to_thread.run_sync(lambda: talk(tmp_path, line(HELLO), b"x" * (MAX_FRAME_BYTES + 1)))
        assert [error.code for error in handler.offences] == ["too-large"]
        await honest_claim_is_answered(tmp_path)


async def test_a_peer_that_never_reads_is_cut(tmp_path: Path) -> None:
    unhurried = LinkLimits(frames_per_s=1e6, burst_frames=1e6)  # Not the pace is to end it, but what lies unread.
    async with served(tmp_path, unhurried) as handler:
        claim = line(frames.Claim(turn="t" * 200, ids=[]))

        def flood() -> None:
            with connect_unix(tmp_path / "link.sock") as peer:
                peer.settimeout(DEADLINE_S)
                peer.sendall(line(HELLO))
                try:
                    for _ in range(60):
                        peer.sendall(claim * 1000)
                except (ConnectionResetError, BrokenPipeError, TimeoutError):
                    return

        with anyio.fail_after(DEADLINE_S):
            await to_thread.run_sync(flood)
        while handler.gone_count == 0:
            await anyio.lowlevel.checkpoint()
        await honest_claim_is_answered(tmp_path)


async def test_too_many_connections_are_cut_and_an_honest_one_still_gets_in(tmp_path: Path) -> None:
    async with served(tmp_path):

        def crowd() -> None:
            peers = [connect_unix(tmp_path / "link.sock") for _ in range(40)]
            for peer in peers:
                peer.close()

        await to_thread.run_sync(crowd)
        with anyio.fail_after(DEADLINE_S):
            while True:
                try:
                    await honest_claim_is_answered(tmp_path)
                except IndexError:
                    continue  # The crowd's connections are not all closed yet.
                return


async def test_mutated_frames_never_end_the_host_nor_disturb_another_session(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.mkdir()
    good.mkdir()
    seeded = random.Random(20261123)
    samples = [
        line(frames.Claim(turn="t", ids=["a", "b"])),
        line(frames.Out(id="o", kind="chat", content={"text": "x"})),
    ]
    samples += [line(frames.Complete(turn="t", ids=["a"], outs=[{"id": "o"}])), line(frames.Beat(activity="idle"))]

    def mutated() -> bytes:
        data = bytearray(seeded.choice(samples))
        for _ in range(seeded.randint(1, 6)):
            match seeded.randrange(4):
                case 0:
                    data[seeded.randrange(len(data))] = seeded.randrange(256)
                case 1:
                    del data[seeded.randrange(len(data)) :]
                    data += b"\n"
                case 2:
                    data[seeded.randrange(len(data)) :] = seeded.randbytes(seeded.randrange(1, 40))
                case _:
                    data *= 2
        return bytes(data) or b"\n"

    async with served(bad) as attacked, served(good) as other:
        for _ in range(300):
            payload = b"".join(mutated() for _ in range(20))
            await to_thread.run_sync(lambda payload=payload: talk(bad, line(HELLO), payload, until_closed=False))
        assert attacked.greeted >= 300
        assert len(attacked.offences) > 0
        await honest_claim_is_answered(good)
        assert other.offences == []


def test_who_dials_again_and_again_gets_no_new_burst_by_it(tmp_path: Path) -> None:
    """In virtual time, on sockets in memory: what is bounded is how fast a session speaks, not how fast one link does."""
    loop = VirtualLoop(stuck_after_s=0)

    async def whole() -> None:
        handler = RecordingHandler()
        payload = line(HELLO) + line(frames.Beat(activity="idle")) * 79
        async with serving(tmp_path, handler, limits=LinkLimits(frames_per_s=10, burst_frames=200)):
            for _ in range(5):
                transport, _ = loop.dial(str(tmp_path / "link.sock"), asyncio.Protocol)
                transport.write(payload)
                transport.close()
                while len(handler.frames) < 79:  # noqa: ASYNC110  # virtual time
                    await asyncio.sleep(0.1)
                handler.frames.clear()
        assert loop.time() > 25

    with Clocks(loop).turned(), patch.object(link, "bind_unix", virtual_sockets.bind):
        loop.run_until_complete(whole())
    loop.close()


async def test_nothing_is_written_to_a_peer_that_has_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path):
        claims = line(frames.Claim(turn="t", ids=[])) * 200

        def say_and_go() -> None:
            with connect_unix(tmp_path / "link.sock") as peer:
                peer.sendall(line(HELLO) + claims)

        for _ in range(5):
            await to_thread.run_sync(say_and_go)
        await honest_claim_is_answered(tmp_path)
    assert [each.message for each in caplog.records if each.name == "asyncio"] == []


@pytest.mark.parametrize("seed", range(4))
def test_a_runner_bears_whatever_it_is_told(tmp_path: Path, seed: int) -> None:
    """The other way round: mutated frames of a host, as the runner's end of the link reads them."""
    mutator = Mutator(seed, FROM_HOST)
    told = runner_link.Link(
        runner_link.LinkSettings("nowhere", 1, "echo", "0", 0.0, 1.0), holds=list, deliver=lambda _frame: None, lost=int
    )
    heard: list[frames.Frame] = []
    told._deliver = heard.append
    told._welcomed = True
    for _ in range(5000):
        for each in mutator.line().split(b"\n"):
            if len(each) < MAX_FRAME_BYTES and each:
                told._hear(each)
    assert len(heard) > 500
    os.close(told.wake_writer)
    os.close(told._wake_reader)
