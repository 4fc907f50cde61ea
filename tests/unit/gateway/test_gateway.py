"""The gateway between a real client on its Unix socket and a real upstream on loopback."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
import httpx2
import pytest

from hermitcrab.errors import ConflictError, SettingsError
from hermitcrab.gateway.audit import AuditRecord
from hermitcrab.gateway.limits import GatewayLimits
from hermitcrab.gateway.listener import Gateway
from hermitcrab.gateway.route import Route
from hermitcrab.gateway.vault import KeySource
from hermitcrab.model.container import Finding
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.settings.sockets import connect_unix, short_address
from hermitcrab.testing.upstream import Exchange, FakeUpstream

CANARY = "sk-ant-api03-CANARY-not-a-real-key"  # made up; opens nothing
SESSION, OTHER = SessionId("sess-1"), SessionId("sess-2")
FIRST, SECOND = Generation(1), Generation(2)

Answer = Callable[[Exchange], Awaitable[None]]


@dataclass
class House:
    """A gateway with one route, what it wrote down, and clients for it."""

    gateway: Gateway
    upstream: FakeUpstream
    folder: Path
    records: list[AuditRecord] = field(default_factory=list)
    notices: list[tuple[SessionId, Finding]] = field(default_factory=list)
    recorded: anyio.Event = field(default_factory=anyio.Event)

    def keep(self, record: AuditRecord) -> None:
        self.records.append(record)
        self.recorded.set()
        self.recorded = anyio.Event()

    async def record_count(self, count: int) -> None:
        while len(self.records) < count:
            await self.recorded.wait()

    def run_folder(self, session: SessionId) -> Path:
        folder = self.folder / session
        folder.mkdir(exist_ok=True)
        return folder

    async def open(self, session: SessionId = SESSION, generation: Generation = FIRST) -> Path:
        return await self.gateway.open(session, generation, self.run_folder(session))

    @asynccontextmanager
    async def client(self, path: Path) -> AsyncIterator[httpx2.AsyncClient]:
        with short_address(path) as address:
            transport = httpx2.AsyncHTTPTransport(uds=address)
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:1/anthropic") as client:
                yield client

    async def raw(self, path: Path) -> anyio.abc.SocketStream:
        return await anyio.abc.SocketStream.from_socket(connect_unix(path))


@asynccontextmanager
async def house(
    folder: Path,
    answer: Answer,
    *,
    key: str | None = "env:CRAB_TEST_KEY",
    base: str = "",
    limits: GatewayLimits | None = None,
) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(FakeUpstream(answer))
        source = KeySource.parse(key) if key else None
        route = Route(
            prefix="/anthropic", upstream=upstream.url + base, key=source, style="anthropic" if key else "none"
        )
        built = House(gateway=None, upstream=upstream, folder=folder)  # type: ignore[arg-type]  # set on the next line
        built.gateway = Gateway(
            [route],
            audit=built.keep,
            notify=lambda session, finding: built.notices.append((session, finding)),
            limits=limits,
        )
        await stack.enter_async_context(built.gateway)
        yield built


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAB_TEST_KEY", CANARY)


async def fine(exchange: Exchange) -> None:
    await exchange.read_body()
    await exchange.reply(b'{"fine": true}', headers=(("Content-Type", "application/json"), ("X-Kept", "yes")))


async def until(stream: anyio.abc.SocketStream, text: bytes) -> bytes:
    received = b""
    while text not in received:
        received += await stream.receive()
    return received


async def until_end(stream: anyio.abc.SocketStream) -> bytes:
    received = b""
    try:
        while True:
            received += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return received


def post(body: bytes = b"{}", *headers: bytes) -> bytes:
    return b"\r\n".join(
        [b"POST /anthropic/v1/messages HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *headers, b"", body]
    )


# Passing through


async def test_a_request_reaches_the_upstream_with_the_hosts_key_and_its_own_words(tmp_path: Path) -> None:
    async with house(tmp_path, fine, base="/base") as at, at.client(await at.open()) as client:
        answer = await client.post(
            "/v1/messages?beta=true",
            json={"model": "m"},
            headers={"x-api-key": "placeholder", "anthropic-version": "2023-06-01", "cookie": "a=b"},
        )
    assert (answer.status_code, answer.json(), answer.headers["x-kept"]) == (200, {"fine": True}, "yes")
    (exchange,) = at.upstream.exchanges
    assert (exchange.method, exchange.target) == ("POST", "/base/v1/messages?beta=true")
    assert json.loads(exchange.body) == {"model": "m"}
    assert exchange.header("x-api-key") == [CANARY]
    assert exchange.header("host") == [at.upstream.url.removeprefix("http://")]
    assert exchange.header("anthropic-version") == ["2023-06-01"]
    assert exchange.header("accept-encoding") == ["identity"]
    assert exchange.header("cookie") == []


async def test_an_oauth_token_is_sent_as_bearer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAB_TEST_KEY", "sk-ant-oat01-CANARY-made-up")
    async with house(tmp_path, fine) as at, at.client(await at.open()) as client:
        await client.get("/v1/models", headers={"authorization": "Bearer placeholder", "anthropic-beta": "mine"})
    (exchange,) = at.upstream.exchanges
    assert exchange.header("authorization") == ["Bearer sk-ant-oat01-CANARY-made-up"]
    assert exchange.header("anthropic-beta") == ["mine,oauth-2025-04-20"]
    assert exchange.header("x-api-key") == []


async def test_a_local_model_without_a_key_gets_none(tmp_path: Path) -> None:
    async with house(tmp_path, fine, key=None) as at, at.client(await at.open()) as client:
        assert (await client.post("/v1/messages", json={})).status_code == 200
    assert at.upstream.exchanges[0].header("x-api-key") == []


async def test_a_long_home_works(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-long-folder-name"] * 8)
    deep.mkdir(parents=True)
    async with house(deep, fine) as at, at.client(await at.open()) as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_many_requests_use_one_connection_on_either_side(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        stream = await at.raw(await at.open())
        async with stream:
            for _ in range(5):
                await stream.send(post(b'{"n": 1}'))
                assert (await until(stream, b"true}")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert at.upstream.connections == 1


async def test_requests_sent_ahead_are_answered_in_order(tmp_path: Path) -> None:
    async def echo(exchange: Exchange) -> None:
        await exchange.reply(b"<" + await exchange.read_body() + b">")

    async with house(tmp_path, echo) as at:
        stream = await at.raw(await at.open())
        async with stream:
            await stream.send(post(b"one") + post(b"two") + post(b"three"))
            received = await until(stream, b"<three>")
    assert received.index(b"<one>") < received.index(b"<two>") < received.index(b"<three>")


async def test_a_request_in_single_bytes_is_understood(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        stream = await at.raw(await at.open())
        async with stream:
            for byte in post(b"12345"):
                await stream.send(bytes([byte]))
            assert b"200 OK" in await until(stream, b"true}")
    assert at.upstream.exchanges[0].body == b"12345"


async def test_events_pass_one_by_one_as_the_upstream_says_them(tmp_path: Path) -> None:
    said = [anyio.Event(), anyio.Event()]

    async def slowly(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.begin_events()
        await exchange.event(b"data: first\n\n")
        await said[0].wait()
        await exchange.event(b"data: second\n\n")
        await said[1].wait()
        await exchange.end_events()

    async with (
        house(tmp_path, slowly) as at,
        at.client(await at.open()) as client,
        client.stream("POST", "/v1/messages", json={}) as answer,
    ):
        parts = answer.aiter_raw()
        assert answer.headers["content-type"] == "text/event-stream"
        assert await anext(parts) == b"data: first\n\n"
        said[0].set()
        assert await anext(parts) == b"data: second\n\n"
        said[1].set()
        assert [part async for part in parts] == []


async def test_an_upload_streams_before_it_is_complete(tmp_path: Path) -> None:
    arrived, answered = anyio.Event(), anyio.Event()

    async def taking(exchange: Exchange) -> None:
        await exchange.body_part()
        arrived.set()
        await exchange.read_body()
        await exchange.reply(b"got it")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await arrived.wait()
        yield b"second"
        answered.set()

    async with house(tmp_path, taking) as at, at.client(await at.open()) as client:
        assert (await client.post("/v1/messages", content=pieces())).text == "got it"
    assert answered.is_set()
    assert at.upstream.exchanges[0].body == b"firstsecond"
    assert at.upstream.exchanges[0].header("transfer-encoding") == ["chunked"]


async def test_a_client_that_asks_first_is_told_to_go_on(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        stream = await at.raw(await at.open())
        async with stream:
            head, body = post(b"body", b"Expect: 100-continue").split(b"\r\n\r\n")
            await stream.send(head + b"\r\n\r\n")
            assert (await until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            await stream.send(body)
            await until(stream, b"true}")
    assert at.upstream.exchanges[0].header("expect") == []


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 529])
async def test_an_upstreams_own_error_reaches_the_agent(tmp_path: Path, status: int) -> None:
    async def failing(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.reply(b"its words", status=status, headers=(("Retry-After", "7"),))

    async with house(tmp_path, failing) as at, at.client(await at.open()) as client:
        answer = await client.post("/v1/messages", json={})
    assert (answer.status_code, answer.text, answer.headers["retry-after"]) == (status, "its words", "7")


async def test_an_answer_without_a_body_is_whole(tmp_path: Path) -> None:
    async def empty(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with house(tmp_path, empty) as at, at.client(await at.open()) as client:
        for _ in range(2):
            answer = await client.post("/v1/messages", json={})
            assert (answer.status_code, answer.content) == (204, b"")


# Refusing


async def test_a_refusal_names_its_rule_and_leaves_the_connection_usable(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        stream = await at.raw(await at.open())
        async with stream:
            await stream.send(b"GET /anthropic/v1/files HTTP/1.1\r\nHost: x\r\n\r\n")
            received = await until(stream, b"}}")
            assert received.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert b"x-should-retry: false" in received
            assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["rule"] == "call-not-allowed"
            await stream.send(post())
            assert b"200 OK" in await until(stream, b"true}")
    assert [record.rule for record in at.records] == ["call-not-allowed", "ok"]


async def test_a_refused_upload_is_told_why_before_the_connection_closes(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        stream = await at.raw(await at.open())
        async with stream:
            await stream.send(
                b"POST /anthropic/v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n" + b"x" * 9000
            )
            received = await until_end(stream)
    assert b"403" in received
    assert b"call-not-allowed" in received
    assert b"connection: close" in received.lower()
    assert at.upstream.exchanges == []


async def test_a_body_over_the_limit_is_refused_when_announced_and_when_it_grows(tmp_path: Path) -> None:
    async def reading(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.reply(b"never")

    async with house(tmp_path, reading, limits=GatewayLimits(body_bytes=1000)) as at:
        path = await at.open()
        announced = await at.raw(path)
        async with announced:
            await announced.send(b"POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n")
            assert b"413" in await until(announced, b"body-too-large")
        growing = await at.raw(path)
        async with growing:
            await growing.send(b"POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            await growing.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n")
            await growing.send(b"x\r\n")
            assert b"413" in await until(growing, b"body-too-large")
    assert [record.rule for record in at.records] == ["body-too-large"] * 2


async def test_connections_over_the_limit_are_turned_away_and_room_comes_back(tmp_path: Path) -> None:
    async with house(tmp_path, fine, limits=GatewayLimits(connections=2)) as at:
        path = await at.open()
        streams = [await at.raw(path) for _ in range(2)]
        for stream in streams:
            await stream.send(post())
            await until(stream, b"true}")
        turned_away = await at.raw(path)
        async with turned_away:
            assert b"too-many-connections" in await until_end(turned_away)
        for stream in streams:
            await stream.send_eof()
            await until_end(stream)
            await stream.aclose()
        back = await at.raw(path)
        async with back:
            await back.send(post())
            assert b"200 OK" in await until(back, b"true}")


@pytest.mark.parametrize(
    ("limits", "sent", "expected"),
    [
        (GatewayLimits(head_s=0.01), b"POST /anthr", b"408 "),
        (GatewayLimits(idle_s=0.01), b"", b""),
        (GatewayLimits(body_quiet_s=0.01), post(b"body")[:-2], b"408 "),
        (GatewayLimits(head_bytes=200), b"POST /a/b HTTP/1.1\r\nX: " + b"x" * 70000, b"431 "),
        (GatewayLimits(head_bytes=200), b"POST /a/b HTTP/1.1\r\nX: " + b"x" * 300 + b"\r\n\r\n", b"431 "),
    ],
)
async def test_slow_and_large_requests_end(tmp_path: Path, limits: GatewayLimits, sent: bytes, expected: bytes) -> None:
    async def reading(exchange: Exchange) -> None:
        await exchange.read_body()

    async with house(tmp_path, reading, limits=limits) as at:
        stream = await at.raw(await at.open())
        async with stream:
            if sent:
                await stream.send(sent)
            assert expected in (await until_end(stream))[:20]


async def test_an_agent_that_takes_nothing_is_let_go(tmp_path: Path) -> None:
    cut = anyio.Event()

    async def flooding(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.begin_events()
        try:
            while True:
                await exchange.event(b"x" * 65536)
        except anyio.BrokenResourceError:
            cut.set()
            raise

    async with house(tmp_path, flooding, limits=GatewayLimits(agent_write_s=0.05)) as at:
        with connect_unix(await at.open()) as agent:  # a bare socket: nothing reads ahead behind the test's back
            agent.sendall(post())
            await at.record_count(1)
            await cut.wait()
    assert at.records[0].rule == "agent-gone"
    assert at.records[0].bytes_out < 2_000_000  # what sockets hold; nothing was piled up in between


# Upstreams that fail


async def test_an_upstream_that_is_not_there_is_502(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, so that nobody else gets the port, and not listening
        upstream = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        route = Route(prefix="/anthropic", upstream=upstream, key=KeySource.parse("env:CRAB_TEST_KEY"))
        async with Gateway([route]) as gateway:
            path = await gateway.open(SESSION, FIRST, tmp_path)
            async with await anyio.abc.SocketStream.from_socket(connect_unix(path)) as stream:
                await stream.send(post())
                received = await until(stream, b"}}")
    assert received.startswith(b"HTTP/1.1 502")
    assert b"upstream-unreachable" in received
    assert b"x-should-retry" not in received


async def test_an_upstream_that_says_nothing_is_504(tmp_path: Path) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.until_cut()
        exchange.keep = False

    limits = GatewayLimits(upstream_quiet_s=0.01)
    async with house(tmp_path, silent, limits=limits) as at, at.client(await at.open()) as client:
        answer = await client.get("/v1/models")
    assert (answer.status_code, answer.json()["error"]["rule"]) == (504, "upstream-timeout")


@pytest.mark.parametrize(
    "words", [b"", b"HTTP/1.1 200", b"\x00\x01nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nA b: c\r\n\r\n"]
)
async def test_an_upstream_that_talks_nonsense_is_502(tmp_path: Path, words: bytes) -> None:
    async def nonsense(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(words)
        exchange.keep = False

    async with house(tmp_path, nonsense) as at, at.client(await at.open()) as client:
        answer = await client.post("/v1/messages", json={})
    assert (answer.status_code, answer.json()["error"]["rule"]) == (502, "upstream-cut")


@pytest.mark.parametrize(
    "begun",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nin part..",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nin part..\r\n",
    ],
)
async def test_an_answer_that_breaks_off_is_seen_to_break_off(tmp_path: Path, begun: bytes) -> None:
    async def breaking(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(begun)
        exchange.keep = False

    async with house(tmp_path, breaking) as at, at.client(await at.open()) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.post("/v1/messages", json={})
        await at.record_count(1)
    assert (at.records[0].rule, at.records[0].bytes_out) == ("upstream-cut", 9)


async def test_an_answer_before_the_upload_is_over_reaches_the_agent(tmp_path: Path) -> None:
    async def early(exchange: Exchange) -> None:
        await exchange.reply(b"too much", status=413)
        await exchange.read_body()

    async with house(tmp_path, early) as at, at.client(await at.open()) as client:
        answer = await client.post("/v1/messages", content=b"x" * 300_000)
    assert (answer.status_code, answer.text) == (413, "too much")


async def test_the_upstream_is_cut_when_the_agent_hangs_up(tmp_path: Path) -> None:
    begun, cut = anyio.Event(), anyio.Event()

    async def thinking(exchange: Exchange) -> None:
        await exchange.read_body()
        begun.set()
        await exchange.until_cut()
        cut.set()
        exchange.keep = False

    async with house(tmp_path, thinking) as at:
        stream = await at.raw(await at.open())
        await stream.send(post())
        await begun.wait()
        await stream.aclose()
        await cut.wait()
        await at.record_count(1)
    assert (at.records[0].rule, at.records[0].status) == ("agent-gone", 0)


# Keys


async def test_without_a_key_the_agent_hears_503_and_the_people_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CRAB_TEST_KEY")
    async with house(tmp_path, fine) as at, at.client(await at.open()) as client:
        for _ in range(2):
            answer = await client.post("/v1/messages", json={})
            assert (answer.status_code, answer.json()["error"]["rule"]) == (503, "key-missing")
            assert answer.headers["x-should-retry"] == "false"
            assert "CRAB_TEST_KEY" not in answer.text
        ((session, finding),) = at.notices
        assert session == SESSION
        assert "CRAB_TEST_KEY" in finding.fix
        assert await at.gateway.findings() == [finding]
        monkeypatch.setenv("CRAB_TEST_KEY", CANARY)
        assert (await client.post("/v1/messages", json={})).status_code == 200
        assert [finding.level for finding in await at.gateway.findings()] == ["ok"]


async def test_a_key_file_is_read_anew_for_each_request(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.touch(mode=0o600)
    async with house(tmp_path, fine, key=f"file:{file}") as at, at.client(await at.open()) as client:
        for word in ("first-key-of-two", "second-key-of-two"):
            file.write_text(word)
            await client.post("/v1/messages", json={})
    assert [each.header("x-api-key") for each in at.upstream.exchanges] == [["first-key-of-two"], ["second-key-of-two"]]


async def test_a_key_that_the_upstream_refuses_is_a_finding_until_it_is_taken_again(tmp_path: Path) -> None:
    statuses = [401, 401, 200]

    async def judging(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.reply(b"{}", status=statuses.pop(0))

    async with house(tmp_path, judging) as at, at.client(await at.open()) as client:
        for _ in range(2):
            assert (await client.post("/v1/messages", json={})).status_code == 401
        (finding,) = await at.gateway.findings()
        assert (finding.level, [found for _, found in at.notices]) == ("error", [finding])
        assert (await client.post("/v1/messages", json={})).status_code == 200
        assert [finding.level for finding in await at.gateway.findings()] == ["ok"]


# Doors


async def test_each_session_is_known_by_its_socket(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        mine, theirs = await at.open(SESSION), await at.open(OTHER, SECOND)
        for path in (mine, theirs):
            async with at.client(path) as client:
                # What a request says about who asks is of no interest.
                await client.post("/v1/messages", json={}, headers={"x-session": OTHER, "x-hermitcrab-session": OTHER})
    assert [(record.session, record.generation) for record in at.records] == [(SESSION, FIRST), (OTHER, SECOND)]


async def test_revoking_cuts_an_open_answer_and_closes_the_door(tmp_path: Path) -> None:
    cut = anyio.Event()

    async def streaming(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.begin_events()
        await exchange.event(b"data: one\n\n")
        await exchange.until_cut()
        cut.set()
        exchange.keep = False

    async with house(tmp_path, streaming) as at:
        path = await at.open()
        stream, idle = await at.raw(path), await at.raw(path)
        async with stream, idle:
            await stream.send(post())
            await until(stream, b"one")
            await at.gateway.revoke(SESSION, FIRST)
            assert not path.exists()
            await until_end(stream)
            assert await until_end(idle) == b""
            await cut.wait()
        with pytest.raises(FileNotFoundError):
            connect_unix(path)
        await at.gateway.revoke(SESSION, FIRST)
    assert [(record.rule, record.status) for record in at.records] == [("cut", 200)]


async def test_a_gateway_that_is_reopened_cuts_what_is_open_and_serves_on(tmp_path: Path) -> None:
    async def streaming(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.begin_events()
        await exchange.event(b"data: one\n\n")
        await exchange.until_cut()
        exchange.keep = False

    async with house(tmp_path, streaming) as at:
        path = await at.open()
        stream, idle = await at.raw(path), await at.raw(path)
        before = path.stat().st_ino
        async with stream, idle:
            await stream.send(post())
            await until(stream, b"one")
            assert at.gateway.reopen() == 1
            await until_end(stream)
            assert await until_end(idle) == b""
        while path.stat().st_ino == before:  # noqa: ASYNC110  # nobody is told of it
            await anyio.sleep(0.001)
        again = await at.raw(path)
        async with again:
            await again.send(post())
            await until(again, b"one")
        await at.gateway.revoke(SESSION, FIRST)
        assert not path.exists()
    assert [record.rule for record in at.records] == ["cut", "cut"]


async def test_a_door_that_cannot_listen_anew_serves_on_as_it_was(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        path = await at.open()
        idle = await at.raw(path)
        path.rename(tmp_path / "elsewhere")
        path.mkdir()  # Something that no socket can take the place of.
        async with idle:
            at.gateway.reopen()
            assert await until_end(idle) == b""
        async with at.client(tmp_path / "elsewhere") as client:
            assert (await client.get("/v1/models")).status_code == 200


async def test_a_late_revoke_of_an_old_generation_does_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        await at.open(SESSION, FIRST)
        path = await at.open(SESSION, SECOND)
        await at.gateway.revoke(SESSION, FIRST)
        async with at.client(path) as client:
            assert (await client.get("/v1/models")).status_code == 200
    assert at.records[0].generation == SECOND


async def test_a_new_generation_cuts_the_old_one(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        old = await at.raw(await at.open(SESSION, FIRST))
        async with old:
            await at.open(SESSION, SECOND)
            assert await until_end(old) == b""
        with pytest.raises(ConflictError):
            await at.open(SESSION, FIRST)


async def test_opening_twice_is_opening_once(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        first = await at.raw(await at.open())
        async with first:
            await at.open()
            await first.send(post())
            assert b"200 OK" in await until(first, b"true}")


async def test_a_door_can_be_opened_again_while_it_closes(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        await at.open()
        async with anyio.create_task_group() as group:
            group.start_soon(at.gateway.revoke, SESSION, FIRST)
            await anyio.lowlevel.checkpoint()
            path = await at.open()
        async with at.client(path) as client:
            assert (await client.get("/v1/models")).status_code == 200


async def test_a_session_without_a_folder_costs_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        path = await at.open()
        shutil.rmtree(path.parent)
        await at.gateway.revoke(SESSION, FIRST)


async def test_closing_answers_who_waits_and_closes_every_door(tmp_path: Path) -> None:
    begun = anyio.Event()

    async def thinking(exchange: Exchange) -> None:
        await exchange.read_body()
        begun.set()
        await exchange.until_cut()
        exchange.keep = False

    async with FakeUpstream(thinking) as upstream:
        route = Route(prefix="/anthropic", upstream=upstream.url, key=KeySource.parse("env:CRAB_TEST_KEY"))
        async with Gateway([route]) as gateway:
            path = await gateway.open(SESSION, FIRST, tmp_path)
            waiting = await anyio.abc.SocketStream.from_socket(connect_unix(path))
            await waiting.send(post())
            await begun.wait()
        async with waiting:
            received = await until_end(waiting)
        assert received.startswith(b"HTTP/1.1 503")
        assert b"shutting-down" in received
        assert not path.exists()
        with pytest.raises(ConflictError):
            await gateway.open(OTHER, FIRST, tmp_path)


async def test_a_client_that_comes_and_goes_harms_nobody(tmp_path: Path) -> None:
    async with house(tmp_path, fine) as at:
        path = await at.open()
        for sent in (b"", b"\r\n", b"POST", post()[:-1], post()):
            connection = connect_unix(path)
            connection.sendall(sent)
            connection.close()
        async with at.client(path) as client:
            assert (await client.get("/v1/models")).status_code == 200


# Configuration


async def test_two_routes_with_one_prefix_are_refused() -> None:
    route = Route(prefix="/a", upstream="https://x.example", key=None, style="none")
    with pytest.raises(SettingsError):
        Gateway([route, route])


def test_tls_without_verification_is_refused() -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    with pytest.raises(SettingsError):
        Gateway([], tls=context)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key for `localhost`, made on the spot."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.parametrize("trusted", [True, False])
async def test_the_key_goes_only_to_a_verified_upstream(tmp_path: Path, certificate: Path, trusted: bool) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    client_side = ssl.create_default_context(cafile=str(certificate / "cert.pem") if trusted else None)
    async with FakeUpstream(fine, tls=server) as upstream:
        route = Route(prefix="/anthropic", upstream=upstream.url, key=KeySource.parse("env:CRAB_TEST_KEY"))
        async with Gateway([route], tls=client_side) as gateway:
            path = await gateway.open(SESSION, FIRST, tmp_path)
            stream = await anyio.abc.SocketStream.from_socket(connect_unix(path))
            async with stream:
                await stream.send(post())
                received = await until(stream, b"}")
        assert (b"200 OK" in received) is trusted
        assert [each.header("x-api-key") for each in upstream.exchanges] == ([[CANARY]] if trusted else [])
