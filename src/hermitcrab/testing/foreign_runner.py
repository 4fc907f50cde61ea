"""A stand-in for an unmodified v2 agent-runner: a program of its own that knows SQLite and files, and no link.

Written from what the earlier system's does (2.1.53): its queries, its order of things, its faults. Its model is a
script: what it does stands in the messages it gets (`MODEL`).
Run as `python3 foreign_runner.py [--workspace DIR] [--poll S] [--settings FILE] [--older]`. The older ones tell moments
to the second, and no row of what a tool sends in mid-turn.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

MODEL = """
/WORDS           ends its stream, and begins another in which the model says nothing; /clear forgets the conversation
hold NAME        works, with signs of life, until the file agent/NAME exists
stall            works without any sign of life, for ever
die POINT        is killed at that point, once: claimed, marked, pushed, answered, said
say TEXT         says TEXT in mid-turn, as the tool send_message does; then `hold` or an answer may follow after ` | `
to NAME TEXT     answers to the destination NAME
nothing          answers nothing
ask QUESTION     asks the user (yes or no), waits, and answers with what was chosen
ncl WORDS        gives the host a command and answers with its response
file NAME TEXT   sends a file
open N           answers with the words in the Nth file that came with the message
edit N TEXT / react N EMOJI / card TEXT / schedule TEXT / install PACKAGE
tool NAME MS     says that it runs that tool, and goes on
tasks            answers with the tasks that it knows, as the tool list_tasks does
recall           answers with its conversation's id and its destinations
sh COMMAND       runs the command, as an agent does
exit N           ends its process
anything else    is echoed
"""

NO_COMMANDS = {"/help", "/login", "/logout", "/doctor", "/config", "/start"}

ROOT = Path("/workspace")
POLL_S = 1.0
OLDER = False


def now_iso() -> str:
    now = time.time()
    if OLDER:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
    return time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(now)) + f"{int(now * 1000) % 1000:03d}Z"


def new_id(prefix: str) -> str:
    return f"{prefix}-{int(time.time() * 1000)}-{os.urandom(3).hex()}"


def inbound() -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{ROOT}/inbound.db?mode=ro", uri=True, isolation_level=None)
    connection.execute("PRAGMA busy_timeout=5000")
    connection.execute("PRAGMA mmap_size=0")
    connection.row_factory = sqlite3.Row
    return connection


def outbound() -> sqlite3.Connection:
    connection = sqlite3.connect(ROOT / "outbound.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA busy_timeout=5000")
    connection.row_factory = sqlite3.Row
    return connection


def query(sql: str, *values: object) -> list[sqlite3.Row]:
    connection = inbound()
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


def touch_heartbeat() -> None:
    path = ROOT / ".heartbeat"
    try:
        os.utime(path)
    except OSError:
        path.write_text("")


def point(name: str, rows: list[sqlite3.Row]) -> None:
    for row in rows:
        token = ROOT / "agent" / f"died-{name}-{row['id']}".replace(":", "-")
        if f"die {name}" in row["content"] and not token.exists():
            token.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)


# Acknowledgements and state, as in outbound.db.


def mark(ids: list[str], status: str) -> None:
    connection = outbound()
    connection.execute("BEGIN")
    for key in ids:
        connection.execute(
            "INSERT OR REPLACE INTO processing_ack (message_id, status, status_changed) VALUES (?, ?, ?)",
            (key, status, now_iso()),
        )
    connection.execute("COMMIT")
    connection.close()


def marked() -> set[str]:
    connection = outbound()
    found = {row[0] for row in connection.execute("SELECT message_id FROM processing_ack")}
    connection.close()
    return found


def state(key: str) -> str | None:
    connection = outbound()
    row = connection.execute("SELECT value FROM session_state WHERE key = ?", (key,)).fetchone()
    connection.close()
    return row[0] if row else None


def set_state(key: str, value: str | None) -> None:
    connection = outbound()
    if value is None:
        connection.execute("DELETE FROM session_state WHERE key = ?", (key,))
    else:
        connection.execute("INSERT OR REPLACE INTO session_state VALUES (?, ?, ?)", (key, value, now_iso()))
    connection.close()


def set_tool(name: str | None, timeout_ms: int | None) -> None:
    connection = outbound()
    connection.execute(
        "INSERT OR REPLACE INTO container_state VALUES (1, ?, ?, ?, ?)",
        (name, timeout_ms, now_iso() if name else None, now_iso()),
    )
    connection.close()


def write_out(
    content: dict[str, Any],
    place: tuple[str | None, str | None, str | None] = (None, None, None),
    *,
    kind: str = "chat",
    in_reply_to: str | None = None,
    key: str | None = None,
) -> str:
    connection = outbound()
    greatest = max(
        connection.execute("SELECT coalesce(max(seq), 0) FROM messages_out").fetchone()[0],
        query("SELECT coalesce(max(seq), 0) FROM messages_in")[0][0],
    )
    key = key or new_id("msg")
    connection.execute(
        "INSERT INTO messages_out (id, seq, in_reply_to, timestamp, kind, platform_id, channel_type, thread_id,"
        " content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key,
            greatest + (1 if greatest % 2 == 0 else 2),
            in_reply_to,
            now_iso(),
            kind,
            place[1],
            place[0],
            place[2],
            json.dumps(content, ensure_ascii=False, separators=(",", ":")),
        ),
    )
    connection.close()
    return key


def pending(most: int, *, first: bool = False) -> list[sqlite3.Row]:
    rows = query(
        "SELECT * FROM messages_in WHERE status = 'pending'"
        " AND (process_after IS NULL OR datetime(process_after) <= datetime('now'))"
        " AND (on_wake = 0 OR ?) ORDER BY seq DESC LIMIT ?",
        int(first),
        most,
    )
    known = marked()
    return [row for row in reversed(rows) if row["id"] not in known]


# Rows to a prompt, and an answer to rows.


def escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def content_of(row: sqlite3.Row) -> dict[str, Any]:
    value = json.loads(row["content"])
    assert isinstance(value, dict), "a content that is no object kills this runner"
    assert isinstance(value.get("text", ""), str)
    assert isinstance(value.get("sender", ""), str)
    return value


def origin(row: sqlite3.Row) -> str:
    if row["channel_type"] == "agent":
        found = query("SELECT name FROM destinations WHERE type='agent' AND agent_group_id=?", row["platform_id"])
    else:
        found = query(
            "SELECT name FROM destinations WHERE type='channel' AND channel_type=? AND platform_id=?",
            row["channel_type"],
            row["platform_id"],
        )
    return found[0][0] if found else f"unknown:{row['channel_type']}:{row['platform_id']}"


def prompt_of(rows: list[sqlite3.Row]) -> str:
    lines = [f'<context timezone="{os.environ.get("TZ", "UTC")}" />']
    for row in rows:
        content = content_of(row)
        if is_command(row):
            lines.append(content["text"])
        elif row["kind"] in {"chat", "chat-sdk"}:
            files = [
                f"\n[{each.get('type') or 'file'}: {escape(each['name'])} — saved to /workspace/{each['localPath']}]"
                for each in content.get("attachments") or []
                if each.get("localPath")
            ]
            words = escape(content.get("text", "")) + "".join(files)
            lines.append(f'<message id="{row["seq"]}" from="{origin(row)}">{words}</message>')
        elif row["kind"] == "task":
            lines.append(f'<task from="{origin(row)}">Instructions:\n{content.get("prompt", "")}</task>')
    return "\n".join(lines)


def dispatch(text: str, batch: list[sqlite3.Row]) -> None:
    if all(row["kind"] == "task" for row in batch):
        # What it says at a task's end is the task's log. Only a tool sends something to a chat.
        if words := re.sub(r"<message[^>]*>|</message>", "", text).strip():
            write_out({"text": words}, kind="task_log")
        return
    for found in re.finditer(r'<message\s+to="([^"]+)"\s*>([\s\S]*?)</message>', text):
        destination = query("SELECT * FROM destinations WHERE name = ?", found[1])
        if not destination:
            continue  # Scratch: dropped.
        each = destination[0]
        place = ("agent", each["agent_group_id"]) if each["type"] == "agent" else (each[3], each[4])
        latest = query(
            "SELECT id, thread_id FROM messages_in WHERE channel_type=? AND platform_id=? ORDER BY seq DESC LIMIT 1",
            *place,
        )
        write_out(
            {"text": found[2].strip()},
            (*place, latest[0]["thread_id"] if latest else None),
            in_reply_to=latest[0]["id"] if latest else batch[0]["id"],
        )


# Tools.


def session_routing() -> tuple[str | None, str | None, str | None]:
    row = query("SELECT channel_type, platform_id, thread_id FROM session_routing WHERE id = 1")
    return tuple(row[0]) if row else (None, None, None)


def by_seq(seq: int) -> tuple[str, tuple[str | None, str | None, str | None]]:
    columns = "id, channel_type, platform_id, thread_id"
    row = query(f"SELECT {columns} FROM messages_in WHERE seq = ?", seq)
    if row:
        return row[0]["id"], tuple(row[0])[1:]
    connection = outbound()
    out = connection.execute(f"SELECT {columns} FROM messages_out WHERE seq = ?", (seq,)).fetchone()
    connection.close()
    delivered = query("SELECT platform_message_id FROM delivered WHERE message_out_id = ?", out["id"])
    return (delivered[0][0] if delivered and delivered[0][0] else out["id"]), tuple(out)[1:]


def wait_for_response(key: str, value: str) -> Iterator[dict[str, Any] | None]:
    while True:
        rows = query(f"SELECT * FROM messages_in WHERE status='pending' AND content LIKE '%\"{key}\":\"{value}\"%'")
        known = marked()
        for row in rows:
            if row["id"] not in known:
                mark([row["id"]], "completed")
                yield json.loads(row["content"])
                return
        yield None


# The model.


def think(text: str) -> Iterator[str | None]:
    """None: a sign of life. Text: the end of the turn."""
    yield None
    replies = []
    for tag in re.finditer(r'<(?:message id="\d+"|task) from="([^"]*)">([\s\S]*?)</(?:message|task)>', text):
        to = tag[1]
        for part in tag[2].replace("Instructions:\n", "").split(" | "):
            for step in act(part.strip(), to):
                if step is None:
                    yield None
                elif step:
                    replies.append(step)
    yield "\n".join(replies)


def act(text: str, sender: str) -> Iterator[str | None]:
    word, _, rest = text.partition(" ")
    place = session_routing()

    def answer(words: str, to: str = sender) -> str:
        return f'<message to="{to}">{words}</message>'

    match word:
        case "hold":
            while not (ROOT / "agent" / rest).exists():
                yield None
            yield answer(f"held {rest}")
        case "stall":
            time.sleep(86_400)
        case "say":
            write_out({"text": rest}, place, in_reply_to=state("current_in_reply_to"))
        case "to":
            name, _, words = rest.partition(" ")
            yield answer(words, name)
        case "nothing":
            yield "only scratch"
        case "ask":
            key = new_id("q")
            options = [{"label": each, "selectedLabel": each, "value": each.lower()} for each in ("Yes", "No")]
            question = {"type": "ask_question", "questionId": key, "title": "?", "question": rest, "options": options}
            write_out(question, place, kind="chat-sdk", key=key)
            for found in wait_for_response("questionId", key):
                if found is not None:
                    yield answer(f"chosen {found['selectedOption']}")
                yield None
        case "ncl":
            key = new_id("cli")
            request = {"action": "cli_request", "requestId": key, "command": rest.replace(" ", "-"), "args": {}}
            write_out(request, kind="system", key=key)
            for found in wait_for_response("requestId", key):
                if found is not None:
                    frame = found["frame"]
                    yield answer(f"ncl {frame['ok']} {frame.get('data') or frame['error']['message']}")
                yield None
        case "file":
            name, _, words = rest.partition(" ")
            key = new_id("msg")
            (ROOT / "outbox" / key).mkdir(parents=True)
            (ROOT / "outbox" / key / name).write_text(words)
            write_out({"text": "", "files": [name]}, place, in_reply_to=state("current_in_reply_to"), key=key)
        case "open":
            number, _, files = rest.partition("\n")
            paths = re.findall(r"saved to (/workspace/[^\]]+)\]", files)
            yield answer((ROOT / paths[int(number) - 1].removeprefix("/workspace/")).read_text())
        case "edit":
            seq, _, words = rest.partition(" ")
            target, there = by_seq(int(seq))
            write_out({"operation": "edit", "messageId": target, "text": words}, there)
        case "react":
            seq, _, emoji = rest.partition(" ")
            target, there = by_seq(int(seq))
            write_out({"operation": "reaction", "messageId": target, "emoji": emoji}, there)
        case "card":
            write_out({"type": "card", "card": {"title": rest}, "fallbackText": rest}, place, kind="chat-sdk")
        case "schedule":
            key = new_id("task")
            fields = {"taskId": key, "prompt": rest, "script": None, "processAfter": now_iso(), "recurrence": None}
            where = {"platformId": place[1], "channelType": place[0], "threadId": place[2]}
            write_out({"action": "schedule_task", **fields, **where}, place, kind="system", key=key)
        case "install":
            write_out({"action": "install_packages", "apt": [rest], "npm": [], "reason": "test"}, kind="system")
        case "tool":
            name, _, milliseconds = rest.partition(" ")
            set_tool(name, int(milliseconds))
        case "tasks":
            listed = query(
                "SELECT series_id, status, process_after, recurrence, content, max(seq) FROM messages_in"
                " WHERE kind = 'task' GROUP BY series_id ORDER BY process_after"
            )
            lines = [
                f"{each[0]} at={each[2] or 'now'} recur={each[3]} {json.loads(each[4])['prompt']}" for each in listed
            ]
            yield answer("; ".join(lines))
        case "recall":
            names = [row[0] for row in query("SELECT name FROM destinations ORDER BY name")]
            yield answer(f"I am {state('continuation:stand-in')}, and know {', '.join(names)}")
        case "sh":
            subprocess.run(["sh", "-c", unescape(rest)], check=True)
            yield answer("done")
        case "exit":
            sys.exit(int(rest))
        case _:
            yield answer(f"Echo: {text}")


# The poll loop.


class Runner:
    def __init__(self, most: int) -> None:
        self._most = most
        legacy = state("sdk_session_id")
        set_state("sdk_session_id", None)
        self._continuation = state("continuation:stand-in") or legacy
        connection = outbound()
        connection.execute("DELETE FROM processing_ack WHERE status = 'processing'")
        connection.close()

    def run(self) -> None:
        first = True
        while True:
            rows = [row for row in pending(self._most, first=first) if row["kind"] != "system"]
            first = False
            if not any(row["trigger"] == 1 for row in rows):
                time.sleep(POLL_S)
                continue
            mark([row["id"] for row in rows], "processing")
            point("claimed", rows)
            for row in [each for each in rows if words_of(each).startswith("/clear")]:
                self._continuation = None
                set_state("continuation:stand-in", None)
                write_out({"text": "Session cleared."}, (rows[0]["channel_type"], rows[0]["platform_id"], None))
                mark([row["id"]], "completed")
                rows.remove(row)
            if rows := after_scripts(rows):
                set_state("current_in_reply_to", None if OLDER else rows[0]["id"])
                self._query(rows)
                set_state("current_in_reply_to", None)

    def _query(self, batch: list[sqlite3.Row]) -> None:
        prompts = [prompt_of(batch)]
        turn: Iterator[str | None] | None = None
        ended = False
        looked_at = time.monotonic()
        everything = list(batch)
        if self._continuation is None:
            self._continuation = new_id("conversation")
        set_state("continuation:stand-in", self._continuation)
        while prompts or turn or not ended:
            if not ended and time.monotonic() - looked_at >= POLL_S / 2:
                looked_at = time.monotonic()
                rows = pending(self._most)
                if any(is_command(row) for row in rows):
                    # Whatever it is at, it gives up.
                    ended = True
                    turn = None
                    prompts.clear()
                    continue
                if rows := [row for row in rows if row["kind"] != "system"]:
                    mark([row["id"] for row in rows], "processing")
                    point("claimed", rows)
                    if not (rows := after_scripts(rows)):
                        continue
                    prompts.append(prompt_of(rows))
                    everything += rows
                    mark([row["id"] for row in rows], "completed")
                    point("pushed", rows)
            if turn is None and prompts:
                turn = think(prompts.pop(0))
            if turn is None:
                time.sleep(POLL_S / 4)
                continue
            result = next(turn)
            touch_heartbeat()
            if result is None:
                time.sleep(POLL_S / 8)
                continue
            turn = None
            set_tool(None, None)
            mark([row["id"] for row in batch], "completed")
            point("marked", everything)
            dispatch(result, batch)
            point("answered", everything)
        mark([row["id"] for row in batch], "completed")


def words_of(row: sqlite3.Row) -> str:
    return str(content_of(row).get("text", "")).strip().lower() if row["kind"] in {"chat", "chat-sdk"} else ""


def is_command(row: sqlite3.Row) -> bool:
    words = words_of(row)
    return words.startswith("/") and words.split()[0] not in NO_COMMANDS


def after_scripts(rows: list[sqlite3.Row]) -> list[sqlite3.Row]:
    """The rows that are left for the model once the scripts of tasks have run."""
    kept = []
    for row in rows:
        script = content_of(row).get("script") if row["kind"] == "task" else None
        if not script:
            kept.append(row)
            continue
        touch_heartbeat()
        run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        touch_heartbeat()
        if run.returncode == 0 and json.loads(run.stdout)["wakeAgent"]:
            kept.append(row)
        else:
            mark([row["id"]], "script-skip:error" if run.returncode else "completed")
    return kept


def add_hook(settings: Path) -> None:
    """It ends where it cannot write its harness's settings."""
    found = json.loads(settings.read_text()) if settings.exists() else {}
    hook = {"type": "command", "command": "bun /app/src/memory/hook.ts", "timeout": 10}
    found.setdefault("hooks", {})["SessionStart"] = [{"matcher": "startup|clear|compact", "hooks": [hook]}]
    settings.write_text(json.dumps(found, indent=2) + "\n")


def main() -> None:
    global ROOT, POLL_S, OLDER
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--workspace", default="/workspace")
    arguments.add_argument("--poll", type=float, default=1.0)
    arguments.add_argument("--settings", type=Path)
    arguments.add_argument("--older", action="store_true")
    given = arguments.parse_args()
    ROOT, POLL_S, OLDER = Path(given.workspace), given.poll, given.older
    if given.settings:
        add_hook(given.settings)
    try:
        config = json.loads((ROOT / "agent" / "container.json").read_text())
    except (OSError, ValueError):
        config = {}
    Runner(config.get("maxMessagesPerPrompt") or 10).run()


if __name__ == "__main__":
    main()
