"""The person's end of a terminal chat, against a host that comes and goes."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from hermitcrab.cli import terminal as terminal_module
from hermitcrab.cli.files import opened
from hermitcrab.cli.terminal import Terminal
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import Emit, Method, serving
from hermitcrab.errors import BadInputError, HostUnreachableError, NotFoundError, sole
from hermitcrab.settings.home import Home


@dataclass
class FakeHost:
    """Remembers over its restarts, as a real one does on disk, and delivers until it hears that it was shown."""

    home: Home
    taken: dict[str, str] = field(default_factory=dict)
    sends: int = 0
    said: list[dict[str, Any]] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    shown: set[str] = field(default_factory=set)
    deaf: bool = False
    """Goes away without an answer to what is sent to it."""
    lose_acknowledgements: bool = False
    files: dict[str, bytearray] = field(default_factory=dict)
    forget_files_at: int | None = None
    """After so many bytes of a file it dies, and the next host has nothing of it."""
    got: dict[str, bytes] = field(default_factory=dict)
    _news: anyio.Event = field(default_factory=anyio.Event)
    _scope: anyio.CancelScope | None = None

    async def start(self, tasks: TaskGroup) -> None:
        await tasks.start(self._serve)

    def stop(self) -> None:
        assert self._scope is not None
        self._scope.cancel()

    async def _serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.CancelScope() as self._scope:
            async with serving(self.home.run, self.methods()):
                task_status.started()
                await anyio.sleep_forever()

    def methods(self) -> dict[str, Method]:
        return {
            "chat.attach": self.attach,
            "chat.ack": self.ack,
            "chat.upload": self.upload,
            "chat.send": self.send,
            "chat.answers": self.answers,
        }

    def say(self, key: str, text: str, *, to: str | None = None, notice: bool = False, **more: Any) -> None:
        content = {"text": text, **({"notice": True} if notice else {})}
        self.said.append({"key": key, "message_kind": "chat", "content": content, "in_reply_to": to, **more})
        self._news.set()
        self._news = anyio.Event()

    async def attach(self, params: Params, emit: Emit) -> Json:
        if params.text("group") != "main":
            raise NotFoundError("There is no such group.")
        await emit({"kind": "attached", "attachment": "a-1", "message_bytes": 100})
        sent: set[str] = set()
        while True:
            news = self._news
            for each in self.said:
                if each["key"] not in self.shown | sent:
                    sent.add(each["key"])
                    await emit({"kind": "message", **each})
            await news.wait()

    async def ack(self, params: Params, _emit: Emit) -> Json:
        if self.lose_acknowledgements:
            self.stop()
            await anyio.sleep_forever()
        self.shown.add(params.text("key"))
        return {"acknowledged": True}

    async def upload(self, params: Params, _emit: Emit) -> Json:
        part = base64.b64decode(params.optional_text("data") or "")
        received = self.files.setdefault(params.text("id"), bytearray())
        if self.forget_files_at is not None and len(received) >= self.forget_files_at:
            self.forget_files_at = None
            self.files.clear()
            self.stop()
            await anyio.sleep_forever()
        if params.integer("offset", default=0, least=0, most=10**9) == len(received):
            received += part
        return {"received": len(received)}

    async def send(self, params: Params, _emit: Emit) -> Json:
        self.sends += 1
        message_id = params.text("id")
        for each in params.objects("files", most=10):
            key = each.text("id")
            if hashlib.sha256(self.files.get(key, b"")).hexdigest() != each.text("sha256"):
                raise NotFoundError("A file of this message is not here.")
            self.got[each.text("name")] = bytes(self.files[key])
        self.taken.setdefault(message_id, params.optional_text("text") or "")
        if self.deaf:
            self.stop()
            await anyio.sleep_forever()
        return {"heard_by": [{"session": "s-1", "row": message_id}]}

    async def answers(self, params: Params, _emit: Emit) -> Json:
        row = params.text("row")
        outs = [
            {**each, "delivery": "delivered" if each["key"] in self.shown else "queued", "reason": None}
            for each in self.said
            if each["in_reply_to"] == row
        ]
        return {"status": "completed" if row in self.done else "pending", "ended": row in self.done, "outs": outs}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "run").mkdir()
    return Home(tmp_path)


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal_module, "FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(terminal_module, "LAST_RETRY_S", 0.01)
    monkeypatch.setattr(terminal_module, "LOOKED_EVERY_S", 0.01)


@dataclass
class Person:
    terminal: Terminal
    shown: list[str]
    news: anyio.Event

    async def until_shown(self, count: int) -> None:
        while len(self.shown) < count:
            await self.news.wait()


@asynccontextmanager
async def at_the_terminal(host: FakeHost) -> AsyncIterator[tuple[Person, TaskGroup]]:
    async with anyio.create_task_group() as tasks:
        await host.start(tasks)

        def show(event: dict[str, Any]) -> None:
            person.shown.append(event["content"]["text"])
            person.news.set()
            person.news = anyio.Event()

        person = Person(Terminal(host.home, "main", show=show), [], anyio.Event())
        await tasks.start(person.terminal.run)
        yield person, tasks
        tasks.cancel_scope.cancel()


async def test_an_answer_is_complete_when_its_message_has_ended(home: Home) -> None:
    host = FakeHost(home)
    async with at_the_terminal(host) as (person, _):
        sent = await person.terminal.send("hello")
        host.say("out-1", "one", to=sent.id)
        host.say("out-2", "two", to=sent.id)
        host.done.add(sent.id)
        heard: list[str] = []
        answer = await person.terminal.answer_to(sent, lambda message: heard.append(message["content"]["text"]))
    assert heard == ["one", "two"]
    assert [each["key"] for each in answer.messages] == ["out-1", "out-2"]
    assert host.shown == {"out-1", "out-2"}


async def test_an_agent_that_says_nothing_ends_the_wait_too(home: Home) -> None:
    host = FakeHost(home)
    async with at_the_terminal(host) as (person, _):
        sent = await person.terminal.send("hello")
        host.done.add(sent.id)
        assert (await person.terminal.answer_to(sent, lambda _: None)).messages == ()


async def test_what_comes_while_the_host_is_away_is_shown_when_it_is_back(home: Home) -> None:
    host = FakeHost(home)
    async with at_the_terminal(host) as (person, tasks):
        host.say("out-1", "before")
        await person.until_shown(1)
        host.stop()
        host.say("out-2", "meanwhile")
        await host.start(tasks)
        await person.until_shown(2)
    assert person.shown == ["before", "meanwhile"]


async def test_a_message_whose_acknowledgement_was_lost_comes_again_and_is_not_shown_again(home: Home) -> None:
    host = FakeHost(home, lose_acknowledgements=True)
    async with at_the_terminal(host) as (person, tasks):
        host.say("out-1", "once")
        await person.until_shown(1)
        assert host.shown == set()
        host.lose_acknowledgements = False
        await host.start(tasks)
        host.say("out-2", "next")
        await person.until_shown(2)
    assert person.shown == ["once", "next"]
    assert "out-1" in host.shown


async def test_a_send_that_was_cut_off_is_repeated_as_the_same_message(home: Home) -> None:
    host = FakeHost(home, deaf=True)
    async with at_the_terminal(host) as (person, tasks):

        async def come_back() -> None:
            while not host.taken:
                await anyio.lowlevel.checkpoint()
            host.deaf = False
            await anyio.sleep(0.01)
            await host.start(tasks)

        tasks.start_soon(come_back)
        sent = await person.terminal.send("hello")
    assert host.taken == {sent.id: "hello"}
    assert host.sends == 2


async def test_an_answer_is_waited_for_over_a_restart(home: Home) -> None:
    host = FakeHost(home)
    async with at_the_terminal(host) as (person, tasks):
        sent = await person.terminal.send("hello")
        host.stop()
        host.say("out-1", "after the restart", to=sent.id)
        host.done.add(sent.id)
        await host.start(tasks)
        answer = await person.terminal.answer_to(sent, lambda _: None)
    assert [each["content"]["text"] for each in answer.messages] == ["after the restart"]


async def test_an_answer_that_another_terminal_showed_is_an_answer_here_too(home: Home) -> None:
    host = FakeHost(home)
    async with at_the_terminal(host) as (person, _):
        sent = await person.terminal.send("hello")
        host.shown.add("out-1")
        host.say("out-1", "shown elsewhere", to=sent.id)
        host.done.add(sent.id)
        answer = await person.terminal.answer_to(sent, lambda _: None)
    assert [each["key"] for each in answer.messages] == ["out-1"]


async def test_more_than_the_host_takes_is_refused_before_it_is_sent(home: Home) -> None:
    host = FakeHost(home)
    async with at_the_terminal(host) as (person, _):
        with pytest.raises(BadInputError, match="101 bytes"):
            await person.terminal.send("x" * 101)
    assert host.taken == {}


async def attach(home: Home, group: str, host: FakeHost | None = None) -> None:
    try:
        async with anyio.create_task_group() as tasks:
            if host is not None:
                await host.start(tasks)
            await tasks.start(Terminal(home, group, show=lambda _: None).run)
    except BaseExceptionGroup as group_of_errors:
        raise sole(group_of_errors) from None


async def test_without_a_host_at_the_beginning_nobody_waits(home: Home) -> None:
    with pytest.raises(HostUnreachableError):
        await attach(home, "main")


async def test_an_unknown_group_ends_it(home: Home) -> None:
    with pytest.raises(NotFoundError):
        await attach(home, "other", FakeHost(home))


async def test_a_file_is_sent_whole_though_the_host_goes_away_in_the_middle(home: Home, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4000
    (tmp_path / "report.pdf").write_bytes(data)
    (tmp_path / "empty").touch()
    host = FakeHost(home, forget_files_at=300_000)
    async with at_the_terminal(host) as (person, tasks):

        async def come_back() -> None:
            while host.forget_files_at is not None:  # noqa: ASYNC110
                await anyio.sleep(0.001)
            await host.start(tasks)

        tasks.start_soon(come_back)
        with opened([str(tmp_path / "report.pdf"), str(tmp_path / "empty")], home) as files:
            await person.terminal.send("see", files)
    assert host.got == {"report.pdf": data, "empty": b""}
    assert list(host.taken.values()) == ["see"]


async def test_a_file_that_cannot_be_saved_is_said_and_its_message_comes_again(home: Home, tmp_path: Path) -> None:
    source = tmp_path / "handle"
    source.write_bytes(b"data")
    file = {"name": "a.txt", "path": str(source), "bytes": 4, "sha256": hashlib.sha256(b"data").hexdigest()}
    home.received.mkdir()
    (home.received / "main").write_text("in the way")
    host, troubles = FakeHost(home), list[str]()
    async with at_the_terminal(host) as (person, tasks):
        person.terminal._trouble = troubles.append
        host.say("out-1", "see", files=[file])
        while not troubles:  # noqa: ASYNC110
            await anyio.sleep(0.001)
        assert person.shown == []
        assert host.shown == set()
        (home.received / "main").unlink()
        # The delivery is tried again, here by a host that has started anew.
        host.stop()
        await host.start(tasks)
        await person.until_shown(1)
        assert person.terminal.words({"key": "out-1", "content": {"text": "see", "files": ["a.txt"]}}) == (
            f"see\n[file: a.txt → {home.received / 'main' / 'a.txt'}]"
        )
    assert len(troubles) == 1
    assert "could not be saved" in troubles[0]
    assert (home.received / "main" / "a.txt").read_bytes() == b"data"
