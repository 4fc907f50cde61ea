"""How much memory this machine has for containers."""

from __future__ import annotations

from pathlib import Path

BUDGET_SHARE = 0.75
"""Of the memory that is available when the host starts: the rest is the host's own and everybody else's."""

_MEMINFO = Path("/proc/meminfo")


def memory_budget_mb(meminfo: Path = _MEMINFO) -> int | None:
    """What containers may be counted for unless the settings say it. None where the system does not tell."""
    try:
        text = meminfo.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[:1] and value.split()[0].isdigit():
            return int(int(value.split()[0]) / 1024 * BUDGET_SHARE)
    return None
