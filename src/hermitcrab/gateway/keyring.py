"""The keys of all routes as they stand: read at use, judged by what the upstream says to them, reported once.

`listener.py` asks for a credential for each request; `crab doctor` and the people of a session hear what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio.to_thread
import structlog

from hermitcrab.gateway.audit import Notify
from hermitcrab.gateway.route import Route, check_route, missing_key
from hermitcrab.gateway.scrub import Scrubber
from hermitcrab.gateway.vault import Secret
from hermitcrab.logic.routes import Headers, Refusal, credential_headers
from hermitcrab.model.container import Finding
from hermitcrab.model.ids import SessionId

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Credential:
    """What one request carries of the host's, and what its answer must not show."""

    headers: Headers = field(default=(), repr=False)
    scrubber: Scrubber | None = None


class Keyring:
    def __init__(self, routes: Sequence[Route], notify: Notify | None) -> None:
        self._routes = routes
        self._notify = notify
        self._told: dict[SessionId, set[Finding]] = {}
        self._refused: dict[str, Finding] = {}
        self._scrubbers: dict[str, tuple[Secret, Scrubber]] = {}

    async def credential(self, session: SessionId, route: Route) -> Credential | Refusal:
        """The route's key as headers. When there is none, the agent gets a refusal and the host's people a finding."""
        if route.key is None:
            return Credential()
        found = await anyio.to_thread.run_sync(route.key.read) if route.key.kind == "file" else route.key.read()
        if isinstance(found, Secret):
            headers = credential_headers(route.style, found.reveal())
            return Credential(headers=headers, scrubber=self._scrubber(route, found))
        self._tell(session, missing_key(route, found))
        return Refusal(
            status=503, rule="key-missing", message=f"The host has no key for {route.prefix}. Its operator was told."
        )

    def judge(self, session: SessionId, route: Route, status: int) -> None:
        """Take note of what the upstream answered: 401 means that it does not take the key."""
        if route.key is None:
            return
        if status == 401:
            self._refused[route.prefix] = Finding(
                subject=f"gateway {route.prefix}",
                level="error",
                text=f"{route.host} refuses the key of {route.key}",
                fix="Replace the key; it is read anew for each request.",
            )
            self._tell(session, self._refused[route.prefix])
        elif 200 <= status < 300:
            self._refused.pop(route.prefix, None)

    async def findings(self) -> list[Finding]:
        """How each route stands: whether its key can be read, and whether the upstream still takes it."""
        found = [(route, await check_route(route)) for route in self._routes]
        return [
            self._refused.get(route.prefix, finding) if finding.level == "ok" else finding for route, finding in found
        ]

    def forget(self, session: SessionId) -> None:
        """A new container of the session may be told again."""
        self._told.pop(session, None)

    def _tell(self, session: SessionId, finding: Finding) -> None:
        told = self._told.setdefault(session, set())
        if finding in told:
            return
        told.add(finding)
        log.warning("gateway.key_unusable", session=session, subject=finding.subject, text=finding.text)
        if self._notify is not None:
            self._notify(session, finding)

    def _scrubber(self, route: Route, secret: Secret) -> Scrubber:
        known = self._scrubbers.get(route.prefix)
        if known is None or known[0].reveal() != secret.reveal():
            known = self._scrubbers[route.prefix] = (secret, Scrubber(secret))
        return known[1]
