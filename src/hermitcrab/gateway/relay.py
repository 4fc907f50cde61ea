"""One request on its way to an upstream, and the answer on its way back. Nothing is kept: pieces pass as they come.

Called by `listener.py` for requests that may pass. Works on the transport below httpx2's client: the client would
keep cookies, follow a proxy from the environment and log addresses with their queries; the transport does none of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import structlog

from hermitcrab.gateway.agent import AgentConnection, AgentGoneError, BodyRefusedError, too_large
from hermitcrab.gateway.keyring import Credential
from hermitcrab.gateway.limits import GatewayLimits
from hermitcrab.gateway.route import Route
from hermitcrab.logic.routes import Head, Refusal, Target, agent_headers, answer_refusal, upstream_headers

if TYPE_CHECKING:
    import httpx2

log = structlog.get_logger()

CLOSE_S = 2.0
"""For an upstream connection to close in an orderly way."""

OK = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """Everything that one request needs on its way."""

    head: Head
    target: Target
    route: Route
    credential: Credential
    limits: GatewayLimits


class Relay:
    """Carries one request. `rule` tells afterwards how it ended, `upstream_status` what the upstream said."""

    def __init__(self, connection: AgentConnection, transport: httpx2.AsyncHTTPTransport, passage: Passage) -> None:
        self._agent = connection
        self._transport = transport
        self._passage = passage
        self.rule = OK
        self.upstream_status = 0

    async def run(self) -> None:
        """Carry it to its end. Raises AgentGoneError when the connection to the agent cannot be used any more."""
        limit = self._passage.limits.body_bytes
        if (self._passage.head.body_length or 0) > limit:
            await self._refuse(too_large(limit))
            return
        if self._passage.head.body_length == 0:
            self._agent.skip_empty_body()
        gone = False
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                nonlocal gone
                await self._agent.hung_up()
                gone = True
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                await self._carry()
            except AgentGoneError:
                gone = True
            group.cancel_scope.cancel()
        if gone:
            if self.rule == OK:
                self.rule = "agent-gone"
            raise AgentGoneError("The agent hung up.")

    async def _carry(self) -> None:
        import httpx2  # noqa: PLC0415  # 170 ms that a host without a model request need not pay

        try:
            response = await self._transport.handle_async_request(self._request())
            self.upstream_status = response.status_code
            try:
                await self._answer(response)
            finally:
                # The connection first: what then still waits for it ends at once.
                with anyio.move_on_after(CLOSE_S, shield=True):
                    await response.aclose()
        except BodyRefusedError as error:
            await self._refuse(error.refusal)
        except httpx2.TimeoutException as error:
            await self._fail(error, 504, "upstream-timeout", "The upstream did not answer in time.")
        except httpx2.ConnectError as error:
            await self._fail(error, 502, "upstream-unreachable", "The upstream cannot be reached.")
        except httpx2.TransportError as error:
            await self._fail(error, 502, "upstream-cut", "The upstream broke off.")

    def _request(self) -> httpx2.Request:
        import httpx2  # noqa: PLC0415  # as above

        passage, limits = self._passage, self._passage.limits
        address = passage.route.base_path + passage.target.path + passage.target.query
        return httpx2.Request(
            passage.head.method,
            passage.route.origin,
            headers=upstream_headers(passage.head, host=passage.route.host, credential=passage.credential.headers),
            content=self._agent.body() if passage.head.body_length != 0 else None,
            extensions={
                # Byte for byte what was judged, past any second opinion on how to write it.
                "target": address.encode("ascii"),
                "timeout": {
                    "connect": limits.connect_s,
                    "write": limits.upstream_write_s,
                    "read": limits.upstream_quiet_s,
                    "pool": limits.connect_s,
                },
            },
        )

    async def _answer(self, response: httpx2.Response) -> None:
        import httpx2  # noqa: PLC0415  # as above

        raw = response.headers.raw
        refusal = answer_refusal(response.status_code, raw)
        if refusal is not None:
            await self._refuse(refusal)
            return
        scrubber = self._passage.credential.scrubber
        await self._agent.begin(response.status_code, self._scrubbed(agent_headers(raw)), _announced_length(raw))
        stream = scrubber.stream() if scrubber is not None else None
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        async for part in response.stream:
            ready = stream.feed(part) if stream is not None else part
            if ready:
                await self._agent.send(ready)
        if stream is not None and (rest := stream.finish()):
            await self._agent.send(rest)
        await self._agent.finish()

    def _scrubbed(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        scrubber = self._passage.credential.scrubber
        if scrubber is None:
            return list(headers)
        return [(name, scrubber.scrub(value)) for name, value in headers if not scrubber.taints(name)]

    async def _refuse(self, refusal: Refusal) -> None:
        self.rule = refusal.rule
        if self._agent.answering:
            await self._agent.refuse(refusal)
        else:
            # An answer has begun; only cutting it tells the agent that it is not whole.
            raise AgentGoneError("The answer cannot be completed.")

    async def _fail(self, error: Exception, status: int, rule: str, message: str) -> None:
        # The error's text may repeat what was sent; its kind may not.
        log.warning("gateway.upstream_failed", route=self._passage.route.prefix, rule=rule, error=type(error).__name__)
        await self._refuse(Refusal(status=status, rule=rule, message=message, retry=True))


def _announced_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The transport has made sure already that there is at most one, and that it is a number."""
    found = {name.lower(): value for name, value in headers}
    if b"transfer-encoding" in found or b"content-length" not in found:
        return None
    return int(found[b"content-length"])
