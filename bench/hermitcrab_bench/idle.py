"""What a thousand idle sessions cost a running host: CPU over a quiet while, and memory over an empty host."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from hermitcrab.control.client import ControlClient
from hermitcrab.errors import HostUnreachableError
from hermitcrab.settings.home import Home
from hermitcrab.testing.scratch import process_rss_kb
from hermitcrab_bench.fill import fill

QUIET_S = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


async def run(*, engine: str = "bubblewrap", sessions: int = 1000) -> dict[str, Any]:
    """Two real host processes, one after the other: on an empty home, and on one with `sessions` idle sessions."""
    with tempfile.TemporaryDirectory(prefix="crab-bench-") as folder:
        empty = await _measure(Path(folder) / "empty", engine, 0)
        full = await _measure(Path(folder) / "full", engine, sessions)
    return {
        "cpu_percent": round(full["cpu_percent"], 3),
        "rss_mb_over_empty": round((full["rss_kb"] - empty["rss_kb"]) / 1024, 2),
        "rss_mb": round(full["rss_kb"] / 1024, 1),
        "empty_cpu_percent": round(empty["cpu_percent"], 3),
        "processes": int(full["children"]),
        "sessions": sessions,
        "quiet_s": QUIET_S,
        "engine": engine,
    }


async def _measure(home: Path, engine: str, sessions: int) -> dict[str, float]:
    await fill(home, sessions)
    environment = {
        **os.environ,
        "HERMITCRAB__CONTAINERS__ENGINE": engine,
        "HERMITCRAB__AGENTS__PROVIDER": "echo",
        "HERMITCRAB__LOGS__LEVEL": "warning",
    }
    command = [sys.executable, "-m", "hermitcrab.cli.main", "up", "--home", str(home)]
    host = await to_thread.run_sync(lambda: subprocess.Popen(command, env=environment))
    try:
        await _ready(home)
        await anyio.sleep(3)  # What a start leaves behind is not idling.
        before, began = _cpu_s(host.pid), time.monotonic()
        await anyio.sleep(QUIET_S)
        used = _cpu_s(host.pid) - before
        return {
            "cpu_percent": 100 * used / (time.monotonic() - began),
            "rss_kb": float(await process_rss_kb(host.pid)),
            "children": float(await to_thread.run_sync(_children, host.pid)),
        }
    finally:
        host.terminate()
        await to_thread.run_sync(host.wait)


async def _ready(home: Path) -> None:
    with anyio.fail_after(60):
        while True:
            try:
                async with ControlClient.connect(Home(home)) as client:
                    await client.call("status")
                    return
            except HostUnreachableError:
                await anyio.sleep(0.1)


def _children(pid: int) -> int:
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
