"""What a container's processes keep of files that have no name any more: no walk through folders finds these.

Of processes of another user than ours nothing can be told, unless we are the superuser. A file that waits in a socket
is not found, either. All of it blocks; call it in a thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hermitcrab.logic.workspace import BLOCK_BYTES

PROCESSES_AT_MOST = 4096
FILES_AT_MOST = 100_000


def held_bytes(main: int, device: int) -> int:
    """On that device, by the process `main` and all that came of it."""
    found: dict[int, int] = {}
    looked_at = 0
    for process in with_descendants(main):
        for name in _nameless(process):
            looked_at += 1
            if looked_at > FILES_AT_MOST:
                return sum(found.values())
            with suppress(OSError):  # It has ended or closed it meanwhile.
                about = Path(name).stat()
                if stat.S_ISREG(about.st_mode) and about.st_nlink == 0 and about.st_dev == device:
                    found[about.st_ino] = about.st_blocks * BLOCK_BYTES
    return sum(found.values())


def with_descendants(main: int) -> Iterator[int]:
    """The process, and all that came of it.

    Whatever lost its parent has become a child of the container's first process, or of what surrounds it.
    """
    waiting, met = [main], 0
    while waiting and met < PROCESSES_AT_MOST:
        process = waiting.pop()
        met += 1
        yield process
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{process}/task"):  # noqa: PTH208  # a number, not a path
                with suppress(OSError):
                    children = Path(f"/proc/{process}/task/{thread}/children").read_text()
                    waiting += [int(each) for each in children.split()]


def _nameless(process: int) -> Iterator[str]:
    """Links to its open and to its mapped files."""
    with suppress(OSError):
        for number in os.listdir(f"/proc/{process}/fd"):  # noqa: PTH208
            yield f"/proc/{process}/fd/{number}"
    with suppress(OSError), Path(f"/proc/{process}/maps").open(errors="replace") as maps:
        for line in maps:
            if line.endswith(" (deleted)\n"):
                yield f"/proc/{process}/map_files/{line.split(None, 1)[0]}"
