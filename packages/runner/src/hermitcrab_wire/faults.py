"""Fault points: places on a message's road where a test may kill the process, to show that nothing is lost.

`HERMITCRAB_FAULT=NAME:/path/to/token` kills this process with SIGKILL the first time that it passes point NAME, if
the token file is still there; the file is removed first, so that the next process gets past. Unset, a point costs one
comparison. The variable only lets whoever starts a process kill that process.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "HERMITCRAB_FAULT"
_armed, _, _token = os.environ.get(VARIABLE, "").partition(":")

POINTS = (
    # host
    "inbound.before-commit",
    "inbound.committed",
    "wake.claimed",
    "wake.prepared",
    "wake.created",
    "wake.started",
    "link.welcomed",
    "link.pushed",
    "link.claimed",
    "outbound.before-commit",
    "outbound.committed",
    "outbound.acknowledged",
    "delivery.sending",
    "delivery.sent",
    "delivery.recorded",
    # host, off the road: how a container rests and ends
    "container.frozen",
    "container.stopping",
    "container.certified",
    # runner
    "runner.received",
    "runner.claimed",
    "runner.answered",
    "runner.completing",
    "runner.completed",
)
"""Every fault point, in the order of the road."""


def point(name: str) -> None:
    """Die here if this point is armed."""
    if name != _armed:
        return
    try:
        os.unlink(_token)  # pathlib would cost the runner memory
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
