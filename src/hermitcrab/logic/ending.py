"""What the end of a container means: its cause, in a word for programs and a sentence for people."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from hermitcrab.model.container import ExitRecord

HEALTHY_AFTER_S = 60.0
"""A container that lived this long ends a series of failures."""


class Cause(StrEnum):
    # Somebody wanted it.
    QUIET = "quiet"
    EVICTED = "evicted"
    EXPIRED = "expired"
    DRAINED = "drained"
    """The runner ended by itself, and in good order."""
    STOPPED = "stopped"
    """A person wanted it."""
    HOST_LEFT = "host-left"
    """In good order."""
    RESTART = "restart"
    REPLACED = "replaced"
    """What an earlier host had made is not what this one would make."""
    # It went wrong in there.
    EXITED = "exited"
    SIGNALLED = "signalled"
    OUT_OF_MEMORY = "out-of-memory"
    HUNG = "hung"
    BROKE_CONTRACT = "broke-contract"
    WORKSPACE_FULL = "workspace-full"
    """It kept more on disk than it may."""
    MISCONFIGURED = "misconfigured"
    ORPHANED = "orphaned"
    """The runner found no host for too long."""
    # It went wrong around it.
    START_FAILED = "start-failed"
    GATEWAY_DOWN = "gateway-down"
    ENGINE_GONE = "engine-gone"
    HOST_DIED = "host-died"
    MACHINE_RESTARTED = "machine-restarted"
    VANISHED = "vanished"
    """Removed behind our back."""


PLANNED = frozenset(
    {
        Cause.QUIET,
        Cause.EVICTED,
        Cause.EXPIRED,
        Cause.DRAINED,
        Cause.STOPPED,
        Cause.HOST_LEFT,
        Cause.RESTART,
        Cause.REPLACED,
        Cause.ORPHANED,
    }
)
"""Ends that the host or the runner wanted. They count against no message."""


@dataclass(frozen=True, slots=True)
class Ending:
    cause: Cause
    text: str

    @property
    def planned(self) -> bool:
        return self.cause in PLANNED


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the host knows of the time at which a container ended, apart from the container."""

    machine_restarted: bool = False
    engine_was_away: bool = False
    host_was_away: bool = False
    """No host attended it: an earlier one had died or left."""


USUAL = Circumstances()

_SIGNALS = {1: "SIGHUP", 2: "SIGINT", 6: "SIGABRT", 7: "SIGBUS", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE"} | {
    15: "SIGTERM",
    31: "SIGSYS",
}

_RUNNERS_OWN = {
    74: (
        Cause.EXITED,
        "The foreign runner's database was damaged, and it was ended; the next one begins with a new one.",
    ),
    79: (Cause.HUNG, "The foreign runner took a message, showed no progress for too long, and was ended."),
    70: (Cause.EXITED, "The runner met an error of its own and ended (exit code 70)."),
    75: (Cause.ORPHANED, "The runner found no host for too long and ended."),
    76: (Cause.DRAINED, "The runner learned that a newer container has taken its place, and ended."),
    77: (Cause.MISCONFIGURED, "The runner and the host speak no common protocol; one of them is too old."),
    78: (Cause.MISCONFIGURED, "The runner was not told what it must know to begin."),
}

_KILLED_WITH_THEIR_ENGINE = frozenset({None, 137, 143, 255})
"""Exit codes of containers that ended because their engine or machine did; any other is a program's own."""


def explain(
    exit_record: ExitRecord | None,
    *,
    wanted: str | None,
    farewell: str | None,
    note: str | None = None,
    around: Circumstances = USUAL,
) -> Ending:
    """Why a container ended.

    `exit_record` is the engine's word, None when the engine knows of no such container any more. `wanted` is the cause
    for which the host itself ended it, and `note` a sentence that tells more than the cause. `farewell` is the reason
    that the runner gave in its Bye.
    """
    if wanted is not None:
        cause = Cause(wanted)
        return Ending(cause, note or _WANTED.get(cause, f"The host ended it: {cause}."))
    code = exit_record.exit_code if exit_record is not None else None
    if exit_record is not None and exit_record.oom_killed:
        return Ending(Cause.OUT_OF_MEMORY, "It used more memory than its limit, and the kernel ended it.")
    if code in _KILLED_WITH_THEIR_ENGINE:
        if around.machine_restarted:
            return Ending(Cause.MACHINE_RESTARTED, "The machine was restarted, and it ended with it.")
        if around.engine_was_away:
            return Ending(Cause.ENGINE_GONE, "The engine went away, and it had ended when the engine came back.")
    if exit_record is None:
        if around.host_was_away:
            return Ending(Cause.HOST_DIED, "An earlier host began it, and this one found nothing of it.")
        return Ending(Cause.VANISHED, "The engine no longer knows it: somebody else has removed it.")
    if code is None:
        return Ending(Cause.VANISHED, "It ended without leaving an exit code, as after a crash of its supervisor.")
    if code == 0:
        return Ending(Cause.DRAINED, f"The runner ended by itself: {farewell or 'no reason given'}.")
    if code in _RUNNERS_OWN:
        return Ending(*_RUNNERS_OWN[code])
    if code > 128:  # the shell's convention for signals
        number = code - 128
        return Ending(Cause.SIGNALLED, f"It was ended by {_SIGNALS.get(number, f'signal {number}')}.")
    return Ending(Cause.EXITED, f"It exited with code {code}.")


def failed_start(stages: Collection[str], reason: str, exit_record: ExitRecord | None) -> Ending:
    """Why a container did not come up: at which stage, with which error, and how it ended if it ran.

    `stages` are those that it had passed. `exit_record` is None for one that has not run, or still does.
    """
    stage = next((each for each, passed in _STAGES if passed not in stages), "its hello")
    text = f"It did not come up; the step that failed was {stage}: {reason}."
    if exit_record is not None:
        died = explain(exit_record, wanted=None, farewell=None)
        text = f"{text} {died.text}"
    return Ending(Cause.GATEWAY_DOWN if stage == "the gateway" else Cause.START_FAILED, text)


_STAGES = (
    ("preparing it", "materials"),
    ("its sockets", "sockets"),
    ("the gateway", "prepared"),
    ("creating it", "created"),
    ("starting it", "started"),
)
"""What is being done before each stage is passed."""

_WANTED = {
    Cause.QUIET: "Nothing was said for a while, and the host ended it.",
    Cause.EVICTED: "It had nothing to do, and its place was wanted by others.",
    Cause.EXPIRED: "It had lived for as long as a container may, and the host ended it.",
    Cause.STOPPED: "It was stopped on request.",
    Cause.HOST_LEFT: "The host left in good order, and ended it before.",
    Cause.RESTART: "It was ended so that a fresh one takes its place.",
    Cause.REPLACED: "An earlier host had made it, and this one would make it differently.",
    Cause.START_FAILED: "It did not come up.",
    Cause.HUNG: "It gave no sign of life, and the host ended it.",
    Cause.BROKE_CONTRACT: "It broke the protocol of its link again and again, and the host ended it.",
    Cause.WORKSPACE_FULL: "It kept more on disk than it may, and the host ended it.",
    Cause.HOST_DIED: "The host that had begun it died before it ran.",
}
