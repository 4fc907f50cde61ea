"""`hermitcrab_runner shim -- COMMAND`: wires the shim together, and ends as the command ended."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping, Sequence
from typing import Any

from hermitcrab_runner import main as runner
from hermitcrab_runner.asks import answer
from hermitcrab_runner.forwarder import Forwarder
from hermitcrab_runner.link import Link
from hermitcrab_runner.logs import note
from hermitcrab_runner.shim.command import Command
from hermitcrab_runner.shim.environment import environment_of
from hermitcrab_runner.shim.harness import HarnessSettings
from hermitcrab_runner.shim.layout import Workspace
from hermitcrab_runner.shim.service import Shim
from hermitcrab_runner.shim.watch import Changed, Watch
from hermitcrab_runner.turn import Terminated

USAGE = "usage: python3 -m hermitcrab_runner shim -- COMMAND [ARGUMENT ...]"


def main(born_at_s: float, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run until the command has ended. Returns its exit code, 128+N after signal N."""
    if len(arguments) < 2 or arguments[0] != "--":
        note("misconfigured", reason=USAGE)
        return runner.EXIT_MISCONFIGURED
    try:
        settings = runner.link_settings(environment, born_at_s)._replace(reports="all")
    except runner.MisconfiguredError as error:
        note("misconfigured", reason=error)
        return runner.EXIT_MISCONFIGURED
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    gateway = environment.get("HERMITCRAB_GATEWAY", "")
    forwarder = Forwarder(gateway) if gateway else None
    workspace = Workspace(environment.get("HERMITCRAB_WORKSPACE", "/workspace"))
    watch = Watch(workspace.root, lambda: items.put(Changed()))
    command = Command(
        arguments[1:],
        env=environment_of(environment, port=forwarder.port if forwarder else None, root=os.geteuid() == 0),
        workdir=environment.get("HERMITCRAB_WORKDIR", "/workspace/agent"),
        exited=items.put,
        before_each_start=_harness(environment).renew,
    )
    shims: list[Shim] = []
    link = Link(
        settings,
        holds=lambda: shims[0].holds,
        deliver=items.put,
        lost=lambda code: items.put(runner.Lost(code)),
        on_signal=lambda _number: items.put(Terminated()),
    )
    shim = Shim(
        workspace,
        send=link.send,
        show=link.show,
        runner=command,
        ask=lambda ask: answer(ask, link.send),
        looking=watch.look,
        unacknowledged=lambda: link.unacknowledged,
    )
    shims.append(shim)
    watch.start()
    code = runner.attend(shim, link, items)
    command.kill()
    return code


def _harness(environment: Mapping[str, str]) -> HarnessSettings:
    home = environment.get("HOME", "/home/node")
    return HarnessSettings(environment.get("HERMITCRAB_HARNESS_SETTINGS", ""), f"{home}/.claude/settings.json")
