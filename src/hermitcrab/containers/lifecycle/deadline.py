"""A deadline for what an engine is asked."""

from __future__ import annotations

from types import TracebackType

import anyio

from hermitcrab.errors import EngineError, Failure


class Deadline:
    """`with Deadline(seconds, stage, name)`: its passing is a typed failure that names the stage."""

    def __init__(self, seconds: float, stage: str, name: str) -> None:
        self._scope = anyio.move_on_after(seconds)
        self._text = f"{stage} of {name} took more than {seconds:g} s"

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        swallowed = self._scope.__exit__(kind, error, trace)
        if self._scope.cancelled_caught:
            raise EngineError(Failure.RUNTIME_UNAVAILABLE, self._text, hint="crab doctor looks at the engine.")
        return swallowed
