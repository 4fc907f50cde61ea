"""The edge where a background task ends: what nobody foresaw is logged there, and costs that task alone.

A task group ends all of its tasks with the first that raises. The host's own groups serve every session, so whatever
one session does in the background is started through here (law 14).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import structlog

from hermitcrab.errors import HermitcrabError

Arguments = TypeVarTuple("Arguments")

log = structlog.get_logger(__name__)


async def isolated(function: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
    """Await `function`; an error ends here. Cancellation passes, as it must."""
    name = getattr(function, "__qualname__", repr(function))
    try:
        await function(*arguments)
    except (HermitcrabError, OSError) as error:
        log.error("task.failed", task=name, text=str(error))
    except Exception:
        log.exception("task.broken", task=name)
