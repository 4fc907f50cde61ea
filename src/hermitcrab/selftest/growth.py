"""What a host holds on to, measured while it rests, and how much more of it there is than there was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from anyio import to_thread

from hermitcrab.control.client import ControlClient
from hermitcrab.settings.home import Home


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Of one host process."""

    memory_mib: float
    """Resident."""
    fds: int
    """Open descriptors, sockets among them."""
    sockets: int
    threads: int
    tasks: int
    """Of its event loop."""


TOLERANCES: dict[str, float] = {
    "memory_mib": 16.0,
    "fds": 8,
    "sockets": 2,
    "threads": 8,
    "tasks": 4,
    "files": 0,
}
"""How much more is not called growth. Memory: what Python keeps of a busy time, and pages of databases that have grown.
Threads and with them descriptors: workers that wait for more to do."""


async def holdings(home: Home) -> Holdings:
    """What the host on this home holds now."""
    async with ControlClient.connect(home) as client:
        status = await client.call("status")
    return await to_thread.run_sync(_of_process, Path("/proc") / str(status["pid"]), status["tasks"])


def _of_process(process: Path, tasks: int) -> Holdings:
    values = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    open_files = list(_open_files(process))
    return Holdings(
        memory_mib=round(int(values["VmRSS"].split()[0]) / 1024, 1),
        fds=len(open_files),
        sockets=sum(each.startswith("socket:") for each in open_files),
        threads=int(values["Threads"]),
        tasks=tasks,
    )


def _open_files(process: Path) -> Iterator[str]:
    for entry in (process / "fd").iterdir():
        try:
            yield str(entry.readlink())
        except FileNotFoundError:
            continue  # It was closed meanwhile.


def files_of(home: Home) -> frozenset[str]:
    """Everything in the home, by its path in there."""
    return frozenset(str(each.relative_to(home.path)) for each in home.path.rglob("*"))


def growth(before: Holdings, after: Holdings) -> dict[str, float]:
    """By how much there is more now; below 0 for less."""
    old, new = asdict(before), asdict(after)
    return {name: round(new[name] - old[name], 1) for name in old}


def too_much(grown: dict[str, float]) -> list[str]:
    """One sentence for each growth that is more than is tolerated."""
    return [
        f"{name} grew by {value:g}, which is more than {TOLERANCES[name]:g}"
        for name, value in grown.items()
        if value > TOLERANCES[name]
    ]
