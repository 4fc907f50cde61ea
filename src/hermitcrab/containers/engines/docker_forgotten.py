"""What an engine forgot of a start, because its service died between making a container's processes and noting that.

It takes such a container for one that was never started, and removes it without ending its processes: a monitor, and
in the container a runtime that waits for ever to be told to go on, with the session's folders mounted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hermitcrab.containers.engines import bubblewrap_processes as process
from hermitcrab.containers.engines.bubblewrap_processes import Process

END_S = 5.0


def end_forgotten(container: str) -> None:
    """Kill what runs for the container of that id, which its engine says was never started. Blocks for milliseconds."""
    # Of a service that is another user's, nothing is ours to kill.
    with contextlib.suppress(PermissionError):
        process.end_all(lambda: forgotten(container), END_S)


def forgotten(container: str) -> Iterator[Process]:
    """What is in the container's control group, the monitor, and a runtime that still makes the container."""
    for pid in process.pids():
        folder = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            words = os.fsdecode((folder / "cmdline").read_bytes()).split("\0")
            # The last act of Podman's monitor is to call Podman; and people name containers to both.
            is_maker = container in words and Path(words[0]).name not in {"podman", "docker"}
            if is_maker or container in (folder / "cgroup").read_text():
                found = process.identify(pid)
                if found is not None:
                    yield found
