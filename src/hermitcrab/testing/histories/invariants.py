"""What holds of every history: none lost, none doubled, order kept, every end certified, nothing left over."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hermitcrab.testing.histories.platform import Chat, Shown
    from hermitcrab.testing.histories.world import World

_SAID_BY = {
    "mid": ("mid", "out"),
    "edit": ("out", "edit"),
    "react": ("react", "out"),
    "ask": ("out", "ask"),
    "elsewhere": ("out", "away"),
    "fail": (),
}
"""What an agent says to a message, by its first word: how the ids begin. Any other message is answered with `out`."""

_BADLY = ("failed", "refused", "unknown-after-crash")


def of_the_world(world: World) -> Iterator[str]:
    """What containers, runners, sockets and platforms show of it."""
    for container in world.machine.containers.values():
        yield f"container {container.spec.name} of generation {container.spec.generation} is left"
    if world.runners:
        yield f"{len(world.runners)} runners are left"
    if world.loop.network.addresses() or world.loop.network.connections:
        yield "sockets are left open"
    for chat in world.chats:
        missing = [each for each in chat.written if each not in chat.accepted]
        if missing:
            yield f"{missing} of {chat.name} were never taken"
    for platform in world.platforms.values():
        for (chat_name, key), count in Counter((each.chat, each.key) for each in platform.shown).items():
            if count > 1:
                yield f"{key} was shown {count} times in {chat_name} of {platform.type}"
        for shown in platform.shown:
            if not shown.whole_files:
                yield f"a file of {shown.key} was not what the agent sent"
            if shown.content.get("operation") and shown.target is None:
                yield f"{shown.key} was shown without what it is about"


def of_the_disk(world: World) -> Iterator[str]:
    """What the home shows of it."""
    certified: Counter[tuple[str, int]] = Counter()
    with sqlite3.connect(world.home.database) as connection:
        indexed = Counter(connection.execute("SELECT session_id, generation FROM deaths").fetchall())
        found = connection.execute("SELECT id, agent_group_id FROM sessions").fetchall()
    connection.close()
    for session, group in found:
        folder = world.home.sessions / group / session
        path = folder / "logs" / "certificates.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            certified[session, json.loads(line)["generation"]] += 1
        for left in (*folder.glob("run/*"), *folder.glob("extra/*")):
            yield f"{left.relative_to(folder)} is left of {session}"
        yield from _of_a_mailbox(world, session, folder / "mailbox")
    for name, of in (("certificates", certified), ("the index of deaths", indexed)):
        yield from (f"{name} have {count} of {made}" for made, count in of.items() if count > 1)
        yield from (f"{name} lack {made}" for made in world.made if made not in of)


@dataclass(frozen=True, slots=True)
class _Said:
    status: str
    reason: str | None
    seq: int
    deliver_after: str | None
    in_reply_to: str | None
    lane: str


def _of_a_mailbox(world: World, session: str, folder: Path) -> Iterator[str]:
    heard, status = _heard(folder)
    said, claimed, untold = _said(folder)
    if claimed:
        yield f"{claimed} of {session} are claimed"
    if untold:
        yield f"{untold} of {session} ended badly, and nobody was told"
    yield from (
        f"{key} of {session} is {state}"
        for key, state in status.items()
        # What only gives context waits for a message that wants an answer.
        if state == "pending" and not key.startswith("undelivered-")
    )
    yield from (f"{key} of {session} is {each.status}" for key, each in said.items() if each.status in _UNFINISHED)
    for owner, key in world.committed_outs:
        if owner == session and key not in said:
            yield f"{key} of {session} was acknowledged and is not there"
    shown = {each.key.partition("#")[0]: each for platform in world.platforms.values() for each in platform.shown}
    for key, each in said.items():
        if each.status in {"delivered", "confirmed"} and f"{session}/{key}" not in shown:
            yield f"{key} of {session} is on record as {each.status}, and nobody saw it"
        if each.status in _BADLY and not key.startswith("notice-") and f"undelivered-{key}" not in status:
            yield f"the agent of {session} was not told that {key} is {each.status}"
        if each.deliver_after is not None and (seen := shown.get(f"{session}/{key}")) is not None:
            yield from _early(key, each, seen)
    chat = next((each for each in world.chats if any(key in heard for key in each.written)), None)
    if chat is not None:
        yield from _of_a_chat(world, session, chat, heard, status, said)


_UNFINISHED = ("scheduled", "queued", "sending")


def _early(key: str, said: _Said, seen: Shown) -> Iterator[str]:
    assert said.deliver_after is not None
    due = datetime.fromisoformat(said.deliver_after).replace(tzinfo=UTC).timestamp()
    if seen.at_s < due - 0.01:
        yield f"{key} was shown {due - seen.at_s:.1f} s before its time"


def _of_a_chat(
    world: World, session: str, chat: Chat, heard: dict[str, str], status: dict[str, str], said: dict[str, _Said]
) -> Iterator[str]:
    """Everything that people wrote was answered, and in order."""
    for key in chat.written:
        if key not in heard:
            yield f"{key} was taken, and is not in {session}"
            continue
        verb = heard[key].partition(" ")[0]
        if status[key] == "quarantined":
            if not any(each.in_reply_to == key and name.startswith("notice-") for name, each in said.items()):
                yield f"{key} was set aside without a word"
            continue
        if verb == "fail" and status[key] == "failed":
            continue
        if status[key] != "completed" and not (status[key] == "failed" and _shares_a_turn_with_a_failure(heard)):
            yield f"{key} ({verb}) ended as {status[key]}"
        for kind in _SAID_BY.get(verb, ("out",)):
            if f"{kind}-{key}" not in said:
                yield f"{key} ({verb}) has no {kind}-{key}"
    for key in chat.accepted:
        if key not in heard:
            yield f"{key} was acknowledged to {chat.name} and is not in {session}"
    yield from _out_of_order(world, session, said)


def _shares_a_turn_with_a_failure(heard: dict[str, str]) -> bool:
    return any(text.startswith("fail") for text in heard.values())


def _out_of_order(world: World, session: str, said: dict[str, _Said]) -> Iterator[str]:
    """In each place, what was said first was shown first, apart from what was to wait."""
    order: dict[str, list[int]] = defaultdict(list)
    for platform in world.platforms.values():
        for shown in platform.shown:
            owner, _, key = shown.key.partition("#")[0].partition("/")
            each = said.get(key)
            if owner == session and each is not None and each.deliver_after is None:
                order[each.lane].append(each.seq)
    for lane, seqs in order.items():
        if seqs != sorted(seqs):
            yield f"out of order in {re.sub(chr(31), '/', lane)}: {seqs}"


def _heard(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    with sqlite3.connect(folder / "inbound.db") as connection:
        rows = connection.execute("SELECT id, content, status FROM messages_in ORDER BY seq").fetchall()
    connection.close()
    texts = {key: str(json.loads(content).get("text", "")) for key, content, _ in rows}
    return texts, {key: state for key, _, state in rows}


def _said(folder: Path) -> tuple[dict[str, _Said], int, int]:
    with sqlite3.connect(folder / "outbound.db") as connection:
        rows = connection.execute(
            "SELECT id, deliveries.status, reason, deliveries.seq, deliver_after, in_reply_to, lane, untold"
            " FROM messages_out JOIN deliveries ON id = message_out_id"
        ).fetchall()
        (claimed,) = connection.execute("SELECT count(*) FROM processing_ack WHERE status = 'processing'").fetchone()
    connection.close()
    said = {key: _Said(*rest) for key, *rest, _ in rows}
    return said, claimed, sum(untold for *_, untold in rows)
