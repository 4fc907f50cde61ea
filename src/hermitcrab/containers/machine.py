"""Whether the machine was restarted since the last host on this home: then every container ended with it."""

from __future__ import annotations

import contextlib
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def was_restarted(note: Path, *, boot_id: Path = _BOOT_ID) -> bool:
    """Compare with what `remember` wrote. False when nobody knows. Blocks."""
    try:
        before = note.read_text().strip()
        return bool(before) and before != boot_id.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return False


def remember(note: Path, *, boot_id: Path = _BOOT_ID) -> None:
    """Note this run of the machine, once all that the last one left has been looked at. Blocks."""
    with contextlib.suppress(OSError, UnicodeDecodeError):  # Without it, the cause of some ends is told less exactly.
        note.write_text(boot_id.read_text())
