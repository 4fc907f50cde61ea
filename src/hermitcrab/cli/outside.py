"""What the host can see of a sandbox from outside, to hold against what was measured inside it. For `crab demo`.

The sandbox names its process namespace; whatever process of this machine is in it belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")

_UNLIMITED = 2**60
"""Version 1 writes "no limit" as a number near 2**63."""


def own_pid_namespace() -> str | None:
    return _namespace_of(_PROC / "self")


def limits_of(pid_namespace: str | None) -> dict[str, float | None]:
    """Limits of the control groups that hold that namespace: memory_bytes, pids, cpus. None where none can be seen."""
    for process in _processes():
        if pid_namespace is not None and _namespace_of(process) == pid_namespace:
            return _limits_of_process(process)
    return {}


def _processes() -> Iterator[Path]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            yield entry


def _namespace_of(process: Path) -> str | None:
    try:
        return str((process / "ns" / "pid").readlink())
    except OSError:
        return None


def _limits_of_process(process: Path) -> dict[str, float | None]:
    groups = _groups(_read(process / "cgroup"))
    return {
        "memory_bytes": _lowest(groups, "memory", "memory.max", "memory.limit_in_bytes"),
        "pids": _lowest(groups, "pids", "pids.max", "pids.max"),
        "cpus": _cpus(groups),
    }


def _groups(text: str) -> dict[str, Path]:
    """The folder of each controller; the unified hierarchy's under the empty name."""
    found: dict[str, Path] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        relative = path.lstrip("/")
        if not controllers:
            unified = _CGROUP / "unified"
            found[""] = (unified if unified.is_dir() else _CGROUP) / relative
        for controller in controllers.split(","):
            if controller and not controller.startswith("name="):
                root = _CGROUP / controllers if (_CGROUP / controllers).is_dir() else _CGROUP / controller
                found[controller] = root / relative
    return found


def _upwards(folder: Path) -> Iterator[Path]:
    while folder.is_relative_to(_CGROUP):
        yield folder
        folder = folder.parent


def _lowest(groups: dict[str, Path], controller: str, unified: str, classic: str) -> float | None:
    """A group is also held by the limits of those above it."""
    folder, name = (groups[controller], classic) if controller in groups else (groups.get(""), unified)
    values = [_number(_read(each / name)) for each in _upwards(folder)] if folder is not None else []
    return min((each for each in values if each is not None), default=None)


def _cpus(groups: dict[str, Path]) -> float | None:
    values: list[float] = []
    if "cpu" in groups:
        for each in _upwards(groups["cpu"]):
            quota, period = _number(_read(each / "cpu.cfs_quota_us")), _number(_read(each / "cpu.cfs_period_us"))
            if quota and period:
                values.append(quota / period)
    elif "" in groups:
        for each in _upwards(groups[""]):
            quota_text, _, period_text = _read(each / "cpu.max").partition(" ")
            quota, period = _number(quota_text), _number(period_text)
            if quota and period:
                values.append(quota / period)
    return min(values, default=None)


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if text.isdigit() and int(text) < _UNLIMITED else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
