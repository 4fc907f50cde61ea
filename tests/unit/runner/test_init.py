"""Process 1: orphans are collected, signals passed on, and the exit code is the runner's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hermitcrab_runner
from hermitcrab.testing.engine_harness import DEADLINE_S

SOURCE = str(Path(hermitcrab_runner.__file__).resolve().parents[1])

# A process that adopts orphans as process 1 of a container does (prctl PR_SET_CHILD_SUBREAPER), and then acts as such.
SUBREAPER = """
import ctypes, os, signal, sys, time
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
from hermitcrab_runner import init
init.fork_away_from_pid_1()
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SUBREAPER + body],
        env={"PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("body", "code"), [("os._exit(0)", 0), ("os._exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_the_exit_code_is_the_runners(body: str, code: int) -> None:
    assert run(body).returncode == code


def test_orphans_are_collected_and_own_children_are_left_to_the_runner() -> None:
    body = """
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    orphan = os.fork()
    if orphan:
        os.write(writer, str(orphan).encode())
    os._exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5, "nobody took the exit code"
orphan = int(os.read(reader, 20))
while os.path.exists(f"/proc/{orphan}"):
    time.sleep(0.01)
print("collected")
"""
    assert run(body).stdout == "collected\n"


def test_a_signal_reaches_the_runner() -> None:
    body = """
signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
os.kill(os.getppid(), signal.SIGTERM)
while True:  # It may come before any wait for it has begun.
    time.sleep(0.01)
"""
    assert run(body).returncode == 42
