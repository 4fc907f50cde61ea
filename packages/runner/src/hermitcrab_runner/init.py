"""Process 1's duties: collect orphans, pass signals on, end with the runner's own exit code.

Process 1 inherits every orphan of the container, and the kernel shields it from its own SIGKILL. So the runner is its
child: it may wait for the processes that it started without anybody stealing their exit codes, and can be killed.
Imported by `__main__` before anything else, and therefore small.
"""

from __future__ import annotations

import os
import signal
import time

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def fork_away_from_pid_1() -> None:
    """Return in a child process; stay behind as its init."""
    # A signal between fork and the handlers would find process 1 deaf; held back, it is delivered after them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    runner = os.fork()
    if runner == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        return
    for each in _FORWARDED:
        signal.signal(each, lambda number, _frame: _pass_on(runner, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    os._exit(attend(runner))


def attend(runner: int) -> int:
    """Collect every child that ends, until the runner does. Returns its exit code, 128+N for signal N."""
    while True:
        pid, status = os.wait()
        if pid == runner:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _pass_on(runner: int, number: int) -> None:
    try:
        os.kill(runner, number)
    except ProcessLookupError:
        return  # It has just ended, and attend is about to hear of it.


def born_at_s() -> float:
    """When this process started, on time.monotonic's clock, to the kernel's tick of 10 ms."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    # The kernel counts from boot with suspends, monotonic without them.
    suspended_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return ticks / os.sysconf("SC_CLK_TCK") - suspended_s
