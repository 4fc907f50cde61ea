"""The control socket with a real client over a real socket; only the methods behind it are the test's own."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream, TaskStatus

from hermitcrab.control import server
from hermitcrab.control.client import ControlClient
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import ControlServer, Emit, Method, serving
from hermitcrab.errors import BadInputError, HermitcrabError, HostUnreachableError, NotFoundError
from hermitcrab.settings.home import Home
from hermitcrab.settings.sockets import connect_unix
from hermitcrab_wire.codec import decode, encode
from hermitcrab_wire.limits import MAX_FRAME_BYTES


async def echo(params: Params, _emit: Emit) -> Json:
    text = params.text("text")
    params.done()
    return {"text": text}


async def missing(params: Params, _emit: Emit) -> Json:
    raise NotFoundError(f"There is no session {params.text('session')}.", hint="crab sessions list")


async def broken(_params: Params, _emit: Emit) -> Json:
    raise RuntimeError("a fault with a path /secret/place in it")


async def count(params: Params, emit: Emit) -> Json:
    for number in range(params.integer("to", default=3, least=0, most=10_000)):
        await emit({"number": number})
    return {}


class Never:
    """A method that waits for ever and tells when it was cancelled."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.ended = anyio.Event()

    async def __call__(self, _params: Params, emit: Emit) -> Json:
        try:
            await emit({"begun": True})
            self.begun.set()
            await anyio.sleep_forever()
            return {}
        finally:
            self.ended.set()


METHODS: Mapping[str, Method] = {"echo": echo, "missing": missing, "broken": broken, "count": count}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    # Deeper than the 107 bytes that a socket's address may have.
    path = tmp_path / ("deep" * 30) / "home"
    (path / "run").mkdir(parents=True)
    return Home(path)


@asynccontextmanager
async def serve(home: Home, **more: Method) -> AsyncIterator[None]:
    async with serving(home.run, {**METHODS, **more}):
        yield


async def test_a_call_returns_its_result(home: Home) -> None:
    async with serve(home), ControlClient.connect(home) as client:
        assert await client.call("echo", text="hallo 🦀\n", left_out=None) == {"text": "hallo 🦀\n"}


async def test_the_socket_is_for_its_owner_alone_and_goes_with_the_server(home: Home) -> None:
    async with serve(home):
        assert stat.S_IMODE(home.control_socket.stat().st_mode) == 0o600
    assert not home.control_socket.exists()


async def test_another_user_is_refused_by_the_kernels_word(home: Home) -> None:
    async with anyio.create_task_group() as tasks:
        others = ControlServer(home.run, METHODS, allowed_uids=frozenset({os.geteuid() + 1}))
        await tasks.start(others.serve)
        async with ControlClient.connect(home) as client:
            with pytest.raises(HostUnreachableError):
                await client.call("echo", text="x")
        tasks.cancel_scope.cancel()


async def test_the_hosts_error_arrives_as_the_same_error(home: Home) -> None:
    async with serve(home), ControlClient.connect(home) as client:
        with pytest.raises(NotFoundError) as raised:
            await client.call("missing", session="s-1")
    assert (raised.value.message, raised.value.hint) == ("There is no session s-1.", "crab sessions list")


async def test_a_fault_in_a_method_tells_the_client_nothing_of_its_inside(home: Home) -> None:
    async with serve(home), ControlClient.connect(home) as client:
        with pytest.raises(HermitcrabError) as raised:
            await client.call("broken")
        assert "/secret/place" not in raised.value.message
        assert await client.call("echo", text="still here") == {"text": "still here"}


@pytest.mark.parametrize(
    ("params", "words"),
    [({}, "needs `text`"), ({"text": 3}, "must be text"), ({"text": ""}, "not empty"), ({"text": "a", "b": 1}, "`b`")],
)
async def test_wrong_parameters_are_named(home: Home, params: dict[str, object], words: str) -> None:
    async with serve(home), ControlClient.connect(home) as client:
        with pytest.raises(BadInputError, match=words):
            await client.call("echo", **params)


async def test_an_unknown_method_is_refused_by_name(home: Home) -> None:
    async with serve(home), ControlClient.connect(home) as client:
        with pytest.raises(BadInputError, match="'dance'"):
            await client.call("dance")


async def test_a_stream_gives_its_events_in_order_and_ends(home: Home) -> None:
    async with serve(home), ControlClient.connect(home) as client:
        numbers = [event["number"] async for event in client.stream("count", to=500)]
    assert numbers == list(range(500))


async def test_a_slow_request_holds_up_no_other(home: Home) -> None:
    never = Never()
    async with (
        serve(home, never=never),
        ControlClient.connect(home) as client,
        aclosing(client.stream("never")) as events,
    ):
        assert await anext(events) == {"begun": True}
        assert await client.call("echo", text="meanwhile") == {"text": "meanwhile"}


async def test_a_stream_that_is_left_ends_at_the_host_too(home: Home) -> None:
    never = Never()
    async with serve(home, never=never), ControlClient.connect(home) as client:
        async with aclosing(client.stream("never")) as events:
            await anext(events)
        await never.ended.wait()
        assert await client.call("echo", text="on the same connection") == {"text": "on the same connection"}


async def test_a_client_that_goes_away_ends_its_requests(home: Home) -> None:
    never = Never()
    async with serve(home, never=never):
        async with ControlClient.connect(home) as client, aclosing(client.stream("never")) as events:
            await anext(events)
        await never.ended.wait()


async def test_no_host_is_said_with_the_command_that_starts_one(home: Home) -> None:
    with pytest.raises(HostUnreachableError) as raised:
        async with ControlClient.connect(home):
            pytest.fail("connected to nobody")
    assert raised.value.exit_code == 2
    assert "crab up" in raised.value.hint


async def test_a_host_that_stops_ends_waiting_calls(home: Home) -> None:
    stop = anyio.Event()

    async def host(*, task_status: TaskStatus[None]) -> None:
        async with serve(home, never=Never()):
            task_status.started()
            await stop.wait()

    async with anyio.create_task_group() as tasks:
        await tasks.start(host)
        async with ControlClient.connect(home) as client:
            events = client.stream("never")
            await anext(events)
            stop.set()
            with pytest.raises(HostUnreachableError):
                await anext(events)
            with pytest.raises(HostUnreachableError):
                await client.call("echo", text="x")


async def _raw(home: Home) -> SocketStream:
    return await SocketStream.from_socket(connect_unix(home.control_socket))


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"[1]\n",
        b'{"method":"echo"}\n',
        b'{"id":"1","method":"echo"}\n',
        b'{"id":true,"method":"echo"}\n',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"id":1,"method":"echo","params":{"text":"\\ud800"}}\n',
    ],
)
async def test_what_is_no_request_is_told_so_and_costs_only_that_connection(home: Home, line: bytes) -> None:
    async with serve(home):
        async with await _raw(home) as stream:
            await stream.send(line)
            reply = decode((await stream.receive()).rstrip(b"\n"))
            assert reply["id"] is None
            assert reply["error"]["code"] == "bad-input"
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        async with ControlClient.connect(home) as client:
            assert await client.call("echo", text="x") == {"text": "x"}


async def test_a_line_without_end_is_cut_off_at_the_limit(home: Home) -> None:
    async with serve(home), await _raw(home) as stream:
        sent = 0
        try:
            while sent < 100_000_000:
                await stream.send(b"x" * 1_000_000)
                sent += 1_000_000
        except anyio.BrokenResourceError:
            pass
        assert MAX_FRAME_BYTES <= sent < 100_000_000


async def test_more_requests_than_the_limit_are_refused_until_some_end(home: Home) -> None:
    never = Never()
    async with serve(home, never=never), await _raw(home) as stream:
        for number in range(server.MOST_REQUESTS + 1):
            await stream.send(encode({"id": number, "method": "never"}))
        received = b""
        while b'"error"' not in received:
            received += await stream.receive()
        refused = [each for each in map(decode, received.splitlines()) if "error" in each]
        assert [each["id"] for each in refused] == [server.MOST_REQUESTS]


async def test_a_client_that_never_reads_holds_up_nobody(home: Home) -> None:
    async with serve(home), await _raw(home) as deaf:
        await deaf.send(encode({"id": 1, "method": "count", "params": {"to": 10_000}}))
        async with ControlClient.connect(home) as client:
            numbers = [event["number"] async for event in client.stream("count", to=1000)]
        assert len(numbers) == 1000
