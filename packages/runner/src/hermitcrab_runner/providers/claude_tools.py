"""Our tools as Claude Code sees them: a server of the Model Context Protocol within the runner's own process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from hermitcrab_runner import __version__
from hermitcrab_runner.providers.base import Emit, ToolCall
from hermitcrab_runner.tools.catalogue import SERVER, TOOLS, Tool


def server(sdk: Any, emit: Emit) -> Any:
    """The server, for the SDK's options. A call of one of its tools becomes an event, and waits for its reply."""
    return sdk.create_sdk_mcp_server(
        name=SERVER, version=__version__, tools=[_offer(sdk, each, emit) for each in TOOLS]
    )


def _offer(sdk: Any, tool: Tool, emit: Emit) -> Any:
    async def use(arguments: Mapping[str, Any]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        replied: asyncio.Future[tuple[str, bool]] = loop.create_future()

        def settle(reply: str, failed: bool) -> None:
            if not replied.done():  # The harness may have called it off.
                replied.set_result((reply, failed))

        def answer(reply: str, failed: bool) -> None:
            with contextlib.suppress(RuntimeError):  # The harness's thread has ended, and nobody waits any more.
                loop.call_soon_threadsafe(settle, reply, failed)

        emit(ToolCall(tool.name, dict(arguments), answer))
        reply, failed = await replied
        return {"content": [{"type": "text", "text": reply}], "is_error": failed}

    return sdk.tool(tool.name, tool.description, tool.schema)(use)
