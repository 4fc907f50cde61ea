"""What would make everything in this process stand still for a moment, and what is done against it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage meanwhile: hardly any is made, and looking for it takes a tenth of the time.

    What was made is passed over from then on; else the first collection after it would walk through all of it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def import_structlog() -> None:
    """Import it without Rich, which it would load for tracebacks of a kind that our logs do not have."""
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = cast("ModuleType", None)  # Python's own way to say that there is no such module
    try:
        import structlog  # noqa: F401, PLC0415
    finally:
        del sys.modules["rich"]


def forget_imports() -> None:
    """Let the garbage collector pass over all that is there now: modules, classes, what they refer to.

    For a process that is a host from now on. Each of its full collections would else walk through everything that was
    ever imported: 40 to 70 ms in which no session is served.
    """
    gc.freeze()
