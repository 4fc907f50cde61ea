"""A host whose time of day is set from outside, seen by a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from hermitcrab.selftest.jumping_clock import JumpingClock

PROGRAM = """
import json, sys
from pathlib import Path
from hermitcrab.selftest.jumping_clock import install
install(Path(sys.argv[1]))
import datetime, time
from hermitcrab.store.clock import timestamp
before = datetime.datetime.fromtimestamp(0, datetime.UTC)
for _ in sys.stdin:
    now = datetime.datetime.now(datetime.UTC)
    print(json.dumps([time.time(), time.time_ns() / 1e9, now.timestamp(), timestamp(), time.monotonic(),
          isinstance(now, datetime.datetime) and isinstance(before, datetime.datetime)]), flush=True)
"""


def test_the_time_of_day_jumps_and_durations_do_not(tmp_path: Path) -> None:
    clock = JumpingClock(tmp_path / "clock")
    command = [sys.executable, "-c", PROGRAM, str(clock.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for seconds in (0.0, 3000.0, -3000.0):
            clock.set(seconds)
            process.stdin.write("\n")
            process.stdin.flush()
            *shown, text, monotonic, all_are_datetimes = json.loads(process.stdout.readline())
            expected = time.time() + seconds
            assert all(abs(each - expected) < 60 for each in shown)
            assert abs(datetime.fromisoformat(text).timestamp() - expected) < 60
            assert abs(monotonic - time.monotonic()) < 60
            assert all_are_datetimes
        process.stdin.close()
    assert abs(datetime.now(UTC).timestamp() - time.time()) < 60
