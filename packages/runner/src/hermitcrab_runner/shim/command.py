"""The foreign runner as a process: started, told to end, and its end told."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from hermitcrab_runner.logs import note

TERM_GRACE_S = 2.0
"""A v2 runner does not know the signal; what does, gets this long."""

EXIT_NOT_FOUND = 127
EXIT_NOT_EXECUTABLE = 126


class Exited(NamedTuple):
    """The command has ended. `code` is 128+N after signal N."""

    code: int


class Command:
    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        workdir: str,
        exited: Callable[[Exited], None],
        before_each_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._argv, self._env, self._workdir = list(argv), dict(env), workdir
        self._exited, self._before_each_start = exited, before_each_start
        self._process: subprocess.Popen[bytes] | None = None
        self._killer: threading.Timer | None = None

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Its end is told even if it cannot be started at all."""
        self._before_each_start()
        try:
            process = subprocess.Popen(
                self._argv,
                env=self._env,
                cwd=self._workdir if os.path.isdir(self._workdir) else None,
                stdin=subprocess.DEVNULL,
                stdout=2,  # What it says belongs to the container's log.
                start_new_session=True,
            )
        except OSError as error:
            note("foreign.not-started", command=self._argv[0], error=error.strerror or error)
            self._exited(Exited(EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_EXECUTABLE))
            return
        self._process = process
        note("foreign.started", pid=process.pid)
        threading.Thread(target=self._wait, args=(process,), name="command", daemon=True).start()

    def stop(self) -> None:
        """TERM, and soon KILL, to it and to all that it started."""
        if self._process is None or self._killer is not None:
            return
        self._signal(signal.SIGTERM)
        self._killer = threading.Timer(TERM_GRACE_S, self._signal, [signal.SIGKILL])
        self._killer.daemon = True
        self._killer.start()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def ended(self) -> None:
        """Its end was told; it may be started again."""
        if self._killer is not None:
            self._killer.cancel()
        self._process = self._killer = None

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self._exited(Exited(code if code >= 0 else 128 - code))

    def _signal(self, number: int) -> None:
        process = self._process
        if process is None:
            return
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return  # It has just ended.
