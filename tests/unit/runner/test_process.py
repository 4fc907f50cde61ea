"""The real runner as a process on a link: the road of a message, broken links, kills at every step, and its end."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
from pathlib import Path

import pytest

from hermitcrab.testing.fake_host import fake_host, row, running_runner
from hermitcrab_runner.digest import turn_id
from hermitcrab_runner.link import Link, LinkSettings
from hermitcrab_wire import frames

RUNNER_POINTS = ("runner.received", "runner.claimed", "runner.answered", "runner.completing", "runner.completed")


async def test_a_message_comes_back_as_an_answer(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host) as runner:
        await host.push(row("r1", "hello"), row("c1", "rain", trigger=False), row("r2", "there"))
        await host.answered("r1", "c1", "r2")
        assert host.texts == ["Echo: hello\nthere"]
        (hello,) = host.of_kind(frames.Hello)
        assert (hello.provider, hello.generation, hello.resumes, hello.pid) == ("echo", 1, False, runner.pid)
        assert hello.rss_kb > 0


async def test_rows_that_were_there_before_the_runner_are_answered(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host:
        await host.push(row("r1", "early"))
        async with running_runner(host):
            await host.answered("r1")
        assert host.texts == ["Echo: early"]


async def test_a_follow_up_waits_for_its_own_answer(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host):
        await host.push(row("r1", "/sleep 1000"))
        await host.until(lambda host: len(host.of_kind(frames.Claim)) == 1)
        await host.push(row("r2", "hi"))
        await host.until(lambda host: len(host.of_kind(frames.Claim)) == 2)
        assert host.done == {}
        await host.say(frames.Cancel(reason="enough"))
        await host.answered("r1", "r2")
        assert host.texts == ["I was stopped before I had finished this.", "Echo: hi"]


async def test_a_broken_link_is_dialled_again_and_nothing_is_doubled(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host):
        # What is completed reaches the disk, but the host dies before it can say so.
        host.unanswered = {frames.Complete}
        await host.push(row("r1", "one"))
        await host.answered("r1")
        await host.cut()
        await host.until(lambda host: len(host.of_kind(frames.Hello)) == 2)
        hello = host.of_kind(frames.Hello)[1]
        assert hello.resumes
        assert hello.holds == ["r1"]
        host.unanswered = set()
        await host.until(lambda host: len(host.of_kind(frames.Complete)) == 2)
        await host.push(row("r2", "two"))
        await host.answered("r2")
        assert host.texts == ["Echo: one", "Echo: two"]


async def test_what_was_said_while_the_host_was_away_is_said_when_it_is_back(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host):
        host.withheld = {frames.Claim, frames.Complete}
        await host.push(row("r1", "one"))
        await host.until(lambda host: bool(host.of_kind(frames.Complete)))
        assert host.done == {}
        await host.cut()
        host.withheld = set()
        await host.answered("r1")
        assert host.texts == ["Echo: one"]
        kinds = [type(frame) for frame in host.received if isinstance(frame, (frames.Claim, frames.Complete))]
        assert kinds == [frames.Claim, frames.Complete] * 2


async def test_many_breaks_lose_and_double_nothing(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host):
        for number in range(8):
            await host.until(lambda host: host.connected)
            await host.push(row(f"r{number}", f"{number}"))
            if number % 2:
                await host.cut()
        await host.answered(*(f"r{number}" for number in range(8)))
        words = [word for text in host.texts for word in text.removeprefix("Echo: ").split("\n")]
        assert sorted(words) == [str(number) for number in range(8)]


@pytest.mark.parametrize("point", RUNNER_POINTS)
async def test_a_runner_killed_anywhere_loses_and_doubles_nothing(tmp_path: Path, point: str) -> None:
    rows = [row("r1", "one"), row("r2", "two")]
    async with fake_host(tmp_path) as host:
        await host.push(*rows)
        async with running_runner(host):
            await host.answered("r1", "r2")
        ids = list(host.outs)
        turns = {completion.turn for completion in host.done.values()}

    again = tmp_path / "again"
    again.mkdir()
    token = again / "token"
    token.touch()
    async with fake_host(again) as host:
        await host.push(*rows)
        async with running_runner(host, env={"HERMITCRAB_FAULT": f"{point}:{token}"}) as runner:
            assert await runner.wait() == -signal.SIGKILL
        async with running_runner(host):
            await host.answered("r1", "r2")
        assert list(host.outs) == ids
        assert {completion.turn for completion in host.done.values()} == turns


async def test_a_drain_ends_the_process_after_its_turn(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host) as runner:
        await host.until(lambda host: host.connected)
        await host.push(row("r1", "one"))
        await host.say(frames.Drain(within_ms=10_000))
        # The end of a process may be heard before its last words are.
        await host.until(lambda host: bool(host.of_kind(frames.Bye)))
        assert await runner.wait() == 0
        assert host.texts == ["Echo: one"]
        assert isinstance(host.received[-1], frames.Bye)


async def test_a_drain_gives_back_what_takes_too_long(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host) as runner:
        await host.push(row("r1", "/sleep 1000"))
        await host.until(lambda host: bool(host.of_kind(frames.Claim)))
        await host.say(frames.Drain(within_ms=1))
        await host.until(lambda host: bool(host.of_kind(frames.Bye)))
        assert await runner.wait() == 0
        assert host.done == {}
        assert host.of_kind(frames.Bye)[0].reason == "the time to drain is over; 1 rows given back"


async def test_sigterm_is_a_drain_and_a_second_one_is_an_order(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host:
        async with running_runner(host) as runner:
            await host.until(lambda host: host.connected)
            runner.send_signal(signal.SIGTERM)
            assert await runner.wait() == 0
        async with running_runner(host) as runner:
            await host.push(row("r1", "/sleep 1000"))
            await host.until(lambda host: bool(host.of_kind(frames.Claim)))
            runner.send_signal(signal.SIGTERM)
            await host.until(lambda host: any(beat.activity == "draining" for beat in host.of_kind(frames.Beat)[-1:]))
            runner.send_signal(signal.SIGTERM)
            assert await runner.wait() == 128 + signal.SIGTERM


async def test_a_stale_generation_ends_at_once(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host, env={"HERMITCRAB_GENERATION": "7"}) as runner:
        assert await runner.wait() == 76


async def test_a_runner_does_not_outlive_its_host_for_ever(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host:
        host.path = tmp_path / "nobody.sock"
        async with running_runner(host, env={"HERMITCRAB_ORPHAN_S": "0.2"}) as runner:
            assert await runner.wait() == 75


@pytest.mark.parametrize(
    "env", [{"HERMITCRAB_PROVIDER": "oracle"}, {"HERMITCRAB_GENERATION": "many"}, {"HERMITCRAB_ORPHAN_S": "long"}]
)
async def test_a_runner_that_is_misconfigured_says_so(tmp_path: Path, env: dict[str, str]) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        async with fake_host(tmp_path) as host, running_runner(host, env=env, stderr=stderr) as runner:
            assert await runner.wait() == 78
    assert "misconfigured" in log.read_text()


async def test_the_echo_provider_can_end_the_process(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host) as runner:
        await host.push(row("r1", "/exit 3"))
        assert await runner.wait() == 3


async def test_evidence_is_measured_while_a_turn_runs(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host) as runner:
        await host.push(row("r1", "/sleep 1000"))
        await host.until(lambda host: bool(host.of_kind(frames.Claim)))
        arguments = {"host_home": str(tmp_path), "host_pid": os.getpid(), "outside": ["127.0.0.1", 1]}
        await host.say(frames.Ask(id="a1", subject="evidence", arguments=arguments))
        await host.until(lambda host: bool(host.of_kind(frames.Answer)))
        (answer,) = host.of_kind(frames.Answer)
        facts = answer.result
        assert facts["pid"] == runner.pid
        assert facts["uid"] == os.geteuid()
        assert facts["host_home_visible"] is True
        assert facts["host_processes_visible"] is True
        assert facts["tcp_outside"] == "ECONNREFUSED"
        assert facts["gateway"] == "none"
        assert "lo" in facts["interfaces"]
        assert facts["python"] == sys.version.split()[0]


async def test_an_unknown_question_gets_an_answer(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host):
        await host.until(lambda host: host.connected)
        await host.say(frames.Ask(id="a1", subject="weather"))
        await host.until(lambda host: bool(host.of_kind(frames.Answer)))
        assert "weather" in host.of_kind(frames.Answer)[0].error


async def test_a_runner_takes_no_harm_from_a_host_that_says_nonsense(tmp_path: Path) -> None:
    class Future(frames.Frame):
        def to_json(self) -> frames.Json:
            return {"type": "telepathy", "rows": [1, 2]}

    async with fake_host(tmp_path) as host, running_runner(host):
        await host.until(lambda host: host.connected)
        await host.say(Future())
        await host.push({"id": 5}, {"id": "r1", "kind": None, "content": [[]], "timestamp": {}}, row("r2", "fine"))
        await host.answered("r1", "r2")
        assert host.texts == ["Echo: \nfine"]


async def test_a_refused_answer_is_replaced_by_a_notice(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host):
        host.refusals[turn_id("r1")] = "too-large"
        await host.push(row("r1", "one"))
        await host.answered("r1")
        assert host.done["r1"].failed == "refused: too-large"
        assert host.texts == ["I had an answer, but it could not be passed on (too-large)."]


async def test_the_link_works_in_a_folder_deeper_than_an_address_can_hold(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-long-folder-name"] * 8)
    deep.mkdir(parents=True)
    async with fake_host(deep) as host, running_runner(host):
        await host.push(row("r1", "hi"))
        await host.answered("r1")


async def test_beats_come_without_any_work(tmp_path: Path) -> None:
    async with fake_host(tmp_path) as host, running_runner(host):
        await host.until(lambda host: bool(host.of_kind(frames.Beat)))
        beat = host.of_kind(frames.Beat)[0]
        assert beat.activity == "idle"
        assert beat.rss_kb > 0


async def test_a_runner_without_a_host_dials_until_there_is_one(tmp_path: Path) -> None:
    late = tmp_path / "late"
    late.mkdir()
    async with fake_host(tmp_path) as early:
        early.path = late / "link.sock"
        async with running_runner(early) as runner, fake_host(late) as host:
            await host.until(lambda host: host.connected)
            assert host.of_kind(frames.Hello)[0].pid == runner.pid


def test_a_runner_without_a_link_dials_as_soon_as_something_listens_again(tmp_path: Path) -> None:
    settings = LinkSettings(str(tmp_path / "link.sock"), 1, "echo", "0", 0.0, 600.0)
    link = Link(settings, holds=list, deliver=lambda _frame: None, lost=lambda _code: None)
    handled, woken = signal.signal(signal.SIGIO, lambda *_: None), signal.set_wakeup_fd(link.wake_writer)
    try:
        assert link._ask_to_be_told()
        with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX) as listener:
            selector.register(link._wake_reader, selectors.EVENT_READ)
            assert not link._pause(selector, 0.01)
            listener.bind(settings.path)
            # An hour, were it not told.
            assert link._pause(selector, 3600.0)
            assert not link._pause(selector, 0.01)
    finally:
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGIO, handled)
