"""What the runner of containers does beside whoever asked for it: its own tasks, each at its own risk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import anyio.abc

from hermitcrab.observe.supervision import isolated

Arguments = TypeVarTuple("Arguments")


class Background:
    def __init__(self) -> None:
        self._tasks: anyio.abc.TaskGroup | None = None
        self._closing = False

    def open(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks

    def begin_closing(self) -> None:
        """From now on nothing that is new is begun; what goes on may come to its end."""
        self._closing = True

    def close(self) -> None:
        self._tasks = None

    @property
    def takes_work(self) -> bool:
        """Whether a container may be started for a session."""
        return self._open is not None and not self._closing

    @property
    def closing(self) -> bool:
        return self._closing

    def spawn(self, function: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
        """Run it beside the caller. An error of it ends there; once these tasks are called off it is not run at all."""
        if self._open is not None:
            self._open.start_soon(isolated, function, *arguments)

    @property
    def _open(self) -> anyio.abc.TaskGroup | None:
        """None, too, while what was called off comes to its end.

        anyio cancels what is added to such a group only when another task of it leaves a shield. Until then whatever
        it adds turns in a circle at its first `checkpoint_if_cancelled`.
        """
        if self._tasks is None or self._tasks.cancel_scope.cancel_called:
            return None
        return self._tasks
