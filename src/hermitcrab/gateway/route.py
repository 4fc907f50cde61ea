"""A base-URL route: `http://127.0.0.1:PORT<prefix>/v1/...` in a container becomes `<upstream>/v1/...` with the key."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio.to_thread

from hermitcrab.errors import SettingsError
from hermitcrab.gateway.vault import KeyProblem, KeySource
from hermitcrab.logic.routes import ANTHROPIC_CALLS, PATH, PREFIX, Call, HeaderStyle
from hermitcrab.model.container import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Raises SettingsError when it is made of parts that would not be safe together."""

    prefix: str
    """Like `/anthropic`."""
    upstream: str
    """Like `https://api.anthropic.com`. Plain http only to this machine (local models, tests)."""
    key: KeySource | None
    """None exactly when `style` is `none`."""
    style: HeaderStyle = "anthropic"
    calls: tuple[Call, ...] = ANTHROPIC_CALLS

    def __post_init__(self) -> None:
        if not PREFIX.fullmatch(self.prefix):
            raise SettingsError(f"{self.prefix!r} is no prefix of a route.", hint="Write it like /anthropic.")
        if (self.key is None) != (self.style == "none"):
            raise SettingsError(
                f"Route {self.prefix} must either have a key and a way to send it, or neither.",
                hint='Without a key, set its header style to "none".',
            )
        _check_upstream(self.prefix, self.upstream)

    @property
    def host(self) -> str:
        """Host and, where it is not the usual one, port: what goes into the Host header."""
        return urlsplit(self.upstream).netloc.lower()

    @property
    def base_path(self) -> str:
        return urlsplit(self.upstream).path.rstrip("/")

    @property
    def origin(self) -> str:
        return f"{urlsplit(self.upstream).scheme}://{self.host}"


async def check_routes(routes: Sequence[Route]) -> list[Finding]:
    """One line for each route: whether its key can be read now. For `crab doctor`, with or without a host."""
    return [await check_route(route) for route in routes]


async def check_route(route: Route) -> Finding:
    subject = f"gateway {route.prefix}"
    if route.key is None:
        return Finding(subject=subject, level="ok", text=f"goes to {route.host}; needs no key")
    found = await anyio.to_thread.run_sync(route.key.read)
    if isinstance(found, KeyProblem):
        return missing_key(route, found)
    return Finding(subject=subject, level="ok", text=f"goes to {route.host} with the key of {route.key}")


def missing_key(route: Route, problem: KeyProblem) -> Finding:
    return Finding(subject=f"gateway {route.prefix}", level="error", text=f"No key: {problem.text}", fix=problem.fix)


def _check_upstream(prefix: str, upstream: str) -> None:
    try:
        parts = urlsplit(upstream)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise SettingsError(f"The upstream of route {prefix} is no address.") from None
    plain = bool(host) and upstream.isascii() and all("!" <= character <= "~" for character in upstream)
    path = parts.path.rstrip("/")
    if (
        not plain
        or "@" in parts.netloc
        or parts.query
        or parts.fragment
        or (path and (not PATH.fullmatch(path) or {".", ".."} & set(path.split("/"))))
    ):
        raise SettingsError(
            f"The upstream of route {prefix} is not a plain address.",
            hint="Write scheme://host[:port][/path], without a user, a query or a fragment.",
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise SettingsError(
            f"The upstream of route {prefix} must be reached by https.",
            hint="Plain http is accepted only for this machine (127.0.0.1, [::1], localhost).",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
