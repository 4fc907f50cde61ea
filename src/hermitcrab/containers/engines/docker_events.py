"""The event stream of a Docker or Podman daemon as engine events that never end. Used by the Docker engine."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import anyio

from hermitcrab.containers.engines.docker_api import EngineApi
from hermitcrab.errors import EngineError
from hermitcrab.model.container import LABEL_INSTALLATION, EngineEvent
from hermitcrab.model.ids import InstallationId

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0

_ENDED = {"die", "died"}
"""Docker's word, and the one that older Podmans use."""


class EventFeed:
    """`ended` for each of the installation's containers that ends; `resync` first, and after each gap.

    The stream has no read deadline: a quiet daemon is not a dead one, and on a Unix socket a dead one is noticed.
    Events are read only when they are asked for, so that nothing piles up here.
    """

    def __init__(self, api: EngineApi, installation: InstallationId) -> None:
        self._api = api
        self._filters = json.dumps({"type": ["container"], "label": [f"{LABEL_INSTALLATION}={installation}"]})
        self._stream = contextlib.AsyncExitStack()
        self._messages: AsyncIterator[dict[str, Any]] | None = None
        self._resync = True
        self._seen_at: int | None = None

    async def __aenter__(self) -> Self:
        await self._subscribe()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EngineEvent:
        while True:
            if self._messages is None:
                await self._subscribe_again()
            if self._resync:
                self._resync = False
                return EngineEvent(kind="resync")
            message = await self._next()
            if message is None:
                await self._stream.aclose()
                self._messages = None
                continue
            event = self._read(message)
            if event is not None:
                return event

    async def _next(self) -> dict[str, Any] | None:
        assert self._messages is not None
        try:
            return await anext(self._messages, None)
        except EngineError:
            return None

    def _read(self, message: dict[str, Any]) -> EngineEvent | None:
        time = message.get("time")
        if isinstance(time, int):
            self._seen_at = time
        actor = message.get("Actor")
        attributes = actor.get("Attributes") if isinstance(actor, dict) else None
        name = attributes.get("name") if isinstance(attributes, dict) else None
        if message.get("Action") in _ENDED and isinstance(name, str):
            return EngineEvent(kind="ended", name=name)
        return None

    async def _subscribe(self) -> None:
        params = {"filters": self._filters}
        if self._seen_at is not None:
            params["since"] = str(self._seen_at)  # whole seconds: a repeated hint is better than a lost one
        stack = contextlib.AsyncExitStack()
        self._messages = await stack.enter_async_context(
            self._api.stream("GET", "/events", doing="tell what happens", params=params)
        )
        self._stream = stack

    async def _subscribe_again(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            await anyio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # spread, not secrecy
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            with contextlib.suppress(EngineError):
                await self._subscribe()
                self._resync = True
                return
