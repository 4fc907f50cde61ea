"""`crab`, with a time of day that whoever started it can set.

    python -m hermitcrab.selftest.jumping_clock FILE up --home ...

A machine's clock cannot be set for one process, and the self-test must not set the machine's. So this program puts
something in the place of what tells Python the time, in its own process and before anything else is imported, and then
is `crab`. Nothing of this is in a host that was started in any other way. What does not ask Python (SQLite's own
'now', the times of files) goes on telling the machine's time.
"""

from __future__ import annotations

import datetime as dt
import mmap
import runpy
import struct
import sys
import time
from pathlib import Path

_SECONDS = struct.Struct("d")

_Datetime = dt.datetime


class _AnyDatetime(type):
    """What was made before, or in C, is one, too."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _Datetime)


class JumpingClock:
    """The offset, in a file that the self-test writes and its hosts read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(_SECONDS.pack(0.0))

    def set(self, seconds: float) -> None:
        """From now on the hosts' time is the machine's and so many seconds."""
        with self.path.open("r+b", buffering=0) as file:
            file.write(_SECONDS.pack(seconds))


def install(path: Path) -> None:
    """From now on this process goes by the clock of that file."""
    with path.open("rb") as file:
        told = mmap.mmap(file.fileno(), _SECONDS.size, access=mmap.ACCESS_READ)
    real_time, real_time_ns = time.time, time.time_ns

    def offset_s() -> float:
        seconds: float = _SECONDS.unpack_from(told)[0]
        return seconds

    class JumpingDatetime(_Datetime, metaclass=_AnyDatetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> _Datetime:  # type: ignore[override]
            return _Datetime.now(tz) + dt.timedelta(seconds=offset_s())

    time.time = lambda: real_time() + offset_s()
    time.time_ns = lambda: real_time_ns() + int(offset_s() * 1_000_000_000)
    dt.datetime = JumpingDatetime  # type: ignore[misc]


def main() -> None:
    path, *words = sys.argv[1:]
    install(Path(path))
    sys.argv = ["crab", *words]
    runpy.run_module("hermitcrab.cli.main", run_name="__main__")


if __name__ == "__main__":
    main()
