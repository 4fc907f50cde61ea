"""Wires the runner together: one thread for the link, one for the turn loop, and whatever the provider brings."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any, NamedTuple, Protocol

from hermitcrab_runner import __version__
from hermitcrab_runner.asks import answer
from hermitcrab_runner.courier import Courier
from hermitcrab_runner.link import Link, LinkSettings
from hermitcrab_runner.logs import note, print_exception
from hermitcrab_runner.probe import prove
from hermitcrab_runner.providers.base import Emit, Provider, ProviderSettings
from hermitcrab_runner.surroundings import Surroundings
from hermitcrab_runner.turn import Terminated, Tick, TurnLoop

EXIT_FAULT = 70
EXIT_MISCONFIGURED = 78
_KILLED_BY_TERM = 128 + signal.SIGTERM

_PROVIDERS = ("echo", "claude")
_ORPHAN_S = 600.0


class Lost(NamedTuple):
    """The link is gone for good."""

    code: int


class Loop(Protocol):
    """What this process is for: everything that happens comes to it, one thing after another."""

    finished: bool
    exit_code: int

    @property
    def deadline(self) -> float | None: ...

    def handle(self, item: Any) -> None: ...


class MisconfiguredError(Exception):
    """The environment does not tell what the runner must know."""


def main(born_at_s: float, environment: Mapping[str, str] = os.environ) -> int:
    """Run until the host says that it is enough. Returns the process's exit code."""
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    try:
        settings = link_settings(environment, born_at_s)
        provider = _make_provider(settings.provider, items.put)
    except MisconfiguredError as error:
        note("misconfigured", reason=error)
        return EXIT_MISCONFIGURED
    surroundings = Surroundings(settings.provider, _provider_settings(environment), generation=settings.generation)
    held: dict[str, None] = {}
    link = Link(
        settings,
        holds=lambda: list(held),
        deliver=lambda frame: None if courier.receive(frame) else items.put(frame),
        lost=lambda code: items.put(Lost(code)),
        on_signal=lambda _number: items.put(Terminated()),
    )
    courier = Courier(link.send, _provider_settings(environment).workdir)
    loop = TurnLoop(
        send=courier.send,
        show=link.show,
        provider=provider,
        surroundings=surroundings,
        held=held,
        ask=lambda ask: answer(ask, link.send),
        unacknowledged=lambda: link.unacknowledged + courier.waiting,
    )
    code = attend(loop, link, items)
    provider.close()
    return code


def attend(loop: Loop, link: Link, items: queue.SimpleQueue[Any]) -> int:
    """Give `loop` what happens, until it has finished. Returns the process's exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGIO):
        signal.signal(number, _heard)
    signal.set_wakeup_fd(link.wake_writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_run_link, args=(link, items), name="link", daemon=True)
    thread.start()
    code = _work(loop, items)
    link.close()
    thread.join(timeout=2)
    return code


def _work(loop: Loop, items: queue.SimpleQueue[Any]) -> int:
    asked_to_end = False
    while not loop.finished:
        deadline = loop.deadline
        try:
            item = items.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            item = Tick()
        if isinstance(item, Lost):
            return item.code
        if isinstance(item, Terminated):
            if asked_to_end:
                return _KILLED_BY_TERM
            asked_to_end = True
        loop.handle(item)
    return loop.exit_code


def _run_link(link: Link, items: queue.SimpleQueue[Any]) -> None:
    try:
        link.run()
    except Exception:  # noqa: BLE001  # a runner without a link is of no use: it ends, and says why
        print_exception()
        items.put(Lost(EXIT_FAULT))


def _heard(_number: int, _frame: FrameType | None) -> None:
    """A handler must exist for the signal to be written to the wakeup descriptor, which the link reads."""


def link_settings(environment: Mapping[str, str], born_at_s: float) -> LinkSettings:
    try:
        return LinkSettings(
            path=environment["HERMITCRAB_LINK"],
            generation=int(environment["HERMITCRAB_GENERATION"]),
            provider=environment.get("HERMITCRAB_PROVIDER", "echo").lower(),
            version=__version__,
            born_at_s=born_at_s,
            orphan_s=float(environment.get("HERMITCRAB_ORPHAN_S", _ORPHAN_S)),
            proof=prove(environment),
        )
    except KeyError as error:
        raise MisconfiguredError(f"{error.args[0]} is not set") from error
    except ValueError as error:
        raise MisconfiguredError(str(error)) from error


def _provider_settings(environment: Mapping[str, str]) -> ProviderSettings:
    return ProviderSettings(
        gateway=environment.get("HERMITCRAB_GATEWAY", ""),
        packages=environment.get("HERMITCRAB_PACKAGES", ""),
        workdir=environment.get("HERMITCRAB_WORKDIR", "/workspace/agent"),
    )


def _make_provider(name: str, emit: Emit) -> Provider:
    match name:
        case "echo":
            from hermitcrab_runner.providers.echo import EchoProvider  # noqa: PLC0415  # one provider is enough

            return EchoProvider(emit)
        case "claude":
            from hermitcrab_runner.providers.claude import ClaudeProvider  # noqa: PLC0415

            return ClaudeProvider(emit)
        case _:
            raise MisconfiguredError(f"unknown provider {name!r}; known: {', '.join(_PROVIDERS)}")
