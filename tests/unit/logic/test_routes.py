"""The strict reading of request heads, the list of calls, and what happens to headers on both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.routes import (
    ANTHROPIC_CALLS,
    MAX_HEADERS,
    NOT_FROM_AGENTS,
    Call,
    Head,
    Refusal,
    Target,
    agent_headers,
    answer_refusal,
    credential_headers,
    decide,
    known_method,
    read_head,
    upstream_headers,
)

ROUTES = {"/anthropic": ANTHROPIC_CALLS}


def head_of(raw: bytes) -> Head:
    head = read_head(raw)
    assert isinstance(head, Head), head
    return head


def request(line: str = "POST /anthropic/v1/messages HTTP/1.1", *headers: str) -> bytes:
    return "\r\n".join([line, "Host: x", *headers, "", ""]).encode("latin-1")


def rule_of(raw: bytes) -> str:
    head = read_head(raw)
    outcome = head if isinstance(head, Refusal) else decide(head, ROUTES)
    return outcome.rule if isinstance(outcome, Refusal) else "ok"


def test_a_request_is_read_into_its_parts() -> None:
    head = head_of(request("POST /anthropic/v1/messages?beta=true HTTP/1.1", "Content-Length: 12", "X-Y:  a b \t"))
    assert (head.method, head.target, head.body_length) == ("POST", "/anthropic/v1/messages?beta=true", 12)
    assert head.headers == ((b"host", b"x"), (b"content-length", b"12"), (b"x-y", b"a b"))


@pytest.mark.parametrize(
    ("line", "path", "query"),
    [
        ("POST /anthropic/v1/messages HTTP/1.1", "/v1/messages", ""),
        ("POST /anthropic/v1/messages?beta=true HTTP/1.1", "/v1/messages", "?beta=true"),
        ("POST /anthropic/v1/messages/count_tokens HTTP/1.1", "/v1/messages/count_tokens", ""),
        ("GET /anthropic/v1/models?limit=%32&after=a%20b HTTP/1.1", "/v1/models", "?limit=%32&after=a%20b"),
        ("GET /anthropic/v1/models/some-model.1@2:x~y HTTP/1.1", "/v1/models/some-model.1@2:x~y", ""),
    ],
)
def test_listed_calls_pass_unchanged(line: str, path: str, query: str) -> None:
    target = decide(head_of(request(line)), ROUTES)
    assert isinstance(target, Target)
    assert (target.prefix, target.path, target.query) == ("/anthropic", path, query)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("GET /anthropic/v1/messages HTTP/1.1", "call-not-allowed"),
        ("POST /anthropic/v1/messages/ HTTP/1.1", "path"),
        ("POST /anthropic/v1/messages/batches HTTP/1.1", "call-not-allowed"),
        ("POST /anthropic/v1/files HTTP/1.1", "call-not-allowed"),
        ("POST /anthropic/v1/organizations/api_keys HTTP/1.1", "call-not-allowed"),
        ("DELETE /anthropic/v1/models/x HTTP/1.1", "call-not-allowed"),
        ("GET /anthropic/v1/models/x/y HTTP/1.1", "call-not-allowed"),
        ("TRACE /anthropic/v1/messages HTTP/1.1", "call-not-allowed"),
        ("post /anthropic/v1/messages HTTP/1.1", "call-not-allowed"),
        ("POST /anthropic HTTP/1.1", "call-not-allowed"),
        ("POST /Anthropic/v1/messages HTTP/1.1", "no-route"),
        ("POST /anthropicx/v1/messages HTTP/1.1", "no-route"),
        ("POST /v1/messages HTTP/1.1", "no-route"),
        ("POST / HTTP/1.1", "path"),
        ("POST //anthropic/v1/messages HTTP/1.1", "path"),
        ("POST /anthropic//v1/messages HTTP/1.1", "path"),
        ("POST /anthropic/v1/../v1/messages HTTP/1.1", "path"),
        ("POST /anthropic/./v1/messages HTTP/1.1", "path"),
        ("POST /anthropic/v1%2fmessages HTTP/1.1", "path"),
        ("POST /anthropic/v1/%2e%2e/messages HTTP/1.1", "path"),
        ("POST /anthropic/v1/messages%00 HTTP/1.1", "path"),
        ("POST /anthropic/v1/messages;x=1 HTTP/1.1", "path"),
        ("POST /anthropic/v1\\messages HTTP/1.1", "path"),
        ("POST /anthropic/v1/messages#x HTTP/1.1", "path"),
        ("POST /anthropic/v1/messages?a=%0d%0aX HTTP/1.1", "query"),
        ("POST /anthropic/v1/messages?a=%7F HTTP/1.1", "query"),
        ("POST /anthropic/v1/messages?a=%zz HTTP/1.1", "query"),
        ("POST /anthropic/v1/messages?a=<b> HTTP/1.1", "query"),
        ("POST http://evil.example/anthropic/v1/messages HTTP/1.1", "absolute-form"),
        ("POST https://api.anthropic.com/v1/messages HTTP/1.1", "absolute-form"),
        ("OPTIONS * HTTP/1.1", "absolute-form"),
        ("CONNECT api.anthropic.com:443 HTTP/1.1", "connect"),
        ("CONNECT /anthropic/v1/messages HTTP/1.1", "connect"),
        ("POST /anthropic/v1/messages HTTP/1.0", "http-version"),
        ("POST /anthropic/v1/messages HTTP/2.0", "http-version"),
        ("POST /anthropic/v1/messages http/1.1", "malformed"),
        ("POST  /anthropic/v1/messages HTTP/1.1", "malformed"),
        ("POST /anthropic/v1/mess ages HTTP/1.1", "malformed"),
        ("POST /anthropic/v1/m\xe9ssages HTTP/1.1", "malformed"),
        ("POST /anthropic/v1/messages", "malformed"),
        (" POST /anthropic/v1/messages HTTP/1.1", "malformed"),
        ("P(ST /anthropic/v1/messages HTTP/1.1", "malformed"),
        ("", "malformed"),
        (f"GET /anthropic/v1/models?{'x' * 5000} HTTP/1.1", "target-too-long"),
    ],
)
def test_anything_else_is_refused_by_a_named_rule(line: str, rule: str) -> None:
    assert rule_of(request(line)) == rule


@pytest.mark.parametrize(
    ("headers", "rule"),
    [
        (["Host: y"], "malformed"),
        (["X-A: 1", " folded"], "malformed"),
        (["X-A: 1", "\tfolded"], "malformed"),
        (["X-A : 1"], "malformed"),
        (["X-A"], "malformed"),
        ([": 1"], "malformed"),
        (["X-A: a\x00b"], "malformed"),
        (["X-A: a\rb"], "malformed"),
        (["X-A: a\nContent-Length: 5"], "malformed"),
        (["X-A: a\x7fb"], "malformed"),
        (["X\xc4: a"], "malformed"),
        (["Content-Length: 5", "Content-Length: 5"], "ambiguous-framing"),
        (["Content-Length: 5", "Content-Length: 6"], "ambiguous-framing"),
        (["Content-Length: 5, 5"], "ambiguous-framing"),
        (["Content-Length: +5"], "ambiguous-framing"),
        (["Content-Length: -5"], "ambiguous-framing"),
        (["Content-Length: 0x5"], "ambiguous-framing"),
        (["Content-Length:"], "ambiguous-framing"),
        (["Content-Length: 9999999999999999999"], "ambiguous-framing"),
        (["Content-Length: 5", "Transfer-Encoding: chunked"], "ambiguous-framing"),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], "ambiguous-framing"),
        (["Transfer-Encoding: gzip, chunked"], "ambiguous-framing"),
        (["Transfer-Encoding: identity"], "ambiguous-framing"),
        (["Transfer-Encoding: xchunked"], "ambiguous-framing"),
        (["Transfer-Encoding:"], "ambiguous-framing"),
        (["Upgrade: websocket", "Connection: Upgrade"], "upgrade"),
        (["HTTP2-Settings: AAMAAABkAAQAAP__"], "upgrade"),
        ([f"X-{n}: 1" for n in range(MAX_HEADERS)], "too-many-headers"),
        (["Transfer-Encoding: Chunked"], "ok"),
        (["Content-Length: 5"], "ok"),
    ],
)
def test_headers_that_can_be_read_in_two_ways_are_refused(headers: list[str], rule: str) -> None:
    assert rule_of(request("POST /anthropic/v1/messages HTTP/1.1", *headers)) == rule


def test_a_request_without_a_host_is_refused() -> None:
    assert rule_of(b"POST /anthropic/v1/messages HTTP/1.1\r\nX: y\r\n\r\n") == "malformed"


def test_a_reading_call_takes_no_body() -> None:
    line = "GET /anthropic/v1/models HTTP/1.1"
    assert rule_of(request(line, "Content-Length: 1")) == "body-not-allowed"
    assert rule_of(request(line, "Transfer-Encoding: chunked")) == "body-not-allowed"
    assert rule_of(request(line, "Content-Length: 0")) == "ok"


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_and_a_read_head_says_what_was_sent(raw: bytes) -> None:
    head = read_head(raw + b"\r\n\r\n")
    if isinstance(head, Head):
        assert raw.startswith(head.method.encode() + b" " + head.target.encode() + b" HTTP/1.1")


@given(st.text(alphabet="/.%2eEfFv1mesag\\?#;: ", max_size=40))
def test_no_spelling_of_a_path_reaches_more_than_the_list(path: str) -> None:
    head = read_head(f"POST /anthropic{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    if isinstance(head, Head):
        target = decide(head, ROUTES)
        if isinstance(target, Target):
            assert target.path in {"/v1/messages", "/v1/messages/count_tokens"}


def test_a_star_stands_for_one_segment() -> None:
    call = Call(method="GET", path="/v1/models/*")
    assert call.allows("GET", "/v1/models/x")
    assert not call.allows("GET", "/v1/models")
    assert not call.allows("GET", "/v1/models/x/y")
    assert not call.allows("POST", "/v1/models/x")


def test_the_agents_credentials_and_hop_headers_do_not_pass() -> None:
    names = sorted(name.decode() for name in NOT_FROM_AGENTS - {b"host", b"content-length", b"transfer-encoding"})
    spellings = [spelling for name in names for spelling in (name, name.title(), name.replace("-", "_"))]
    head = head_of(request("POST /anthropic/v1/messages HTTP/1.1", *(f"{name}: theirs" for name in spellings[:98])))
    rest = head_of(request("POST /anthropic/v1/messages HTTP/1.1", *(f"{name}: theirs" for name in spellings[98:])))
    for each in (head, rest):
        sent = upstream_headers(each, host="up", credential=((b"x-api-key", b"ours"),))
        assert b"theirs" not in [value for _, value in sent]
        assert [value for name, value in sent if name == b"x-api-key"] == [b"ours"]


def test_headers_named_by_connection_do_not_pass() -> None:
    head = head_of(request("POST /anthropic/v1/messages HTTP/1.1", "X-A: 1", "X-B: 2", "Connection: close, X-A"))
    assert upstream_headers(head, host="up", credential=()) == [
        (b"host", b"up"),
        (b"x-b", b"2"),
        (b"accept-encoding", b"identity"),
        (b"content-length", b"0"),
    ]


def test_naming_the_hosts_own_header_in_connection_does_not_remove_it() -> None:
    head = head_of(request("POST /anthropic/v1/messages HTTP/1.1", "Connection: x-api-key, host, accept-encoding"))
    sent = dict(upstream_headers(head, host="up", credential=((b"x-api-key", b"ours"),)))
    assert (sent[b"x-api-key"], sent[b"host"], sent[b"accept-encoding"]) == (b"ours", b"up", b"identity")


@pytest.mark.parametrize(
    ("header", "framing"),
    [
        ("Content-Length: 7", (b"content-length", b"7")),
        ("Transfer-Encoding: CHUNKED", (b"transfer-encoding", b"chunked")),
    ],
)
def test_the_body_is_framed_as_it_was_read(header: str, framing: tuple[bytes, bytes]) -> None:
    sent = upstream_headers(head_of(request("POST /a/b HTTP/1.1", header)), host="up", credential=())
    assert [item for item in sent if item[0] in {b"content-length", b"transfer-encoding"}] == [framing]


def test_an_api_key_and_an_oauth_token_travel_in_their_own_ways() -> None:
    assert credential_headers("anthropic", "sk-ant-api-x") == ((b"x-api-key", b"sk-ant-api-x"),)
    assert dict(credential_headers("anthropic", "sk-ant-oat-x"))[b"authorization"] == b"Bearer sk-ant-oat-x"
    assert credential_headers("bearer", "word") == ((b"authorization", b"Bearer word"),)
    assert credential_headers("none", "word") == ()


def test_the_oauth_mark_is_added_to_the_agents_own() -> None:
    head = head_of(request("POST /a/b HTTP/1.1", "anthropic-beta: one, two", "anthropic-beta: one,three"))
    sent = upstream_headers(head, host="up", credential=credential_headers("anthropic", "sk-ant-oat-x"))
    assert [value for name, value in sent if name == b"anthropic-beta"] == [b"one,two,three,oauth-2025-04-20"]
    plain = upstream_headers(head, host="up", credential=credential_headers("anthropic", "sk-ant-api-x"))
    assert [value for name, value in plain if name == b"anthropic-beta"] == [b"one, two", b"one,three"]


def test_an_answers_hop_and_state_headers_stay_here() -> None:
    came = [
        (b"Content-Type", b"text/plain"),
        (b"Set-Cookie", b"a=b"),
        (b"WWW-Authenticate", b"Bearer"),
        (b"Proxy-Status", b"x"),
        (b"Alt-Svc", b"h3"),
        (b"Connection", b"X-Hop"),
        (b"X-Hop", b"1"),
        (b"Retry-After", b"3"),
    ]
    assert agent_headers(came) == [(b"content-type", b"text/plain"), (b"retry-after", b"3")]


@pytest.mark.parametrize("status", [101, 300, 301, 302, 303, 307, 308])
def test_redirects_and_switches_do_not_reach_agents(status: int) -> None:
    refusal = answer_refusal(status, [(b"location", b"https://evil.example")])
    assert refusal is not None
    assert (refusal.status, refusal.rule) == (502, "upstream-redirect")


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"identity, gzip", b"GZIP"])
def test_answers_that_cannot_be_scanned_do_not_reach_agents(coding: bytes) -> None:
    refusal = answer_refusal(200, [(b"Content-Encoding", coding)])
    assert refusal is not None
    assert refusal.rule == "upstream-encoding"


@pytest.mark.parametrize("status", [200, 204, 304, 400, 401, 429, 500, 529])
def test_ordinary_answers_pass(status: int) -> None:
    assert answer_refusal(status, [(b"content-encoding", b"identity")]) is None


def test_records_show_only_well_known_methods() -> None:
    assert known_method("POST") == "POST"
    assert known_method("sk-in-the-method") == "other"
