"""One run of a program that fetches or installs packages: its lines as they come, a deadline, and no survivor."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

_TAIL_LINES = 15
_LOGIN = re.compile(r"://[^/@\s]+@")
"""A user name and password in an address, as package settings may have them. They never get into a text of ours."""


@dataclass(frozen=True, slots=True)
class ToolEnd:
    code: int | None
    """None: the deadline passed."""
    tail: str
    """Its last words."""


async def run_tool(
    argv: Sequence[str],
    *,
    progress: Callable[[str], object],
    seconds: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> ToolEnd:
    """Run `argv` to its end. Whatever it started is gone when this returns, is cancelled or fails."""
    told: deque[str] = deque(maxlen=_TAIL_LINES)
    code: int | None = None

    def tell(line: bytes) -> None:
        text = _LOGIN.sub("://", line.decode(errors="replace")).strip()
        if text:
            told.append(text)
            progress(text)

    async with await anyio.open_process(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=env,
        cwd=cwd,
    ) as process:
        try:
            with anyio.move_on_after(seconds):
                assert process.stdout is not None
                rest = b""
                async for chunk in process.stdout:
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        tell(line)
                tell(rest)
                code = await process.wait()
        finally:
            if code is None:
                # Its children too: a package manager works with helpers.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return ToolEnd(code, "\n".join(told))
