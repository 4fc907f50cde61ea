"""Attacks of family E on the thin gateway: what an agent, or an upstream, could try to get at the key or past the list.

Every test ends with a search for the key, in each form it could have, through all that an agent received, all that was
logged at the most talkative level, and every audit record.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import anyio
import anyio.abc
import pytest
import structlog

from hermitcrab.gateway.audit import AuditRecord
from hermitcrab.gateway.keyring import Credential
from hermitcrab.gateway.limits import GatewayLimits
from hermitcrab.gateway.listener import Gateway
from hermitcrab.gateway.route import Route
from hermitcrab.gateway.vault import KeySource
from hermitcrab.logic.routes import credential_headers
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.settings.sockets import connect_unix
from hermitcrab.testing.upstream import Exchange, FakeUpstream

CANARY = "sk-ant-api03-CANARY/not+a=real_key~in.any-way"  # made up; opens nothing
SESSION, OTHER = SessionId("sess-1"), SessionId("sess-2")
GENERATION = Generation(1)

Answer = Callable[[Exchange], Awaitable[None]]


def forms_of(secret: str) -> list[bytes]:
    raw = secret.encode()
    inner = [base64.b64encode(bytes(before) + raw)[4:-4] for before in range(3)]
    return [raw, quote(secret, safe="").encode(), raw.hex().encode(), *inner]


@dataclass
class Stage:
    """One gateway before one upstream, and everything that came out of it."""

    gateway: Gateway
    upstream: FakeUpstream
    folder: Path
    records: list[AuditRecord]
    logged: list[structlog.typing.EventDict]
    seen_by_agents: bytearray = field(default_factory=bytearray)

    async def door(self, session: SessionId = SESSION) -> Path:
        folder = self.folder / session
        folder.mkdir(exist_ok=True)
        return await self.gateway.open(session, GENERATION, folder)

    async def ask(self, raw: bytes, session: SessionId = SESSION) -> bytes:
        """All that comes back for these bytes on a connection of their own, until the gateway closes it."""
        connection = connect_unix(await self.door(session))
        async with await anyio.abc.SocketStream.from_socket(connection) as stream:
            await stream.send(raw)
            return await self.rest(stream)

    async def rest(self, stream: anyio.abc.SocketStream) -> bytes:
        received = b""
        try:
            while True:
                received += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            self.seen_by_agents += received
            return received


Make = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[structlog.typing.EventDict]]:
    caplog.set_level(logging.DEBUG)
    for name in ("httpcore2", "httpx2", "asyncio"):
        caplog.set_level(logging.DEBUG, name)
    with structlog.testing.capture_logs() as events:
        yield events


@pytest.fixture
def stage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    logged: list[structlog.typing.EventDict],
) -> Make:
    monkeypatch.setenv("CRAB_TEST_KEY", CANARY)

    @asynccontextmanager
    async def made(answer: Answer, limits: GatewayLimits | None = None) -> AsyncIterator[Stage]:
        records: list[AuditRecord] = []
        async with FakeUpstream(answer) as upstream:
            route = Route(prefix="/anthropic", upstream=upstream.url, key=KeySource.parse("env:CRAB_TEST_KEY"))
            async with Gateway([route], audit=records.append, limits=limits) as gateway:
                built = Stage(gateway, upstream, tmp_path, records, logged)
                yield built
        written = f"{records}{logged}{caplog.text}{gateway!r}{vars(gateway)}{vars(gateway.keyring)}".encode()
        for form in forms_of(CANARY):
            assert form not in built.seen_by_agents
            assert form not in written

    return made


async def fine(exchange: Exchange) -> None:
    await exchange.read_body()
    await exchange.reply(b"fine")


def request(line: str = "POST /anthropic/v1/messages HTTP/1.1", *headers: str, body: bytes = b"") -> bytes:
    fields = ["Host: x", "Connection: close", *headers, *([f"Content-Length: {len(body)}"] if body else [])]
    return "\r\n".join([line, *fields, "", ""]).encode("latin-1") + body


# Past the list (58, 59, 68)


@pytest.mark.parametrize(
    "line",
    [
        "CONNECT api.anthropic.com:443 HTTP/1.1",
        "CONNECT 169.254.169.254:80 HTTP/1.1",
        "CONNECT 127.0.0.1:22 HTTP/1.1",
        "CONNECT 2130706433:80 HTTP/1.1",
        "CONNECT [::ffff:127.0.0.1]:80 HTTP/1.1",
        "GET http://169.254.169.254/latest/meta-data HTTP/1.1",
        "POST http://api.anthropic.com/v1/messages HTTP/1.1",
        "POST //evil.example/anthropic/v1/messages HTTP/1.1",
        "POST /anthropic@evil.example/v1/messages HTTP/1.1",
        "POST /anthropic/v1/messages/../../admin HTTP/1.1",
        "POST /anthropic/v1/messages/..%2f..%2fadmin HTTP/1.1",
        "POST /anthropic/v1/%6d%65ssages HTTP/1.1",
        "POST /anthropic/v1\\..\\messages HTTP/1.1",
        "POST /anthropic/v1/messages#/v1/messages HTTP/1.1",
        "GET /anthropic/v1/organizations/api_keys HTTP/1.1",
        "POST /anthropic/v1/files HTTP/1.1",
        "TRACE /anthropic/v1/messages HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "PRI * HTTP/2.0",
        "GET / HTTP/1.0",
    ],
)
async def test_nothing_but_the_list_reaches_the_upstream(stage: Make, line: str) -> None:
    async with stage(fine) as at:
        answer = await at.ask(request(line))
        assert answer.split(b" ")[1] in {b"400", b"403", b"505"}
        assert at.upstream.exchanges == []
        assert at.upstream.connections == 0


async def test_who_the_request_is_for_is_decided_by_the_route_alone(stage: Make) -> None:
    async with stage(fine) as at:
        hosts = ["Host: evil.example", "Host: 169.254.169.254", "Host: x@evil.example"]
        for host in hosts:
            await at.ask(request().replace(b"Host: x", host.encode()))
        own = at.upstream.url.removeprefix("http://")
        assert [exchange.header("host") for exchange in at.upstream.exchanges] == [[own]] * 3


async def test_whose_request_it_is_is_decided_by_the_socket_alone(stage: Make) -> None:
    async with stage(fine) as at:
        claims = [f"X-Session: {OTHER}", f"X-Hermitcrab-Session: {OTHER}", f"Forwarded: for={OTHER}", f"From: {OTHER}"]
        for claim in claims:
            await at.ask(request("GET /anthropic/v1/models HTTP/1.1", claim), SESSION)
        assert {record.session for record in at.records} == {SESSION}
        await at.ask(request("GET /anthropic/v1/models HTTP/1.1", f"X-Session: {SESSION}"), OTHER)
        assert at.records[-1].session == OTHER


# Requests that can be read in two ways (60)


@pytest.mark.parametrize(
    "raw",
    [
        request("POST /anthropic/v1/messages HTTP/1.1", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        request("POST /anthropic/v1/messages HTTP/1.1", "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked"),
        request("POST /anthropic/v1/messages HTTP/1.1", "Transfer-Encoding:\tchunked, identity"),
        request("POST /anthropic/v1/messages HTTP/1.1", "Transfer-Encoding : chunked"),
        request("POST /anthropic/v1/messages HTTP/1.1", "X: y", " Transfer-Encoding: chunked"),
        request("POST /anthropic/v1/messages HTTP/1.1", "X: y\rTransfer-Encoding: chunked"),
        request("POST /anthropic/v1/messages HTTP/1.1", "X: y\nTransfer-Encoding: chunked"),
        request("POST /anthropic/v1/messages HTTP/1.1", "Content-Length: 1", body=b"xx"),
        request("POST /anthropic/v1/messages HTTP/1.1", "Host: y"),
        request("POST /anthropic/v1/messages HTTP/1.1", "X-Api-Key\x00: y"),
        request("POST /anthropic/v1/messages HTTP/1.1").replace(b"\r\n", b"\n"),
        b"\r\n" + request(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    ],
)
async def test_ambiguous_requests_are_refused_and_nothing_after_them_is_read(stage: Make, raw: bytes) -> None:
    async with stage(fine) as at:
        answer = await at.ask(raw + request())
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1") == 1
        assert at.upstream.connections == 0


@pytest.mark.parametrize(
    "chunk", [b"-1\r\n", b"0x5\r\nhello\r\n", b"+5\r\nhello\r\n", b"f" * 30 + b"\r\n", b"5\r\nhello!!", b"\r\n"]
)
async def test_a_broken_chunk_ends_the_request_on_both_sides(stage: Make, chunk: bytes) -> None:
    whole: list[bytes] = []

    async def taking(exchange: Exchange) -> None:
        whole.append(await exchange.read_body())
        await exchange.reply(b"taken")

    async with stage(taking) as at:
        head = request("POST /anthropic/v1/messages HTTP/1.1", "Transfer-Encoding: chunked")
        answer = await at.ask(head + b"2\r\nok\r\n" + chunk + b"0\r\n\r\n" + request())
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1") == 1
    assert whole == []


@pytest.mark.parametrize(
    "trick",
    [
        ["Connection: x-api-key, host, accept-encoding, content-length, authorization"],
        ["X-Api-Key: theirs", "x-api-key: theirs", "X_Api_Key: theirs", "x_api-key: theirs"],
        ["Authorization: Bearer theirs", "Proxy-Authorization: Basic theirs", "Cookie: theirs"],
        ["Keep-Alive: theirs", "TE: theirs", "Trailer: theirs", "Proxy-Connection: theirs", "Proxy-Anything: theirs"],
        ["X-Forwarded-For: theirs", "X-Forwarded-Host: theirs", "Forwarded: theirs", "X-Original-URL: theirs"],
        ["Connection: X-Smuggled", "X-Smuggled: theirs"],
        ["Accept-Encoding: theirs", "Expect: theirs", "X-HTTP-Method-Override: theirs"],
    ],
)
async def test_no_header_trick_replaces_removes_or_doubles_the_hosts_own(stage: Make, trick: list[str]) -> None:
    async with stage(fine) as at:
        await at.ask(request("POST /anthropic/v1/messages HTTP/1.1", *trick, body=b"{}"))
        (exchange,) = at.upstream.exchanges
        assert exchange.header("x-api-key") == [CANARY]
        assert exchange.header("accept-encoding") == ["identity"]
        assert exchange.header("content-length") == ["2"]
        assert "theirs" not in str(exchange.headers)


async def test_no_protocol_is_switched(stage: Make) -> None:
    async with stage(fine) as at:
        for upgrade in ("websocket", "h2c", "TLS/1.0"):
            answer = await at.ask(request("POST /anthropic/v1/messages HTTP/1.1", f"Upgrade: {upgrade}"))
            assert answer.startswith(b"HTTP/1.1 403 ")
        assert at.upstream.connections == 0


# Upstreams that send the key or the agent elsewhere (61)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_neither_followed_nor_passed_on(stage: Make, status: int) -> None:
    async with FakeUpstream(fine) as evil:

        async def elsewhere(exchange: Exchange) -> None:
            await exchange.read_body()
            await exchange.reply(b"go", status=status, headers=(("Location", f"{evil.url}/?k={CANARY}"),))

        async with stage(elsewhere) as at:
            answer = await at.ask(request())
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert b"ocation" not in answer
        assert evil.connections == 0


async def test_an_upstream_cannot_switch_protocols(stage: Make) -> None:
    async def switching(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello")

    async with stage(switching) as at:
        answer = await at.ask(request())
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"hello" not in answer


@pytest.mark.parametrize("status", [200, 400, 401, 500])
async def test_an_echo_of_the_request_does_not_hold_the_key(stage: Make, status: int) -> None:
    async def echoing(exchange: Exchange) -> None:
        await exchange.read_body()
        (key,) = exchange.header("x-api-key")
        inside = [base64.b64encode(b"user:"[before:] + key.encode() + b"!") for before in range(3)]
        body = b"\n".join([repr(exchange.headers).encode(), *forms_of(key)[:3], *inside])
        headers = (("X-Echo", key), ("X-Echo-Url", quote(key, safe="")), ("WWW-Authenticate", key), ("Set-Cookie", key))
        await exchange.reply(body, status=status, headers=headers)

    async with stage(echoing) as at:
        answer = await at.ask(request())
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"x-echo: ****" in answer
        assert len(answer.partition(b"\r\n\r\n")[2]) > 500


async def test_the_key_in_a_headers_name_or_a_trailer_stays_here(stage: Make) -> None:
    name = "sk-ant-CANARY-a-token-that-fits-a-name"  # made up

    async def naming(exchange: Exchange) -> None:
        await exchange.read_body()
        (key,) = exchange.header("x-api-key")
        await exchange.send(
            f"HTTP/1.1 200 {key}\r\n{key.upper()}: 1\r\n{key}: 1\r\nX-{key}: 2\r\n"
            f"Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nok\r\n0\r\nX-T: {key}\r\n\r\n".encode()
        )

    with pytest.MonkeyPatch.context() as patch:
        async with stage(naming) as at:
            patch.setenv("CRAB_TEST_KEY", name)
            answer = await at.ask(request())
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"2\r\nok\r\n0\r\n\r\n")
            assert name.lower().encode() not in answer.lower()


@pytest.mark.parametrize("size", [1, 3, 7])
async def test_the_key_in_small_pieces_stays_here(stage: Make, size: int) -> None:
    async def dripping(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.begin_events()
        text = b"data: " + CANARY.encode() + b" and " + base64.b64encode(b"xy" + CANARY.encode()) + b"\n\n"
        for begin in range(0, len(text), size):
            await exchange.event(text[begin : begin + size])
        await exchange.end_events()

    async with stage(dripping) as at:
        answer = await at.ask(request())
        assert answer.count(b"*") >= len(CANARY) * 2
        # The chunks' own framing may not be what keeps the pieces apart.
        at.seen_by_agents += b"".join(answer.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2])


@pytest.mark.parametrize("coding", ["gzip", "br", "x-anything"])
async def test_what_cannot_be_searched_does_not_pass(stage: Make, coding: str) -> None:
    async def packed(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.reply(b"packed", headers=(("Content-Encoding", coding),))

    async with stage(packed) as at:
        answer = await at.ask(request())
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"packed" not in answer


async def test_an_answer_slipped_in_behind_another_reaches_no_other_session(stage: Make) -> None:
    async def slipping(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.reply(b"honest")
        await exchange.reply(b"slipped in")

    async with stage(slipping) as at:
        await at.ask(request(), SESSION)
        other = await at.ask(request(), OTHER)
        assert other.endswith(b"honest")
        assert at.upstream.connections == 2


# Who may ask (62, 66)


async def test_one_sessions_end_is_not_anothers_and_its_own_is_final(stage: Make) -> None:
    async with stage(fine) as at:
        mine, theirs = await at.door(SESSION), await at.door(OTHER)
        held = await anyio.abc.SocketStream.from_socket(connect_unix(mine))
        async with held:
            await at.gateway.revoke(SESSION, GENERATION)
            assert await at.rest(held) == b""
        with pytest.raises(FileNotFoundError):
            connect_unix(mine)
        assert (await at.ask(request(), OTHER)).endswith(b"fine")
        assert theirs.exists()


async def test_a_request_halfway_through_its_body_is_cut_by_revoking(stage: Make) -> None:
    arrived, whole = anyio.Event(), anyio.Event()

    async def taking(exchange: Exchange) -> None:
        await exchange.body_part()
        arrived.set()
        await exchange.read_body()
        whole.set()

    async with stage(taking) as at:
        stream = await anyio.abc.SocketStream.from_socket(connect_unix(await at.door()))
        async with stream:
            await stream.send(request(body=b"x" * 1000)[:-1])
            await arrived.wait()
            await at.gateway.revoke(SESSION, GENERATION)
            assert await at.rest(stream) == b""
    assert not whole.is_set()
    assert [record.rule for record in at.records] == ["cut"]


async def test_a_gateway_that_died_leaves_nothing_that_hinders_the_next(stage: Make, tmp_path: Path) -> None:
    from hermitcrab.settings.sockets import bind_unix  # noqa: PLC0415  # stands for the process that died

    (tmp_path / SESSION).mkdir()
    bind_unix(tmp_path / SESSION, "gateway.sock", 0o600).close()
    async with stage(fine) as at:
        assert (await at.ask(request())).endswith(b"fine")


async def test_a_host_without_a_key_tells_the_agent_nothing_about_where_it_should_be(
    stage: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(fine) as at:
        monkeypatch.delenv("CRAB_TEST_KEY")
        answer = await at.ask(request())
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"CRAB_TEST_KEY" not in answer
        assert at.upstream.connections == 0


# Floods and drips (65, 67)


async def test_an_upload_that_nobody_takes_is_not_piled_up(stage: Make) -> None:
    done = anyio.Event()

    async def idle(exchange: Exchange) -> None:
        await done.wait()
        exchange.keep = False
        raise anyio.EndOfStream

    size = 48 * 1024 * 1024
    async with stage(idle) as at:
        sent = 0
        with connect_unix(await at.door()) as agent:
            agent.setblocking(False)
            agent.send(f"POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
            piece = bytes(64 * 1024)
            with anyio.move_on_after(1) as patience:
                while sent < size:
                    await anyio.wait_writable(agent)
                    sent += agent.send(piece)
            assert patience.cancelled_caught
            # Only what the kernel's buffers on the way hold; the gateway's own share is one piece.
            assert sent < size // 2
        done.set()


async def test_one_sessions_flood_of_connections_leaves_the_others_alone(stage: Make) -> None:
    async with stage(fine, GatewayLimits(connections=4)) as at:
        flood = [connect_unix(await at.door(SESSION)) for _ in range(40)]
        assert (await at.ask(request(), OTHER)).endswith(b"fine")
        for connection in flood:
            connection.close()


async def test_a_head_of_spaces_costs_no_time(stage: Make) -> None:
    async with stage(fine) as at:
        evil = request("POST /anthropic/v1/messages HTTP/1.1", "X: " + " " * 31000 + "\x00")
        assert (await at.ask(evil)).startswith(b"HTTP/1.1 400 ")
        hard = request("POST /anthropic/v1/messages HTTP/1.1", "X: " + "a " * 15000)
        assert (await at.ask(hard)).endswith(b"fine")


# Where the key might be written down (6, 14 of the gateway's own rules)


async def test_an_unexpected_fault_does_not_write_down_what_was_in_hand(
    tmp_path: Path,
    logged: list[structlog.typing.EventDict],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CRAB_TEST_KEY", CANARY)

    def breaking(record: AuditRecord) -> None:
        raise RuntimeError(f"{CANARY} was in hand at {record.status}")

    async with FakeUpstream(fine) as upstream:
        route = Route(prefix="/anthropic", upstream=upstream.url, key=KeySource.parse("env:CRAB_TEST_KEY"))
        async with Gateway([route], audit=breaking) as gateway:
            path = await gateway.open(SESSION, GENERATION, tmp_path)
            for _ in range(2):  # the fault of one connection is not the end of the door
                async with await anyio.abc.SocketStream.from_socket(connect_unix(path)) as stream:
                    await stream.send(request())
                    received = b""
                    while b"fine" not in received:
                        received += await stream.receive()
                    with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                        await stream.receive()
    faults = [event for event in logged if event["event"] == "gateway.fault"]
    assert [fault["error"] for fault in faults] == ["RuntimeError"] * 2
    assert CANARY not in str(logged) + caplog.text


async def test_records_hold_nothing_of_the_agents_own_words(stage: Make) -> None:
    async with stage(fine) as at:
        await at.ask(
            request("POST /anthropic/v1/messages?word=AGENTS-WORD HTTP/1.1", "X-A: AGENTS-WORD", body=b"AGENTS-WORD")
        )
        await at.ask(request("AGENTS-WORD /anthropic/v1/AGENTS-WORD HTTP/1.1"))
        await at.ask(request("GET /anthropic/v1/models/AGENTS-WORD HTTP/1.1"))
        assert [record.status for record in at.records] == [200, 403, 200]
        assert "AGENTS-WORD" not in f"{at.records}{at.logged}"


def test_a_credential_does_not_show_itself() -> None:
    credential = Credential(headers=credential_headers("anthropic", CANARY))
    assert "CANARY" not in repr(credential)
