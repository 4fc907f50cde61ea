"""The road of a message through the files of a foreign runner, with every process real."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hermitcrab.testing.fake_host import FakeHost, fake_host, row
from hermitcrab_wire import frames

from .conftest import Foreign, until

HOME = {"name": "home", "type": "channel", "channel_type": "terminal", "platform_id": "main"}
OTHER = {"name": "other", "type": "channel", "channel_type": "terminal", "platform_id": "garden"}
CHILD = {"name": "child", "type": "agent", "agent_group_id": "ag-child"}
PLACES = [HOME, OTHER, CHILD]
ROUTING = {"channel_type": "terminal", "platform_id": "main", "thread_id": None}


def chat(seq: int, text: object, **fields: Any) -> dict[str, Any]:
    return row(f"m{seq}", text, **{"seq": seq, **fields})


async def test_a_message_comes_back_as_an_answer(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        await host.push(chat(2, "hello"))
        await host.answered("m2")
        (out,) = host.outs.values()
        assert out["content"] == {"text": "Echo: hello"}
        assert out["in_reply_to"] == "m2"
        assert host.done["m2"].failed is None
        assert foreign.rows("inbound.db", "SELECT id, seq, status FROM messages_in") == [("m2", 2, "completed")]
        assert foreign.rows("outbound.db", "SELECT id, seq FROM messages_out") == [(out["id"], 3)]
        await until(lambda: foreign.rows("inbound.db", "SELECT 1 FROM delivered") != [])
        assert foreign.rows("inbound.db", "SELECT message_out_id, status FROM delivered") == [(out["id"], "delivered")]


async def test_a_follow_up_is_added_to_the_turn_and_completed_only_when_it_is_answered(
    tmp_path: Path, foreign: Foreign
) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        await host.push(chat(2, "hold gate"))
        await host.until(lambda host: len(host.of_kind(frames.Claim)) == 1)
        await host.push(chat(4, "and this"))
        # The runner marks it as completed while it still waits at the gate.
        await until(lambda: foreign.rows("outbound.db", "SELECT 1 FROM processing_ack WHERE status = 'completed'"))
        await host.until(lambda host: len(host.of_kind(frames.Claim)) == 2)
        assert host.done == {}
        foreign.let("gate")
        await host.answered("m2", "m4")
        assert host.texts == ["held gate", "Echo: and this"]


async def test_more_rows_than_the_runner_takes_come_in_order(tmp_path: Path, foreign: Foreign) -> None:
    (foreign.root / "agent" / "container.json").write_text('{"maxMessagesPerPrompt":4}')
    config = {"max_messages_per_prompt": 4}
    count = 15
    async with fake_host(tmp_path, destinations=PLACES, config=config) as host, foreign.shim(host):
        await host.push(*(chat(2 * number, f"({number})", trigger=number % 3 == 0) for number in range(1, count + 1)))
        await host.answered(*(f"m{2 * number}" for number in range(1, count + 1)))
        assert host.texts == [f"Echo: ({number})" for number in range(1, count + 1)]


async def test_rows_for_a_starting_container_are_seen_at_its_first_look(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host:
        await host.push(chat(2, "you were restarted", on_wake=True))
        async with foreign.shim(host):
            await host.answered("m2")
            assert foreign.rows("inbound.db", "SELECT on_wake FROM messages_in") == [(1,)]
            # One that comes later must not wait for a look that never comes.
            await host.push(chat(4, "too late", on_wake=True))
            await host.answered("m4")
        assert host.texts == ["Echo: you were restarted", "Echo: too late"]


async def test_an_answer_goes_where_it_is_addressed(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        await host.push(chat(2, "to other over there | to child work | to nobody lost | back"))
        await host.answered("m2")
        ways = {out["content"]["text"]: (out.get("to"), out.get("in_reply_to")) for out in host.outs.values()}
        assert ways == {"over there": ("other", None), "work": ("child", None), "Echo: back": (None, "m2")}


async def test_a_thread_is_found_through_the_row_that_came_from_it(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        await host.push(chat(2, "hello", thread_id="t1"))
        await host.answered("m2")
        (out,) = host.outs.values()
        assert out["in_reply_to"] == "m2"
        assert foreign.rows("outbound.db", "SELECT thread_id FROM messages_out") == [("t1",)]


async def test_a_question_is_answered_by_what_the_host_writes(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        host.routing = ROUTING
        await host.push(chat(2, "ask shall I?"))
        await host.until(lambda host: len(host.outs) == 1)
        (question,) = host.outs.values()
        assert question["kind"] == "chat-sdk"
        assert question["id"] == question["content"]["questionId"]
        content = {"type": "question_response", "questionId": question["id"], "selectedOption": "yes", "userId": "u"}
        await host.push(row(f"qr-{question['id']}-1", kind="system", seq=4, content=content))
        await host.answered("m2", f"qr-{question['id']}-1")
        assert texts_of(host)[1] == "chosen yes"


async def test_a_command_of_the_agent_gets_the_response_of_the_host(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        await host.push(chat(2, "ncl groups list"))
        await host.until(lambda host: len(host.outs) == 1)
        (request,) = host.outs.values()
        assert (request["kind"], request["content"]["command"]) == ("system", "groups-list")
        key = request["content"]["requestId"]
        frame = {"id": key, "ok": True, "data": "two"}
        content = {"type": "cli_response", "requestId": key, "frame": frame}
        await host.push(row(f"cli-resp-{key}", kind="system", trigger=False, seq=4, content=content))
        await host.answered("m2", f"cli-resp-{key}")
        assert texts_of(host)[1] == "ncl True two"


async def test_what_the_host_does_not_know_is_refused_where_the_agent_sees_it(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        host.refused_kinds = {"system", "chat-sdk"}
        await host.push(chat(2, "ncl groups list"))
        await host.answered("m2")
        assert texts_of(host) == ["ncl False no kind system here"]
        await host.push(chat(4, "install jq | install yq"))
        await host.answered("m4")
        notes = foreign.rows("inbound.db", "SELECT content FROM messages_in WHERE id LIKE 'sys-resp-%'")
        # The same reason is told once: a note is a turn, and a turn may try the same again.
        assert len(notes) == 1
        assert "no kind system here" in json.loads(notes[0][0])["text"]
        statuses = foreign.rows("inbound.db", "SELECT status FROM delivered ORDER BY rowid")
        assert statuses.count(("failed",)) == 3
        logs = [log.text for log in host.of_kind(frames.Log)]
        assert any("install_packages" in text and "no kind system here" in text for text in logs)


async def test_a_task_has_all_its_columns(tmp_path: Path, foreign: Foreign) -> None:
    task = {
        "process_after": "2020-01-01T09:00:00.000Z",
        "recurrence": "0 9 * * *",
        "series_id": "task-1",
        "source_session_id": "sess-9",
        "tries": 2,
    }
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        await host.push(chat(2, "", kind="task", content={"prompt": "say look | tasks", "script": None}, **task))
        await host.answered("m2")
        # Only what it sends by a tool goes to a chat; what it says in the end is the task's own log.
        assert host.texts == ["look"]
        (told,) = [log.text for log in host.of_kind(frames.Log) if "task's own log" in log.text]
        assert told.endswith("task-1 at=2020-01-01T09:00:00.000Z recur=0 9 * * * say look | tasks")
        columns = ", ".join(task)
        assert foreign.rows("inbound.db", f"SELECT {columns} FROM messages_in") == [tuple(task.values())]


@pytest.mark.parametrize(
    ("script", "failed", "texts"),
    [
        ("""echo '{"wakeAgent":true}'""", None, ["woken"]),
        ("""echo '{"wakeAgent":false}'""", None, []),
        ("exit 1", "the runner gave it up", []),
    ],
)
async def test_a_task_whose_script_wants_no_turn_is_done_and_one_whose_script_fails_has_failed(
    tmp_path: Path, foreign: Foreign, script: str, failed: str | None, texts: list[str]
) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        host.routing = ROUTING
        await host.push(chat(2, "", kind="task", content={"prompt": "say woken | nothing", "script": script}))
        await host.answered("m2")
        assert host.done["m2"].failed == failed
        assert host.texts == texts


async def test_a_file_is_with_the_host_before_its_message_and_then_gone(tmp_path: Path, foreign: Foreign) -> None:
    words = "x" * 300_000
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        host.routing = ROUTING
        await host.push(chat(2, f"file notes.txt {words} | done"))
        await host.answered("m2")
        message, answer = host.outs.values()
        assert message["content"] == {"text": "", "files": ["notes.txt"]}
        assert [bytes(host.files[key]) for key in message["files"]] == [words.encode()]
        assert answer["content"] == {"text": "Echo: done"}
        await until(lambda: not list((foreign.root / "outbox").iterdir()))


async def test_a_file_goes_on_where_the_link_broke(tmp_path: Path, foreign: Foreign) -> None:
    words = "0123456789" * 50_000
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        host.routing = ROUTING
        host.unanswered = {frames.FileChunk}
        await host.push(chat(2, f"file notes.txt {words} | done"))
        await host.until(lambda host: len(host.of_kind(frames.FileChunk)) == 1)
        host.unanswered = set()
        await host.cut()
        await host.answered("m2")
        (data,) = host.files.values()
        assert bytes(data) == words.encode()
        assert [chunk.offset for chunk in host.of_kind(frames.FileChunk)] == [0, 131072, 262144, 393216]


async def test_a_file_that_is_none_is_not_sent(tmp_path: Path, foreign: Foreign) -> None:
    (tmp_path / "secret").write_text("secret")
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        host.routing = ROUTING
        await host.push(chat(2, "hold gate"))
        await host.until(lambda host: len(host.of_kind(frames.Claim)) == 1)
        folder = foreign.root / "outbox" / "planted"
        folder.mkdir()
        (folder / "link").symlink_to(tmp_path / "secret")
        os.mkfifo(folder / "pipe")
        (folder / "good").write_text("good")
        names = ["link", "pipe", "../../secret", "absent", "good"]
        foreign.write_out("planted", {"text": "look", "files": names}, ROUTING)
        foreign.let("gate")
        await host.answered("m2")
        message = host.outs["planted"]
        assert message["content"] == {"text": "look", "files": ["good"]}
        assert [bytes(host.files[key]) for key in message["files"]] == [b"good"]
        assert sum("a file of planted" in log.text for log in host.of_kind(frames.Log)) == 4


async def test_what_is_for_later_is_said_so_to_the_host(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        host.routing = ROUTING
        await host.push(chat(2, "hold gate"))
        await host.until(lambda host: len(host.of_kind(frames.Claim)) == 1)
        foreign.write_out("later", {"text": "later"}, ROUTING, deliver_after="2999-01-01 00:00:00")
        foreign.write_out("now", {"text": "now"}, ROUTING, deliver_after="1999-01-01T00:00:00Z")
        foreign.let("gate")
        await host.answered("m2")
        assert host.outs["later"]["deliver_after"] == "2999-01-01T00:00:00.000Z"
        assert "deliver_after" not in host.outs["now"]


async def test_edits_reactions_and_cards_are_passed_on(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        host.routing = ROUTING
        await host.push(chat(2, "hello"))
        await host.answered("m2")
        (said,) = host.outs
        await host.push(chat(4, "edit 3 better | react 2 thumbs_up | card news"))
        await host.answered("m4")
        assert [out["content"] for out in list(host.outs.values())[1:]] == [
            {"operation": "edit", "messageId": said, "text": "better"},
            {"operation": "reaction", "messageId": "m2", "emoji": "thumbs_up"},
            {"type": "card", "card": {"title": "news"}, "fallbackText": "news"},
        ]


async def test_the_conversation_outlives_containers_and_even_its_file(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host:
        async with foreign.shim(host):
            await host.push(chat(2, "recall"))
            await host.answered("m2")
            await host.until(lambda host: "continuation:stand-in" in host.state)
        continuation = host.state["continuation:stand-in"]
        assert host.texts == [f"I am {continuation}, and know child, home, other"]
        for wanted in (host.texts[0], host.texts[0]):
            host.generation += 1
            async with foreign.shim(host):
                key = f"again-{host.generation}"
                await host.push(row(key, "recall", seq=10 + 2 * host.generation))
                await host.answered(key)
            assert host.texts[-1] == wanted
            (foreign.root / "outbound.db").unlink()


async def test_a_cleared_conversation_is_forgotten(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        host.routing = ROUTING
        await host.push(chat(2, "hello"))
        await host.answered("m2")
        first = host.state["continuation:stand-in"]
        await host.push(chat(4, "/clear"))
        await host.answered("m4")
        assert host.texts[1:] == ["Session cleared."]
        # It names no row itself; whoever asked must see it as the answer.
        assert [out["in_reply_to"] for out in host.outs.values()] == ["m2", "m4"]
        await host.push(chat(6, "again"))
        await host.answered("m6")
        assert host.state["continuation:stand-in"] != first


async def test_a_command_ends_what_the_runner_is_at_and_is_done_with_its_own_stream(
    tmp_path: Path, foreign: Foreign
) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        await host.push(chat(2, "hold nothing-ever"))
        await host.until(lambda host: len(host.of_kind(frames.Claim)) == 1)
        await host.push(chat(4, "and this"))
        await host.until(lambda host: len(host.of_kind(frames.Claim)) == 2)
        await host.push(chat(6, "/compact"))
        # Without a silence of a minute for an answer that nobody is about to give.
        await host.answered("m2", "m4", "m6")
        await host.push(chat(8, "still there?"))
        await host.answered("m8")
        assert host.texts == ["Echo: still there?"]


async def test_what_the_runner_tells_its_own_tools_is_no_state_of_the_session(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        host.routing = ROUTING
        await host.push(chat(2, "say on it | hold gate"))
        await host.until(lambda host: host.texts == ["on it"])
        assert foreign.rows("outbound.db", "SELECT key FROM session_state ORDER BY key") == [
            ("continuation:stand-in",),
            ("current_in_reply_to",),
        ]
        foreign.let("gate")
        await host.answered("m2")
        assert set(host.state) == {"continuation:stand-in"}
        assert {out["in_reply_to"] for out in host.outs.values()} == {"m2"}


async def test_the_beats_tell_which_tool_runs_and_for_how_long(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES, config={"beat_s": 0.1}) as host, foreign.shim(host):
        await host.push(chat(2, "tool Bash 600000 | hold gate"))
        await host.until(lambda host: any(beat.activity == "tool" for beat in host.of_kind(frames.Beat)))
        beat = next(beat for beat in host.of_kind(frames.Beat) if beat.activity == "tool")
        assert beat.detail == "Bash"
        assert 590_000 < beat.until_ms <= 600_000
        foreign.let("gate")
        await host.answered("m2")
        await host.until(lambda host: host.of_kind(frames.Beat)[-1].activity == "idle")


ages = pytest.mark.parametrize("options", [(), ("--older",)], ids=["newer", "older"])
"""How exactly a runner tells moments, and whether it says to which row it says something in mid-turn."""


@ages
@pytest.mark.parametrize("point", ["claimed", "marked", "answered"])
async def test_a_runner_that_is_killed_loses_and_doubles_nothing(
    tmp_path: Path, foreign: Foreign, point: str, options: tuple[str, ...]
) -> None:
    foreign = replace(foreign, options=options)
    async with fake_host(tmp_path, destinations=PLACES) as host:
        host.routing = ROUTING
        await host.push(chat(2, f"say one | die {point}"))
        async with foreign.shim(host) as shim:
            assert await shim.wait() == 128 + signal.SIGKILL
        host.generation += 1
        async with foreign.shim(host):
            await host.answered("m2")
        assert sorted(host.texts) == sorted(["one", f"Echo: die {point}"])


@ages
@pytest.mark.parametrize("point", ["claimed", "pushed", "marked", "answered"])
async def test_a_runner_that_is_killed_over_a_follow_up_loses_and_doubles_nothing(
    tmp_path: Path, foreign: Foreign, point: str, options: tuple[str, ...]
) -> None:
    foreign = replace(foreign, options=options)
    async with fake_host(tmp_path, destinations=PLACES) as host:
        async with foreign.shim(host) as shim:
            await host.push(chat(2, "hello"))
            await host.answered("m2")
            await host.push(chat(4, f"die {point}"))
            assert await shim.wait() == 128 + signal.SIGKILL
        host.generation += 1
        async with foreign.shim(host):
            await host.answered("m4")
        assert host.texts == ["Echo: hello", f"Echo: die {point}"]


RUNNER_POINTS = ("runner.claimed", "runner.answered", "runner.completing", "runner.completed")


@pytest.mark.parametrize("point", RUNNER_POINTS)
async def test_a_shim_that_is_killed_loses_and_doubles_nothing(tmp_path: Path, foreign: Foreign, point: str) -> None:
    token = tmp_path / "token"
    token.touch()
    async with fake_host(tmp_path, destinations=PLACES) as host:
        await host.push(chat(2, "hello"))
        async with foreign.shim(host, env={"HERMITCRAB_FAULT": f"{point}:{token}"}) as shim:
            assert await shim.wait() == -signal.SIGKILL
        host.generation += 1
        async with foreign.shim(host):
            await host.answered("m2")
            await host.push(chat(4, "next"))
            await host.answered("m4")
        assert host.texts == ["Echo: hello", "Echo: next"]


async def test_a_broken_link_is_dialled_again_and_nothing_is_doubled(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        host.unanswered = {frames.Out, frames.Complete}
        await host.push(chat(2, "hello"))
        await host.answered("m2")
        await host.cut()
        await host.until(lambda host: len(host.of_kind(frames.Hello)) == 2)
        hello = host.of_kind(frames.Hello)[1]
        assert (hello.resumes, hello.holds) == (True, ["m2"])
        host.unanswered = set()
        await host.push(chat(4, "still there?"))
        await host.answered("m4")
        assert host.texts == ["Echo: hello", "Echo: still there?"]


async def test_a_drained_shim_finishes_what_is_in_work_and_gives_back_the_rest(
    tmp_path: Path, foreign: Foreign
) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host:
        async with foreign.shim(host) as shim:
            await host.push(chat(2, "hold gate"))
            await host.until(lambda host: len(host.of_kind(frames.Claim)) == 1)
            await host.say(frames.Drain(within_ms=60_000))
            await host.until(lambda host: any(beat.activity == "draining" for beat in host.of_kind(frames.Beat)[-1:]))
            await host.push(chat(4, "later"))
            foreign.let("gate")
            # The end of a process may be heard before its last words are.
            await host.until(lambda host: bool(host.of_kind(frames.Bye)))
            assert await shim.wait() == 0
        assert list(host.done) == ["m2"]
        assert host.of_kind(frames.Bye)[0].reason == "drained; 1 rows given back"
        host.generation += 1
        async with foreign.shim(host):
            await host.answered("m4")
        assert host.texts == ["held gate", "Echo: later"]


async def test_a_signal_ends_an_idle_runner_at_once(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host) as shim:
        await host.push(chat(2, "hello"))
        await host.answered("m2")
        assert len(foreign.runners()) == 1
        shim.send_signal(signal.SIGTERM)
        assert await shim.wait() == 0
        assert foreign.runners() == []


async def test_a_cancelled_turn_is_given_up_and_the_runner_goes_on(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host):
        await host.push(chat(2, "hold nothing-ever"))
        await host.until(lambda host: len(host.of_kind(frames.Claim)) == 1)
        await host.say(frames.Cancel(reason="by command"))
        await host.answered("m2")
        assert host.done["m2"].failed == "cancelled: by command"
        await host.push(chat(4, "still there?"))
        await host.answered("m4")
        assert host.texts == ["I was stopped before I had finished this.", "Echo: still there?"]


@pytest.mark.parametrize(("text", "code"), [("exit 7", 7), ("exit 0", 0)])
async def test_the_exit_code_of_the_command_is_passed_on(
    tmp_path: Path, foreign: Foreign, text: str, code: int
) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host, foreign.shim(host) as shim:
        await host.push(chat(2, text))
        assert await shim.wait() == code
        assert host.done == {}


async def test_a_command_that_there_is_not_ends_like_in_a_shell(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path) as host, foreign.shim(host, command=["/no/such/program"]) as shim:
        assert await shim.wait() == 127
        assert host.of_kind(frames.Hello)


async def test_without_a_command_it_says_how_it_is_used(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path) as host, foreign.shim(host, command=[]) as shim:
        assert await shim.wait() == 78


async def test_a_damaged_file_is_put_aside_and_its_messages_are_answered(tmp_path: Path, foreign: Foreign) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host:
        async with foreign.shim(host):
            await host.push(chat(2, "hello"))
            await host.answered("m2")
        for name in ("inbound.db", "outbound.db"):
            (foreign.root / name).write_bytes(b"no database at all" * 500)
        host.generation += 1
        async with foreign.shim(host):
            await host.push(chat(4, "again"))
            await host.answered("m4")
        assert host.texts == ["Echo: hello", "Echo: again"]
        assert (foreign.root / "outbound.db.damaged-1").exists()
        assert sum("a database was damaged" in log.text for log in host.of_kind(frames.Log)) == 2


async def test_a_file_that_is_damaged_while_it_runs_ends_the_runner_and_not_the_session(
    tmp_path: Path, foreign: Foreign
) -> None:
    async with fake_host(tmp_path, destinations=PLACES) as host:
        async with foreign.shim(host) as shim:
            await host.push(chat(2, "hold gate"))
            await host.until(lambda host: len(host.of_kind(frames.Claim)) == 1)
            (foreign.root / "outbound.db").write_bytes(b"no database at all" * 500)
            foreign.let("gate")
            assert await shim.wait() == 74
        host.generation += 1
        async with foreign.shim(host):
            await host.answered("m2")
        assert host.texts == ["held gate"]


def texts_of(host: FakeHost) -> list[str]:
    return [str(out["content"].get("text")) for out in host.outs.values()]
