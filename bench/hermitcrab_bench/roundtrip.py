"""How long the host takes for a message on a live link: from the message on disk to the channel called with the answer.

The road: commit of the message, push, echo in the sandbox, commit of the answer together with the end of the message,
commit of the attempt, the channel. The time includes every fsync on that road; `with_persisting` adds the one of the
message itself. The model's time is nothing.

All sessions are live: each has answered before, and at the end each must still have the container that it began with,
running and not frozen. They take turns, one message after the other. `host_cpu_ms` is the CPU time of this process for
each message, this benchmark's own share included: unlike the others, a figure that a busy machine hardly changes. What
a message costs that finds its session frozen, `crab bench thaw` tells (`answer_`).
"""

from __future__ import annotations

import time
from typing import Any

import anyio

from hermitcrab.model.container import ContainerStatus
from hermitcrab.testing.scratch import add_chat, say, scratch_host
from hermitcrab_bench.figures import summary


async def run(*, engine: str = "bubblewrap", messages: int = 300, sessions: int = 1) -> dict[str, Any]:
    """Send `messages` one after another to one of `sessions` live sessions, in turn."""
    async with scratch_host(engine, concurrent_starts=8, max_running=sessions + 1) as (host, channel):
        addresses = [(await add_chat(host, f"chat-{number}"))[1] for number in range(sessions)]

        async def warm(number: int) -> None:
            receipt = await say(host, addresses[number], f"warm-{number}", "hello")
            await channel.answer_to(receipt.row_ids[0])

        async with anyio.create_task_group() as tasks:
            for number in range(sessions):
                tasks.start_soon(warm, number)
        samples: list[float] = []
        whole: list[float] = []
        cpu_s = time.process_time()
        for number in range(messages):
            began = time.monotonic()
            receipt = await say(host, addresses[number % sessions], f"m-{number}", f"message {number}")
            at, delivery = await channel.answer_to(receipt.row_ids[0])
            if f"message {number}" not in delivery.content["text"]:
                raise AssertionError(f"wrong answer to message {number}: {delivery.content}")
            assert receipt.persisted_at is not None
            samples.append((at - receipt.persisted_at) * 1000)
            whole.append((at - began) * 1000)
        cpu_s = time.process_time() - cpu_s
        views = await host.engine.containers()
        live = sum(view.status is ContainerStatus.RUNNING and view.generation == 1 for view in views)
        if live != sessions:
            raise AssertionError(f"only {live} of {sessions} sessions were live all the time")
        return {
            **summary(samples),
            "with_persisting_p50_ms": summary(whole)["p50_ms"],
            "with_persisting_p99_ms": summary(whole)["p99_ms"],
            "host_cpu_ms": round(cpu_s / messages * 1000, 2),
            "messages": messages,
            "sessions": sessions,
            "engine": engine,
        }
