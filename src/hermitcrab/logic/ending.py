"""What the end of a container means: its cause, in a word for programs and a sentence for people."""

from __future__ import annotations

from dataclasses import dataclass

from hermitcrab.model.container import ExitRecord

TRIES_AT_MOST = 5
"""Containers that one message may cost before it is given up with a notice."""

HEALTHY_AFTER_S = 60.0
"""A container that lived this long ends a series of failures."""

PLANNED = frozenset({"quiet", "evicted", "restart", "stopped", "drained"})
"""Ends that the host or the runner wanted."""


@dataclass(frozen=True, slots=True)
class Ending:
    cause: str
    text: str

    @property
    def planned(self) -> bool:
        return self.cause in PLANNED


def explain(exit_record: ExitRecord | None, *, wanted: str | None, farewell: str | None) -> Ending:
    """Why a container ended.

    `exit_record` is the engine's word, None when the engine knows of no such container any more. `wanted` is the cause
    for which the host itself ended it. `farewell` is the reason that the runner gave in its Bye.
    """
    if wanted is not None:
        return Ending(wanted, _WANTED.get(wanted, f"The host ended it: {wanted}."))
    if exit_record is None:
        return Ending("vanished", "The engine no longer knows it; it was removed from outside or lost in a crash.")
    if exit_record.oom_killed:
        return Ending("out-of-memory", "It used more memory than its limit, and the kernel ended it.")
    match exit_record.exit_code:
        case None:
            return Ending("vanished", "It ended without leaving an exit code, as when the machine is restarted.")
        case 0:
            return Ending("drained", f"The runner ended by itself: {farewell or 'no reason given'}.")
        case 75:
            return Ending("drained", "The runner found no host for too long and ended.")
        case code if code > 128:  # the shell's convention for signals
            return Ending("exited", f"It was ended by signal {code - 128}.")
        case code:
            return Ending("exited", f"It exited with code {code}.")


_WANTED = {
    "quiet": "Nothing was said for a while, and the host ended it.",
    "evicted": "It had nothing to do, and its place was wanted by others.",
    "restart": "It was ended so that a fresh one takes its place.",
    "stopped": "It was stopped on request.",
    "start-failed": "It did not come up.",
    "hung": "It gave no sign of life, and the host ended it.",
    "broke-contract": "It broke the protocol of its link again and again, and the host ended it.",
}
