"""An adversarial scheduler: it runs a command, and stops one of its processes after another for a while.

    python -m hermitcrab.testing.stutter --seconds 3 -- .venv/bin/pytest tests/conformance

A test that passes only when two processes are equally quick fails under it. Engines that run as services are not the
command's, and are left alone. The exit code is the command's.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

from hermitcrab.containers.disk.held_files import with_descendants

OFTEN = 0.4
"""How often it is the command's own process that is stopped: there is one of it, and many others."""


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m hermitcrab.testing.stutter", description=__doc__)
    options.add_argument("--seconds", type=float, default=1.5, help="how long one is stopped at most")
    options.add_argument("--pause", type=float, default=0.5, help="seconds between two stops at most")
    options.add_argument("--seed", type=int, default=None, help="of whom is stopped when; processes differ each time")
    options.add_argument("command", nargs="+")
    chosen = options.parse_args()
    dice = random.Random(chosen.seed)
    stops = 0
    with subprocess.Popen(chosen.command) as running:
        while not _ends_within(running, dice.uniform(0, chosen.pause)):
            victims = [running.pid] if dice.random() < OFTEN else list(with_descendants(running.pid))
            stops += _stop(dice.choice(victims), running.pid, dice.uniform(0.05, max(0.05, chosen.seconds)))
    sys.stderr.write(f"stopped {stops} times\n")
    return running.returncode if running.returncode >= 0 else 128 - running.returncode


def _ends_within(running: subprocess.Popen[bytes], seconds: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        running.wait(seconds)
    return running.returncode is not None


def _stop(process: int, of: int, seconds: float) -> bool:
    """Whether it was stopped, and goes on. Held open, so that no stranger who got its number is taken for it."""
    with suppress(ProcessLookupError):
        held = os.pidfd_open(process)
        try:
            if process in with_descendants(of):
                signal.pidfd_send_signal(held, signal.SIGSTOP)
                try:
                    time.sleep(seconds)
                finally:
                    signal.pidfd_send_signal(held, signal.SIGCONT)
                return True
        finally:
            os.close(held)
    return False


if __name__ == "__main__":
    sys.exit(main())
