"""The settings of a foreign runner's harness: the host's own words, made anew before each start of the runner.

A v2 runner adds a hook to them whenever it starts, and ends where it cannot. So they are a copy, which it may write;
what a turn plants in them lasts no longer than the runner's process.
"""

from __future__ import annotations

import os
import shutil

from hermitcrab_runner.logs import note


class HarnessSettings:
    def __init__(self, source: str, target: str) -> None:
        """`source` is the host's; an empty one means that there are none."""
        self._source, self._target = source, target

    def renew(self) -> None:
        """Put the host's settings in the place of whatever lies there. What cannot be done is noted."""
        if not self._source:
            return
        fresh = f"{self._target}.fresh"
        try:
            for path in (fresh, self._target):
                _remove(path)
            shutil.copyfile(self._source, fresh)
            os.rename(fresh, self._target)
        except OSError as error:
            note("harness.settings-kept", path=self._target, error=error.strerror or error)


def _remove(path: str) -> None:
    """Of any kind, and never what a link leads to."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        shutil.rmtree(path)
