"""What the thin gateway lets through: one strict reading of a request's head, and a closed list of calls.

Pure functions over bytes. `gateway/agent.py` reads heads with `read_head`, `gateway/relay.py` asks `decide` and builds
both sets of headers here. Whatever could be read in two ways is refused, so that no other parser down the road can
see another request than the one that was judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

HeaderStyle = Literal["anthropic", "bearer", "none"]
"""How a key travels: Anthropic's two ways, `Authorization: Bearer`, or not at all (local models)."""

Headers = tuple[tuple[bytes, bytes], ...]
"""Names in lower case, in the order in which they came."""

MAX_HEADERS = 100
MAX_TARGET_BYTES = 4096

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
HEADER_NAME = re.compile(TOKEN)
HEADER_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
"""No space before the colon, no control characters, and no leading space: a folded line matches nothing."""

PATH = re.compile(r"(?:/[A-Za-z0-9_~:@.-]+)+")
"""Nothing encoded, no empty segment: a path has one spelling."""

QUERY = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%(?![01][0-9A-Fa-f]|7[Ff])[0-9A-Fa-f]{2})*")

PREFIX = re.compile(r"/[a-z0-9][a-z0-9-]{0,30}")

KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)

NOT_FROM_AGENTS = HOP_BY_HOP | {
    # Credentials: only the host's own may pass.
    b"authorization",
    b"proxy-authorization",
    b"x-api-key",
    b"api-key",
    b"x-goog-api-key",
    b"cookie",
    b"cookie2",
    # Set anew for the upstream.
    b"host",
    b"content-length",
    b"accept-encoding",
    b"expect",
    # What an upstream might believe about where a request comes from, or might take for another request.
    b"forwarded",
    b"via",
    b"x-real-ip",
    b"x-http-method",
    b"x-http-method-override",
    b"x-method-override",
    b"x-original-url",
    b"x-rewrite-url",
}

NOT_FOR_AGENTS = HOP_BY_HOP | {
    b"set-cookie",
    b"set-cookie2",
    b"www-authenticate",
    b"authentication-info",
    b"alt-svc",  # there is no other way out of a container
    b"strict-transport-security",
    b"location",
    b"refresh",
    b"content-length",  # set anew by whoever frames the answer
}

OAUTH_PREFIX = "sk-ant-oat"
OAUTH_BETA = b"oauth-2025-04-20"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One thing that an agent may ask of an upstream."""

    method: str
    path: str
    """Below the route's prefix. A last `/*` stands for exactly one segment."""

    def allows(self, method: str, path: str) -> bool:
        if method != self.method:
            return False
        if self.path.endswith("/*"):
            return path.rpartition("/")[0] == self.path.removesuffix("/*")
        return path == self.path

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


ANTHROPIC_CALLS = (
    Call(method="POST", path="/v1/messages"),
    Call(method="POST", path="/v1/messages/count_tokens"),
    Call(method="GET", path="/v1/models"),
    Call(method="GET", path="/v1/models/*"),
)

OPENAI_CALLS = (
    Call(method="POST", path="/v1/chat/completions"),
    Call(method="POST", path="/v1/responses"),
    Call(method="POST", path="/v1/embeddings"),
    Call(method="GET", path="/v1/models"),
    Call(method="GET", path="/v1/models/*"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the gateway answers a request itself."""

    status: int
    rule: str
    message: str
    retry: bool = False
    """Whether the same request may succeed later without anybody changing anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A request's first lines, as the one parser understood them."""

    method: str
    target: str
    headers: Headers
    body_length: int | None
    """None: chunked. 0: no body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A request that may pass."""

    prefix: str
    call: Call
    path: str
    """Below the prefix; begins with `/`."""
    query: str
    """With its question mark, or empty."""


def read_head(raw: bytes) -> Head | Refusal:
    """The head of one request, from its first byte to the empty line that ends it, or why it is refused."""
    if not raw.endswith(b"\r\n\r\n"):
        return _malformed("lines must end with CR LF")
    first, *lines = raw[:-4].split(b"\r\n")
    matched = REQUEST_LINE.fullmatch(first)
    if matched is None:
        return _malformed("the request line cannot be read")
    if (matched[3], matched[4]) != (b"1", b"1"):
        return Refusal(status=505, rule="http-version", message="Only HTTP/1.1 is spoken here.")
    if len(matched[2]) > MAX_TARGET_BYTES:
        return Refusal(status=414, rule="target-too-long", message="The address is too long.")
    if len(lines) > MAX_HEADERS:
        return Refusal(status=431, rule="too-many-headers", message=f"More than {MAX_HEADERS} headers.")
    headers: list[tuple[bytes, bytes]] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(value):
            return _malformed("a header cannot be read, or is folded over two lines")
        headers.append((name.lower(), value.strip(b" \t")))
    length = _body_length(headers)
    if isinstance(length, Refusal):
        return length
    if len(_values(headers, b"host")) != 1:
        return _malformed("there must be exactly one Host header")
    return Head(
        method=matched[1].decode("ascii"),
        target=matched[2].decode("ascii"),
        headers=tuple(headers),
        body_length=length,
    )


def decide(head: Head, routes: Mapping[str, Sequence[Call]]) -> Target | Refusal:
    """Where a request goes, or the rule that refuses it. `routes`: prefix -> what may be called there."""
    if head.method == "CONNECT":
        return _forbidden("connect", "There are no tunnels here; use the base address of a model.")
    if not head.target.startswith("/"):
        return _forbidden("absolute-form", "Only paths are accepted; this is not a proxy.")
    if _values(head.headers, b"upgrade") or _values(head.headers, b"http2-settings"):
        return _forbidden("upgrade", "Connections cannot be upgraded to another protocol.")
    path, mark, query = head.target.partition("?")
    segments = path.split("/")
    if not PATH.fullmatch(path) or "." in segments or ".." in segments:
        return _forbidden("path", "The path has characters, encodings or dots that are not accepted.")
    if not QUERY.fullmatch(query):
        return _forbidden("query", "The query has characters or encodings that are not accepted.")
    prefix, rest = "/" + segments[1], "/" + "/".join(segments[2:])
    if prefix not in routes:
        return _forbidden("no-route", "No route begins like this.")
    call = next((call for call in routes[prefix] if call.allows(head.method, rest)), None)
    if call is None:
        return _forbidden("call-not-allowed", "This call is not on the list of what agents may ask for.")
    if head.method == "GET" and head.body_length != 0:
        return Refusal(status=400, rule="body-not-allowed", message="This call takes no body.")
    return Target(prefix=prefix, call=call, path=rest, query=mark + query)


def credential_headers(style: HeaderStyle, key: str) -> Headers:
    """What a key becomes for its own upstream."""
    match style:
        case "none":
            return ()
        case "bearer":
            return ((b"authorization", b"Bearer " + key.encode("ascii")),)
        case "anthropic" if key.startswith(OAUTH_PREFIX):
            return ((b"authorization", b"Bearer " + key.encode("ascii")), (b"anthropic-beta", OAUTH_BETA))
        case "anthropic":
            return ((b"x-api-key", key.encode("ascii")),)


def upstream_headers(head: Head, *, host: str, credential: Headers) -> list[tuple[bytes, bytes]]:
    """The headers for the upstream: the agent's without anything that identifies or frames, then the host's own."""
    dropped = NOT_FROM_AGENTS | _connection_named(head.headers)
    kept = [
        (name, value)
        for name, value in head.headers
        # Some servers read `x_api_key` as `x-api-key`.
        if name.replace(b"_", b"-") not in dropped and not name.startswith((b"x-forwarded", b"proxy-"))
    ]
    ours = dict(credential)
    if b"anthropic-beta" in ours:
        wanted = [part.strip() for value in _values(kept, b"anthropic-beta") for part in value.split(b",")]
        kept = [(name, value) for name, value in kept if name != b"anthropic-beta"]
        ours[b"anthropic-beta"] = b",".join(dict.fromkeys([*filter(None, wanted), ours[b"anthropic-beta"]]))
    framing: list[tuple[bytes, bytes]] = []
    if head.body_length is None:
        framing = [(b"transfer-encoding", b"chunked")]
    elif head.body_length or head.method == "POST":
        framing = [(b"content-length", str(head.body_length).encode())]
    # Identity: what comes back must be readable for the scrubber.
    return [(b"host", host.encode("ascii")), *kept, *ours.items(), (b"accept-encoding", b"identity"), *framing]


def agent_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an upstream's answer that an agent may see; framing is set by whoever sends it."""
    listed = tuple((name.lower(), value) for name, value in headers)
    dropped = NOT_FOR_AGENTS | _connection_named(listed)
    return [(name, value) for name, value in listed if name not in dropped and not name.startswith(b"proxy-")]


def answer_refusal(status: int, headers: Iterable[tuple[bytes, bytes]]) -> Refusal | None:
    """Why an upstream's answer may not reach an agent, or None."""
    if status < 200 or (300 <= status < 400 and status != 304):
        return Refusal(status=502, rule="upstream-redirect", message="The upstream points elsewhere; not followed.")
    coded = [value.strip().lower() for name, value in headers if name.lower() == b"content-encoding"]
    if any(value not in {b"", b"identity"} for value in coded):
        return Refusal(
            status=502, rule="upstream-encoding", message="The upstream's answer is encoded and cannot be checked."
        )
    return None


def known_method(method: str) -> str:
    """The method as records may show it: a well-known word, never an agent's own text."""
    return method if method in KNOWN_METHODS else "other"


def _body_length(headers: Sequence[tuple[bytes, bytes]]) -> int | Refusal | None:
    lengths, codings = _values(headers, b"content-length"), _values(headers, b"transfer-encoding")
    if codings:
        if lengths or [value.lower() for value in codings] != [b"chunked"]:
            return _ambiguous()
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,15}", lengths[0]):
        return _ambiguous()
    return int(lengths[0])


def _connection_named(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    return frozenset(
        part.strip().lower() for value in _values(headers, b"connection") for part in value.split(b",") if part.strip()
    )


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for found, value in headers if found == name]


def _malformed(what: str) -> Refusal:
    return Refusal(status=400, rule="malformed", message=f"Not a request that can be read in only one way: {what}.")


def _ambiguous() -> Refusal:
    return Refusal(status=400, rule="ambiguous-framing", message="It is not clear where the body of the request ends.")


def _forbidden(rule: str, message: str) -> Refusal:
    return Refusal(status=403, rule=rule, message=message)
