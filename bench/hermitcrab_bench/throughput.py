"""How many messages a second the host carries through many live sessions, how long each takes, and who has to wait.

Every session has somebody who says the next thing when the last was answered, all of them at the same time.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import anyio

from hermitcrab.app import Host
from hermitcrab.testing.scratch import say, scratch_host
from hermitcrab_bench.figures import percentile, summary
from hermitcrab_bench.lag import sampling
from hermitcrab_bench.live import LiveSession, live_sessions


async def run(*, engine: str = "bubblewrap", sessions: int = 100, messages: int = 50) -> dict[str, Any]:
    """`messages` in each of `sessions` live sessions."""
    async with scratch_host(engine, max_running=sessions + 1, stop_grace_s=30) as (host, channel):
        live = await live_sessions(host, channel, sessions)
        samples: list[float] = []
        took: list[float] = []
        wrong = 0

        async def talk(number: int, one: LiveSession, began: float) -> None:
            nonlocal wrong
            for turn in range(messages):
                text, asked = f"message {turn} of {number}", time.monotonic()
                receipt = await say(host, one.address, f"m-{number}-{turn}", text)
                answered, delivery = await channel.answer_to(receipt.row_ids[0])
                samples.append((answered - asked) * 1000)
                wrong += delivery.content["text"] != f"Echo: {text}" or delivery.address != one.address
            took.append(time.monotonic() - began)

        runners_s = await _runners_cpu_s(host)
        async with sampling() as lags:
            cpu_s = time.process_time()
            began = time.monotonic()
            async with anyio.create_task_group() as tasks:
                for number, one in enumerate(live):
                    tasks.start_soon(talk, number, one, began)
            whole = time.monotonic() - began
            cpu_s = time.process_time() - cpu_s
        runners_s = await _runners_cpu_s(host) - runners_s
        containers = await host.engine.containers()
        return {
            "messages_per_s": round(len(samples) / whole, 1),
            **summary(samples),
            **fairness(took, messages),
            # Of each message. The host's includes this benchmark's own share.
            "host_cpu_ms": round(cpu_s / len(samples) * 1000, 2),
            "runner_cpu_ms": round(runners_s / len(samples) * 1000, 2),
            "loop_lag_p99_ms": round(percentile(lags, 99), 2),
            "wrong": wrong,
            "duplicates": len(channel.delivered) - sessions * (messages + 1) + len(containers) - sessions,
            "took_s": round(whole, 2),
            "sessions": sessions,
            "messages": messages,
            "engine": engine,
        }


async def _runners_cpu_s(host: Host) -> float:
    """What all containers have used so far; 0 where the engine counts none."""
    found = [await host.engine.stats(view.container) for view in host.runner.views()]
    return sum(each.cpu_s or 0.0 for each in found)


def fairness(took_s: list[float], messages: int) -> dict[str, float]:
    """Of the sessions' rates: Jain's index (1: all the same), and the slowest as a share of the median."""
    rates = [messages / each for each in took_s]
    if not rates:
        return {"fairness": 1.0, "slowest_share": 1.0}
    return {
        "fairness": round(sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates)), 4),
        "slowest_share": round(min(rates) / statistics.median(rates), 4),
    }
