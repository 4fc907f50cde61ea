"""What history costs: round trips in a session with many past messages, next to one with none, in turn on one host."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

from anyio import to_thread

from hermitcrab.app import Host
from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.mailbox import copies, deliveries
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import SessionId
from hermitcrab.model.messages import Address
from hermitcrab.model.sessions import Session
from hermitcrab.store import messaging_groups
from hermitcrab.store import sessions as session_queries
from hermitcrab.testing.scratch import RecordingChannel, add_chat, say, scratch_host
from hermitcrab_bench.figures import summary

_TIME = "2026-01-01T00:00:00.000Z"


async def run(*, engine: str = "bubblewrap", past: int = 100_000, messages: int = 200) -> dict[str, Any]:
    """`messages` round trips in each of the two sessions; half of the `past` messages went in, half came out."""
    async with scratch_host(engine) as (host, channel):
        addresses = {}
        for name, count in (("long", past), ("none", 0)):
            group, addresses[name] = await add_chat(host, name)
            if count:
                await _fill(host, group, addresses[name], count // 2)
        samples: dict[str, list[float]] = {"long": [], "none": []}
        openings: dict[str, float] = {}
        for name, address in addresses.items():
            openings[name] = await _roundtrip(host, channel, address, f"warm-{name}")
        for number in range(messages):
            # In turn, each first as often as the other, so that whatever else the machine does meets both.
            for name in ("long", "none") if number % 2 else ("none", "long"):
                samples[name].append(await _roundtrip(host, channel, addresses[name], f"m-{name}-{number}"))
        medians = {name: statistics.median(each) for name, each in samples.items()}
        return {
            "ratio": round(medians["long"] / medians["none"], 3),
            "past": past,
            "messages": messages,
            "engine": engine,
            "with_history": summary(samples["long"]),
            "without": summary(samples["none"]),
            "first_message_ms": {name: round(value, 1) for name, value in openings.items()},
        }


async def _roundtrip(host: Host, channel: RecordingChannel, address: Address, key: str) -> float:
    began = time.monotonic()
    receipt = await say(host, address, key, key)
    at, _ = await channel.answer_to(receipt.row_ids[0])
    return (at - began) * 1000


async def _fill(host: Host, group: AgentGroup, address: Address, pairs: int) -> None:
    """A session of the chat with `pairs` messages that were answered and delivered."""

    def insert(connection: Any) -> Session:
        chat = messaging_groups.by_address(connection, address)
        assert chat is not None
        session = Session(id=SessionId("sess-long"), agent_group_id=group.id, messaging_group_id=chat.id)
        return session_queries.find_or_insert(connection, session)

    session = await host.store.write(insert)
    folder = session_folders(host.home, session).mailbox
    await to_thread.run_sync(copies.fill, folder, "inbound", _inbound(address, pairs))
    await to_thread.run_sync(copies.fill, folder, "outbound", _outbound(address, pairs))


def _inbound(address: Address, pairs: int) -> Iterator[bytes]:
    where = {"channel_type": address.channel_type, "platform_id": address.platform_id}
    for number in range(1, pairs + 1):
        message = {"id": f"in-{number}", "seq": 2 * number, "kind": "chat", "timestamp": _TIME, "status": "completed"}
        yield _line("messages_in", {**message, **where, "content": json.dumps({"text": f"message {number}"})})
        delivered = {"message_out_id": f"out-{number}", "status": "delivered", "delivered_at": _TIME}
        yield _line("delivered", delivered)


def _outbound(address: Address, pairs: int) -> Iterator[bytes]:
    where = {"channel_type": address.channel_type, "platform_id": address.platform_id}
    lane = deliveries.lane_of(address)
    for number in range(1, pairs + 1):
        message = {"id": f"out-{number}", "seq": 2 * number + 1, "kind": "chat", "timestamp": _TIME}
        yield _line("messages_out", {**message, **where, "content": json.dumps({"text": f"answer {number}"})})
        yield _line("processing_ack", {"message_id": f"in-{number}", "status": "completed", "status_changed": _TIME})
        ledger = {"message_out_id": f"out-{number}", "seq": 2 * number + 1, "status": "delivered"}
        yield _line("deliveries", {**ledger, "lane": lane, "queued_at": _TIME, "updated_at": _TIME})


def _line(table: str, row: Mapping[str, object]) -> bytes:
    return json.dumps({"table": table, "row": row}).encode() + b"\n"
