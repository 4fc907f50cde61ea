"""What the host asks of the runner itself, never of the model."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hermitcrab_runner.logs import print_exception
from hermitcrab_wire import frames


def answer(ask: frames.Ask, send: Callable[[frames.Frame], None]) -> None:
    """Answer in a thread of its own: looking for a way out may take seconds, in which turns go on."""

    def work() -> None:
        from hermitcrab_runner import evidence  # noqa: PLC0415  # only a few containers are ever asked

        try:
            send(frames.Answer(id=ask.id, result=evidence.collect(ask.arguments)))
        except Exception as error:  # noqa: BLE001  # whatever it was, the host waits for an answer
            print_exception()
            send(frames.Answer(id=ask.id, error=type(error).__name__))

    if ask.subject == "evidence":
        threading.Thread(target=work, name="evidence", daemon=True).start()
    else:
        send(frames.Answer(id=ask.id, error=f"this runner knows nothing of {ask.subject[:80]!r}"))
