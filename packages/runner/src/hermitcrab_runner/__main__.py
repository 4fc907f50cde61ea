"""`python3 -P -S -m hermitcrab_runner`, or with `shim -- COMMAND` after it, which serves a foreign runner.

As process 1 it first leaves that post to a process of its own.
"""

from __future__ import annotations

import os
import sys

from hermitcrab_runner import init


def start() -> None:
    born_at_s = init.born_at_s()
    if os.getpid() == 1:
        init.fork_away_from_pid_1()
    # Imported late, so that process 1 stays small.
    if sys.argv[1:2] == ["shim"]:
        from hermitcrab_runner.shim.main import main as shim  # noqa: PLC0415

        os._exit(shim(born_at_s, sys.argv[2:]))
    from hermitcrab_runner.main import main  # noqa: PLC0415

    # Threads of a harness may hang; nothing of theirs is worth waiting for once main has returned.
    os._exit(main(born_at_s))


if __name__ == "__main__":
    start()
