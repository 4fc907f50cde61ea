"""How long the host takes for a message on a live link: from the channel's call to the channel being called back.

The road: commit of the message, push, echo in the sandbox, commit of the answer together with the end of the message,
commit of the attempt, the channel. The time includes every fsync; the model's time is nothing.
"""

from __future__ import annotations

import time
from typing import Any

import anyio

from hermitcrab.testing.scratch import add_chat, say, scratch_host
from hermitcrab_bench.figures import summary


async def run(*, engine: str = "bubblewrap", messages: int = 300, sessions: int = 1) -> dict[str, Any]:
    """Send `messages` one after another to one of `sessions` live sessions, in turn."""
    async with scratch_host(engine, concurrent_starts=8) as (host, channel):
        addresses = [(await add_chat(host, f"chat-{number}"))[1] for number in range(sessions)]

        async def warm(number: int) -> None:
            receipt = await say(host, addresses[number], f"warm-{number}", "hello")
            await channel.answer_to(receipt.row_ids[0])

        async with anyio.create_task_group() as tasks:
            for number in range(sessions):
                tasks.start_soon(warm, number)
        samples: list[float] = []
        persisted: list[float] = []
        for number in range(messages):
            began = time.perf_counter()
            receipt = await say(host, addresses[number % sessions], f"m-{number}", f"message {number}")
            on_disk = time.perf_counter()
            at, delivery = await channel.answer_to(receipt.row_ids[0])
            if f"message {number}" not in delivery.content["text"]:
                raise AssertionError(f"wrong answer to message {number}: {delivery.content}")
            samples.append((at - began) * 1000)
            persisted.append((at - on_disk) * 1000)
        return {
            **summary(samples),
            "after_persisted_p50_ms": summary(persisted)["p50_ms"],
            "messages": messages,
            "sessions": sessions,
            "engine": engine,
        }
