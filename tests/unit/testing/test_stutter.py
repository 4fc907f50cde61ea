"""The adversarial scheduler stops, lets go on, and tells how the command ended."""

from __future__ import annotations

import subprocess
import sys

STUTTER = [
    sys.executable,
    "-m",
    "hermitcrab.testing.stutter",
    "--seconds",
    "0.1",
    "--pause",
    "0.05",
    "--seed",
    "1",
    "--",
]

_WORKS = """
import subprocess, sys, time
children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"]) for _ in range(2)]
sys.exit(sum(each.wait() for each in children) + 3)
"""


def test_a_command_is_stopped_now_and_then_and_comes_to_its_own_end() -> None:
    ended = subprocess.run([*STUTTER, sys.executable, "-c", _WORKS], capture_output=True, text=True, check=False)
    assert ended.returncode == 3, ended.stderr
    (told,) = ended.stderr.splitlines()
    assert int(told.removeprefix("stopped ").removesuffix(" times")) > 0


def test_a_command_that_is_killed_counts_as_a_shell_counts_it() -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    ended = subprocess.run([*STUTTER, sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 128 + 9
