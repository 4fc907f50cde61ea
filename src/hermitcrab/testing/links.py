"""A session's socket without a host: what serves its links, and ends with the block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from hermitcrab.containers.link.server import LinkHandler, LinkLimits, listening


@asynccontextmanager
async def serving(folder: Path, handler: LinkHandler, *, limits: LinkLimits | None = None) -> AsyncIterator[None]:
    """`folder`/link.sock is served while the context is open. Nothing of it goes on after that."""
    async with anyio.create_task_group() as links:
        async with listening(folder, handler, links.start_soon, limits=limits):
            yield
        links.cancel_scope.cancel()
