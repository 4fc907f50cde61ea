"""Leaving in good order when asked to by a signal, for commands that make things which must not outlive them."""

from __future__ import annotations

import signal

import anyio


async def leave_on_sigterm(scope: anyio.CancelScope) -> None:
    """Cancel `scope` at a SIGTERM, so that what it has made is removed."""
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
