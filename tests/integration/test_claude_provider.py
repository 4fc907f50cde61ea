"""The real Claude Code, through the real SDK, the real runner and its forwarder; only the model is scripted."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

from hermitcrab.testing.fake_host import FakeHost, fake_host, row, running_runner
from hermitcrab.testing.scripted_model import Request, Script, ScriptedModel, Turn, fail, say, scripted_model, use_tool
from hermitcrab_wire import frames

pytestmark = pytest.mark.claude

MAIN = {"name": "main", "type": "channel", "channel_type": "terminal", "platform_id": "main"}
FAMILY = {"name": "family", "type": "channel", "channel_type": "terminal", "platform_id": "family"}


class Stage:
    """A host, a model, and as many runners, one after another, as a test likes."""

    def __init__(self, folder: Path, host: FakeHost, model: ScriptedModel, packages: Path) -> None:
        self.folder = folder
        self.packages = packages
        self.host = host
        self.model = model
        self.workdir = folder / "agent"
        self.workdir.mkdir()
        (folder / "home").mkdir()

    def runner(self, **env: str) -> AbstractAsyncContextManager[anyio.abc.Process]:
        return running_runner(
            self.host,
            provider="claude",
            env={
                "HERMITCRAB_PACKAGES": str(self.packages),
                "HERMITCRAB_GATEWAY": str(self.folder / "gateway.sock"),
                "HERMITCRAB_WORKDIR": str(self.workdir),
                "HOME": str(self.folder / "home"),
                **env,
            },
        )

    async def harness_hears(self, text: str) -> None:
        """Until the harness itself has noted a message, which is a little later than the runner's claim of it."""
        while not any(text in each.read_text() for each in (self.folder / "home").rglob("*.jsonl")):  # noqa: ASYNC110
            await anyio.sleep(0.02)


Setting = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture
def stage(tmp_path: Path, claude_packages: Path) -> Setting:
    @asynccontextmanager
    async def setting(script: Script, **options: Any) -> AsyncIterator[Stage]:
        async with scripted_model(script) as model, gateway(tmp_path, model), fake_host(tmp_path, **options) as host:
            yield Stage(tmp_path, host, model, claude_packages)

    return setting


@asynccontextmanager
async def gateway(folder: Path, model: ScriptedModel) -> AsyncIterator[None]:
    """In place of the real gateway: the session's socket leads to the scripted model."""

    async def pump(source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream) -> None:
        try:
            async for data in source:
                await sink.send(data)
            await sink.send_eof()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            await sink.aclose()

    async def relay(near: anyio.abc.ByteStream) -> None:
        async with near, await anyio.connect_tcp("127.0.0.1", model.port) as far, anyio.create_task_group() as group:
            group.start_soon(pump, near, far)
            group.start_soon(pump, far, near)

    listener = await anyio.create_unix_listener(folder / "gateway.sock")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, relay)
        yield
        group.cancel_scope.cancel()


async def test_a_message_is_answered_without_any_secret_in_the_container(stage: Setting) -> None:
    async with stage([say("Hel", "lo there")], config={"assistant_name": "Crusty"}, destinations=[MAIN]) as on:
        async with on.runner():
            await on.host.push(row("r1", "hi <b>"))
            await on.host.answered("r1")
        assert on.host.texts == ["Hello there"]
        (out,) = on.host.outs.values()
        assert out.get("to") is None
        assert out["in_reply_to"] == "r1"
        (request,) = on.model.asked
        assert request.path.startswith("/anthropic/v1/messages")
        assert request.headers["x-api-key"] == "placeholder"
        assert any(
            '<message id="2" from="main" sender="Ada" time="Nov 23, 2026, 9:10 AM">hi &lt;b&gt;</message>' in text
            for text in request.texts
        )
        assert "# You are Crusty" in str(request.body["system"])
        assert on.host.state.keys() == {"continuation:claude"}


async def test_a_tool_runs_in_the_agents_folder_and_the_beat_says_so(stage: Setting) -> None:
    release = anyio.Event()
    script = [use_tool("Bash", {"command": "pwd > here; env > env", "timeout": 300_000}), say("done", after=release)]
    async with stage(script) as on, on.runner():
        await on.host.push(row("r1", "where are you?"))
        await on.model.asked_times(2)
        assert on.host.done == {}, "a turn that still runs is not completed"
        release.set()
        await on.host.answered("r1")
        assert (on.workdir / "here").read_text().strip() == str(on.workdir)
        variables = (on.workdir / "env").read_text()
        assert "HERMITCRAB_" not in variables
        assert "PYTHONPATH" not in variables
        beat = next(beat for beat in on.host.of_kind(frames.Beat) if beat.activity == "tool")
        assert beat.detail == "Bash"
        assert 0 < beat.until_ms <= 300_000


async def test_a_follow_up_reaches_the_running_turn_and_is_completed_with_its_result_only(stage: Setting) -> None:
    """The fault of the earlier system: follow-ups were completed when they were pushed, and lost in a crash."""
    release = anyio.Event()
    script = [use_tool("Bash", {"command": "true"}, after=release), say("both done")]
    async with stage(script) as on, on.runner():
        await on.host.push(row("r1", "first"))
        await on.model.asked_times(1)
        await on.host.push(row("r2", "second"))
        await on.harness_hears("second")
        assert len(on.host.of_kind(frames.Claim)) == 2
        assert on.host.done == {}
        release.set()
        await on.host.answered("r1", "r2")
        assert on.host.texts == ["both done"]
        assert any("second" in text for text in on.model.asked[1].texts)
        (complete,) = on.host.of_kind(frames.Complete)
        assert complete.ids == ["r1", "r2"]


async def test_a_follow_up_that_comes_too_late_for_the_turn_gets_a_turn_of_its_own(stage: Setting) -> None:
    release = anyio.Event()
    async with stage([say("one", after=release), say("two")]) as on, on.runner():
        await on.host.push(row("r1", "first"))
        await on.model.asked_times(1)
        await on.host.push(row("r2", "second"))
        await on.host.until(lambda host: len(host.of_kind(frames.Claim)) == 2)
        release.set()
        await on.host.answered("r1", "r2")
        assert on.host.texts == ["one", "two"]
        assert [complete.ids for complete in on.host.of_kind(frames.Complete)] == [["r1"], ["r2"]]


async def test_a_later_container_goes_on_with_the_conversation(stage: Setting) -> None:
    async with stage([say("I shall remember 42"), say("it was 42")]) as on:
        async with on.runner():
            await on.host.push(row("r1", "remember 42"))
            await on.host.answered("r1")
        async with on.runner():
            await on.host.push(row("r2", "what was it?"))
            await on.host.answered("r2")
        assert "I shall remember 42" in on.model.asked[1].texts


async def test_a_conversation_that_is_gone_costs_no_message(stage: Setting) -> None:
    async with stage([say("hello again")]) as on:
        on.host.state["continuation:claude"] = gone = "5b1f1c9e-0000-4000-8000-000000000000"
        async with on.runner():
            await on.host.push(row("r1", "still there?"))
            await on.host.answered("r1")
        assert on.host.texts == ["hello again"]
        assert on.host.done["r1"].failed is None
        assert on.host.state["continuation:claude"] != gone


async def test_clear_begins_a_new_conversation(stage: Setting) -> None:
    async with stage([say("noted"), say("I know nothing")]) as on, on.runner():
        await on.host.push(row("r1", "the word is kraken"))
        await on.host.answered("r1")
        await on.host.push(row("r2", "/clear"))
        await on.host.answered("r2")
        assert on.host.state == {}
        await on.host.push(row("r3", "which word?"))
        await on.host.answered("r3")
        assert on.host.texts == ["noted", "Session cleared.", "I know nothing"]
        assert not any("kraken" in text for text in on.model.asked[1].texts)


async def test_a_native_command_reaches_the_harness_as_it_is(stage: Setting) -> None:
    async with stage([say("noted")]) as on, on.runner():
        await on.host.push(row("r1", "hi"))
        await on.host.answered("r1")
        await on.host.push(row("r2", "/context"))
        await on.host.answered("r2")
        assert "Context Usage" in on.host.texts[1]
        assert len(on.model.asked) == 1


async def test_a_failure_is_told_in_one_plain_sentence_and_the_next_message_is_answered(stage: Setting) -> None:
    def script(request: Request) -> Turn:
        return fail(400, "secret internals") if "second" not in str(request.texts) else say("fine")

    async with stage(script) as on, on.runner():
        await on.host.push(row("r1", "first"))
        await on.host.answered("r1")
        assert on.host.texts == ["I could not answer: the model's service could not work with the request (HTTP 400)."]
        assert on.host.done["r1"].failed is not None
        await on.host.push(row("r2", "second"))
        await on.host.answered("r2")
        assert on.host.texts[1:] == ["fine"]


async def test_refused_credentials_end_the_turn_soon(stage: Setting) -> None:
    async with stage(lambda _request: fail(401, "no")) as on, on.runner():
        await on.host.push(row("r1", "first"))
        await on.host.answered("r1")
        assert on.host.texts == ["I could not answer: the model's service did not accept our credentials."]


async def test_an_overloaded_model_shows_in_the_beat_and_costs_nothing(stage: Setting) -> None:
    async with stage([fail(529), say("here I am")]) as on, on.runner():
        await on.host.push(row("r1", "first"))
        await on.host.answered("r1")
        assert on.host.texts == ["here I am"]
        beat = next(beat for beat in on.host.of_kind(frames.Beat) if beat.activity == "rate-limited")
        assert beat.detail == "HTTP 529"
        assert beat.until_ms > 0


async def test_cancel_stops_the_turn_and_not_what_comes_after_it(stage: Setting) -> None:
    never = anyio.Event()
    async with stage([say("too late", after=never), say("at your service")]) as on, on.runner():
        await on.host.push(row("r1", "count to a million"))
        await on.model.asked_times(1)
        await on.host.say(frames.Cancel(reason="somebody said stop"))
        await on.host.answered("r1")
        assert on.host.texts == ["I was stopped before I had finished this."]
        await on.host.push(row("r2", "hello?"))
        await on.host.answered("r2")
        assert on.host.texts[1:] == ["at your service"]


async def test_a_harness_that_dies_costs_one_answer_and_no_other_message(stage: Setting) -> None:
    never = anyio.Event()
    async with stage([say("too late", after=never), say("back again")]) as on, on.runner() as runner:
        await on.host.push(row("r1", "first"))
        await on.model.asked_times(1)
        await on.host.push(row("r2", "second"))
        await on.host.until(lambda host: len(host.of_kind(frames.Claim)) == 2)
        (harness,) = children(runner.pid)
        os.kill(harness, signal.SIGKILL)
        await on.host.answered("r1", "r2")
        assert on.host.texts == ["I could not answer: the agent program ended.", "back again"]
        assert on.host.done["r2"].failed is None


async def test_words_in_mid_turn_are_sent_when_they_are_addressed(stage: Setting) -> None:
    release = anyio.Event()

    def script(request: Request) -> Turn:
        if len(request.texts) > 0 and any("tool ran" in text for text in request.texts):
            return say("all done", after=release)
        return use_tool("Bash", {"command": "echo tool ran"}, before='<message to="family">One moment.</message>')

    async with stage(script, destinations=[MAIN, FAMILY]) as on, on.runner():
        await on.host.push(row("r1", "go"))
        await on.host.until(lambda host: bool(host.outs))
        assert on.host.done == {}
        release.set()
        await on.host.answered("r1")
        assert [(out.get("to"), out["content"]["text"]) for out in on.host.outs.values()] == [
            ("family", "One moment."),
            (None, "all done"),
        ]


async def test_words_for_nobody_go_nowhere_and_the_model_hears_of_it(stage: Setting) -> None:
    script = [say('<message to="stranger">the secret</message>'), say('<message to="family">the secret</message>')]
    async with stage(script, destinations=[MAIN, FAMILY]) as on, on.runner():
        await on.host.push(row("r1", "tell them"))
        await on.host.answered("r1")
        assert [(out.get("to"), out["content"]["text"]) for out in on.host.outs.values()] == [("family", "the secret")]
        assert any("Not delivered" in text for text in on.model.asked[1].texts)


async def test_a_drain_ends_the_runner_and_its_harness(stage: Setting) -> None:
    async with stage([say("one")]) as on, on.runner() as runner:
        await on.host.push(row("r1", "first"))
        await on.host.answered("r1")
        (harness,) = children(runner.pid)
        await on.host.say(frames.Drain(within_ms=10_000))
        assert await runner.wait() == 0
        await on.host.until(lambda host: bool(host.of_kind(frames.Bye)))
        while alive(harness):  # noqa: ASYNC110  # whoever takes it in after its parent's end may take a moment
            await anyio.sleep(0.01)


async def test_missing_packages_are_told_plainly(stage: Setting, tmp_path: Path) -> None:
    async with stage([]) as on, on.runner(HERMITCRAB_PACKAGES=str(tmp_path / "nothing")):
        await on.host.push(row("r1", "first"))
        await on.host.answered("r1")
        await on.host.push(row("r2", "second"))
        await on.host.answered("r2")
        assert on.host.texts == ["I could not answer: the agent program is not installed in this container."] * 2


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def children(pid: int) -> list[int]:
    """Processes that `pid` started, by /proc: the harness is the only one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue
        if lines.get("PPid") == str(pid):
            found.append(int(status.parent.name))
    return found
