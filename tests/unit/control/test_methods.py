"""The control methods over a real store, real mailboxes, the real router and terminal; only containers are fake."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from hermitcrab.channels.base import Delivery
from hermitcrab.channels.terminal.runtime import TerminalChannel
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle.admission import AdmissionView
from hermitcrab.containers.lifecycle.breakers import BreakerView
from hermitcrab.containers.lifecycle.restarting import Restart
from hermitcrab.containers.lifecycle.slot import SessionView, WakeOutcome
from hermitcrab.containers.materials.desk import MaterialsDesk
from hermitcrab.containers.runner import ContainerRunner
from hermitcrab.control.client import ControlClient
from hermitcrab.control.host import Containers, ControlledHost
from hermitcrab.control.methods import methods
from hermitcrab.control.server import serving
from hermitcrab.conversation.router import Router
from hermitcrab.errors import (
    BadInputError,
    ConflictError,
    EngineError,
    Failure,
    HermitcrabError,
    NotFoundError,
    StoreDamagedError,
)
from hermitcrab.groups.creation import ensure_first_group
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.container import Capabilities, Finding
from hermitcrab.model.ids import AgentGroupId, Generation, InstallationId, MessageId, SessionId
from hermitcrab.model.messages import Address, InboundRow, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import LimitSettings, Settings
from hermitcrab.store import sessions
from hermitcrab.store.database import Store

MAIN = Address(channel_type="terminal", platform_id="main")


class FakeContainers:
    """Knows one container at a time, which runs nothing."""

    def __init__(self) -> None:
        self.live: set[SessionId] = set()
        self.written: list[str] = []
        self.read = anyio.Event()
        self.offered: list[InboundRow] = []
        self.asked_for: list[Session] = []

    def admission(self) -> AdmissionView:
        return AdmissionView(budget_mb=4096, reserved_mb=256, running=1, running_at_most=64, starting=0, queued=0)

    def breakers(self) -> list[BreakerView]:
        return []

    def views(self) -> list[SessionView]:
        return [
            SessionView(
                session_id=each,
                phase="ready",
                generation=1,
                activity="idle",
                detail=None,
                container=f"crab-{each}",
                engine="fake",
                memory_bytes=12_000_000,
                workspace_bytes=None,
                unrealized=(),
                text="",
            )
            for each in self.live
        ]

    async def wake(self, session: Session) -> WakeOutcome:
        self.live.add(session.id)
        return WakeOutcome(kind="started")

    async def restart(self, session: Session, *, message: str | None = None, wake: bool = False) -> Restart:
        return Restart(session=session.id, had_container=False, phase="absent", starts=wake or message is not None)

    async def restart_group(
        self, group_id: AgentGroupId, *, message: str | None = None, wake: bool = False
    ) -> list[Restart | HermitcrabError]:
        raise NotImplementedError

    def interrupt(self, session_id: SessionId) -> bool:
        return session_id in self.live

    async def kill(self, session_id: SessionId, cause: str = "stopped") -> bool:
        known = session_id in self.live
        self.live.discard(session_id)
        return known

    async def ask(
        self, session_id: SessionId, subject: str, arguments: dict[str, Any], *, timeout_s: float
    ) -> dict[str, Any]:
        if session_id not in self.live:
            raise ConflictError(f"session {session_id} has no container")
        return {"subject": subject, **arguments}

    async def logs(self, session: Session, *, lines: int) -> list[str]:
        self.read.set()
        self.read = anyio.Event()
        return self.written[-lines:]

    async def certificates(self, session: Session) -> list[dict[str, Any]]:
        return [{"generation": 1, "cause": "quiet", "text": "It was quiet.", "ended_at": "2026-11-23T10:00:00Z"}]

    def timings(self, session_id: SessionId) -> Mapping[str, float]:
        return {"wake": 123.0}

    # What the router asks of it.

    @contextmanager
    def receiving(self, session_id: SessionId) -> Iterator[bool]:
        yield session_id in self.live

    async def offer(self, session: Session, row: InboundRow) -> None:
        self.offered.append(row)

    def request(self, session: Session) -> None:
        self.asked_for.append(session)


class FakeEngine:
    name = "fake"

    def __init__(self) -> None:
        self.problem: EngineError | None = None

    async def capabilities(self) -> Capabilities:
        if self.problem is not None:
            raise self.problem
        return Capabilities(
            engine="fake",
            version="1.0",
            unrealized={"cpus": "a fake has none"},
            strict_unrealized={"gvisor": "nor this"},
        )

    async def preflight(self) -> list[Finding]:
        return [Finding(subject="fake", level="ok", text="well")]


@dataclass
class FakeHost:
    home: Home
    settings: Settings
    installation: InstallationId
    store: Store
    mailboxes: Mailboxes
    engine: Engine
    runner: Containers
    terminal: TerminalChannel
    desk: MaterialsDesk
    stop_requested: anyio.Event = field(default_factory=anyio.Event)


@dataclass
class Scene:
    host: FakeHost
    client: ControlClient
    containers: FakeContainers
    engine: FakeEngine

    async def say(self, message_id: str = "term-1", text: str = "hello") -> tuple[Session, str]:
        sent = await self.client.call("chat.send", group="main", id=message_id, text=text)
        session_id = sent["heard_by"][0]["session"]
        found = await self.host.store.read(lambda connection: sessions.by_id(connection, session_id))
        assert found is not None
        return found, sent["heard_by"][0]["row"]

    async def answer(
        self, session: Session, row: str, *texts: str, turn: str = "t-1", failed: str | None = None
    ) -> None:
        outs = [
            OutboundRow(
                id=MessageId(f"out-{row}-{number}"),
                kind="chat",
                timestamp=datetime.now(UTC).isoformat(),
                content={"text": text},
                address=MAIN,
                in_reply_to=row,
            )
            for number, text in enumerate(texts)
        ]
        await self.host.mailboxes.run(session, lambda box: box.claim(turn, [MessageId(row)], Generation(1)))
        await self.host.mailboxes.run(session, lambda box: box.finish(turn, [MessageId(row)], outs, failed))


@asynccontextmanager
async def on_stage(path: Path) -> AsyncIterator[Scene]:
    home = Home(path / "home")
    home.prepare()
    settings = Settings(limits=LimitSettings(message_bytes=2048))
    containers, engine, terminal = FakeContainers(), FakeEngine(), TerminalChannel(most_bytes=2048)
    async with (
        Store.open(home.database) as store,
        Mailboxes(lambda session: home.sessions / session.id / "mailbox") as mailboxes,
    ):
        router = Router(
            store,
            mailboxes,
            cast("ContainerRunner", containers),
            message_bytes_at_most=2048,
            inbox_of=lambda session: home.path / session.id,
        )
        terminal.connect(router, on_attached=lambda _: None)
        await ensure_first_group(store)
        host = FakeHost(
            home=home,
            settings=settings,
            installation=InstallationId("0123456789ab"),
            store=store,
            mailboxes=mailboxes,
            engine=cast("Engine", engine),
            runner=containers,
            terminal=terminal,
            desk=MaterialsDesk(home, uid=os.geteuid(), gid=os.getegid()),
        )
        fits: ControlledHost = host
        async with serving(home.run, methods(fits)), ControlClient.connect(home) as client:
            yield Scene(host, client, containers, engine)


async def test_status_tells_of_the_host_its_engine_and_its_containers(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        session, _ = await scene.say()
        await scene.client.call("sessions.wake", session=session.id)
        status = await scene.client.call("status")
    assert status["engine"] == {
        "name": "fake",
        "available": True,
        "version": "1.0",
        "unrealized": {"cpus": "a fake has none"},
        "strict_unrealized": {"gvisor": "nor this"},
    }
    assert (status["groups"], status["sessions"], status["phases"]) == (1, 1, {"ready": 1})
    assert status["containers"][0]["session_id"] == session.id


async def test_status_says_that_the_engine_cannot_be_asked_instead_of_that_it_has_nothing(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        scene.engine.problem = EngineError(Failure.RUNTIME_UNAVAILABLE, "the engine is away", hint="start it")
        engine = (await scene.client.call("status"))["engine"]
    assert engine == {"name": "fake", "available": False, "problem": "the engine is away", "hint": "start it"}


async def test_a_session_whose_messages_cannot_be_read_is_told_until_it_is_mended(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        session, _ = await scene.say()
        mailboxes = scene.host.mailboxes
        await mailboxes.withhold(session.id, "so that it is closed")
        mailboxes.give_back(session.id)
        database = scene.host.home.sessions / session.id / "mailbox/inbound.db"
        whole = database.read_bytes()
        database.write_bytes(b"\0" * len(whole))
        with pytest.raises(StoreDamagedError, match="inbound") as caught:
            await scene.client.call("sessions.show", session=session.id)
        assert f"crab sessions check {session.id}" in caught.value.hint
        status, doctor = await scene.client.call("status"), await scene.client.call("doctor")
        assert "inbound.db" in status["damaged"][session.id]
        (finding,) = [each for each in doctor["findings"] if each["subject"] == f"session {session.id}"]
        assert "crab sessions check" in finding["fix"]
        listed = await scene.client.call("sessions.list")
        assert [each["phase"] for each in listed["sessions"]] == ["damaged"]
        database.write_bytes(whole)
        mailboxes.release(session.id)
        assert (await scene.client.call("sessions.show", session=session.id))["mailbox"]["pending"] == 1
        assert (await scene.client.call("status"))["damaged"] == {}


async def test_stop_asks_the_host_to_leave(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        await scene.client.call("stop")
        assert scene.host.stop_requested.is_set()


async def test_doctor_tells_whether_there_is_a_key_and_never_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "sk-ant-this-is-a-made-up-key-for-tests"
    async with on_stage(tmp_path) as scene:
        monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
        without = await scene.client.call("doctor")
        monkeypatch.setenv("ANTHROPIC_API_KEY", canary)
        with_key = await scene.client.call("doctor")
    assert without["key_problem"]["fix"]
    assert with_key["key_problem"] is None
    assert canary not in str(with_key)


async def test_groups_are_made_listed_and_shown(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        made = (await scene.client.call("groups.create", folder="ops", name="Operations", provider="echo"))["group"]
        listed = (await scene.client.call("groups.list"))["groups"]
        shown = await scene.client.call("groups.show", folder="ops")
    assert [each["folder"] for each in listed] == ["main", "ops"]
    assert made["name"] == "Operations"
    assert shown["wirings"][0]["chat"] == "terminal:ops"
    assert shown["destinations"][0]["channel_type"] == "terminal"
    assert shown["sessions"] == []


async def test_a_group_begins_with_its_memory_and_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        await scene.client.call("groups.create", folder="ops", memory="Be brief.")
        memory = scene.host.home.groups / "ops" / "CLAUDE.local.md"
        assert memory.read_text() == "Be brief."
        (scene.host.home.groups / "old").mkdir()
        (scene.host.home.groups / "old" / "CLAUDE.local.md").write_text("What it knows.")
        await scene.client.call("groups.create", folder="old", memory="Be brief.")
        assert (scene.host.home.groups / "old" / "CLAUDE.local.md").read_text() == "What it knows."
        for bad in ("a\0b", "x" * 70_000, 5):
            with pytest.raises(BadInputError):
                await scene.client.call("groups.create", folder="bad", memory=bad)
        assert not (scene.host.home.groups / "bad").exists()


@pytest.mark.parametrize("folder", ["Main", "..", "a/b", "global", "", "x" * 64])
async def test_a_group_with_an_unsafe_name_is_refused(tmp_path: Path, folder: str) -> None:
    async with on_stage(tmp_path) as scene:
        with pytest.raises(BadInputError):
            await scene.client.call("groups.create", folder=folder)
        assert len((await scene.client.call("groups.list"))["groups"]) == 1


async def test_a_group_that_exists_is_not_made_again(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        with pytest.raises(ConflictError):
            await scene.client.call("groups.create", folder="main")


async def test_what_is_not_there_is_named_with_where_to_look(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        for method, params in (
            ("groups.show", {"folder": "nobody"}),
            ("sessions.show", {"session": "nobody"}),
            ("logs", {"session": "nobody"}),
            ("chat.send", {"group": "nobody", "id": "1", "text": "x"}),
        ):
            with pytest.raises(NotFoundError, match="nobody") as raised:
                await scene.client.call(method, **params)
            assert raised.value.hint


async def test_sessions_are_listed_newest_first_in_pages(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        for name in ("a", "b", "c"):
            await scene.client.call("groups.create", folder=name)
            await scene.client.call("chat.send", group=name, id="1", text="hello")
        first = await scene.client.call("sessions.list", limit=2)
        rest = await scene.client.call("sessions.list", limit=2, before=first["next_before"])
        only_b = await scene.client.call("sessions.list", group="b")
    assert {each["group"] for each in first["sessions"] + rest["sessions"]} == {"a", "b", "c"}
    assert rest["next_before"] is None
    assert [each["chat"] for each in only_b["sessions"]] == ["terminal:b"]


async def test_a_session_is_shown_by_its_id_or_as_the_newest_of_its_group(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        session, _ = await scene.say()
        by_id = await scene.client.call("sessions.show", session=session.id)
        by_group = await scene.client.call("sessions.show", session="main")
    assert by_id == by_group
    assert by_id["mailbox"]["pending"] == 1
    assert by_id["timings_ms"] == {"wake": 123.0}
    assert by_id["certificates"][0]["cause"] == "quiet"


async def test_a_container_is_woken_asked_and_stopped(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        session, _ = await scene.say()
        with pytest.raises(ConflictError, match="no container"):
            await scene.client.call("session.ask", session=session.id, subject="evidence")
        assert (await scene.client.call("sessions.wake", session=session.id))["kind"] == "started"
        asked = await scene.client.call(
            "session.ask", session=session.id, subject="evidence", arguments={"host_pid": 1}
        )
        assert asked == {"answer": {"subject": "evidence", "host_pid": 1}}
        assert await scene.client.call("sessions.stop", session=session.id) == {"stopped": True}
        assert await scene.client.call("sessions.stop", session=session.id) == {"stopped": False}


async def test_logs_are_the_last_lines_and_then_what_is_added(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        session, _ = await scene.say()
        scene.containers.written = ["one", "two", "three"]
        last = [event["line"] async for event in scene.client.stream("logs", session=session.id, lines=2)]
        assert last == ["two", "three"]
        async with aclosing(scene.client.stream("logs", session=session.id, lines=1, follow=True)) as events:
            assert (await anext(events))["line"] == "three"
            scene.containers.written = ["one", "two", "three", "four", "five"]
            assert [(await anext(events))["line"] for _ in range(2)] == ["four", "five"]


async def test_a_message_is_on_disk_when_send_returns_and_once_however_often_it_is_sent(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        session, row = await scene.say("term-1", "hello")
        again = await scene.client.call("chat.send", group="main", id="term-1", text="hello")
        assert again["repeat"]
        assert again["heard_by"] == [{"session": session.id, "row": row}]
        stored = await scene.host.mailboxes.run(session, lambda box: box.history(None, 10))
        assert [each.content["text"] for each in stored] == ["hello"]
        assert len(scene.containers.offered) == 1


@pytest.mark.parametrize("text", ["a\0b", "x" * 3000, " "])
async def test_a_message_that_is_refused_leaves_nothing_behind(tmp_path: Path, text: str) -> None:
    async with on_stage(tmp_path) as scene:
        with pytest.raises(BadInputError):
            await scene.client.call("chat.send", group="main", id="term-1", text=text)
        assert (await scene.client.call("sessions.list"))["sessions"] == []


async def test_answers_are_complete_when_the_message_has_ended(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        session, row = await scene.say()
        waiting = await scene.client.call("chat.answers", session=session.id, row=row)
        assert (waiting["ended"], waiting["outs"]) == (False, [])
        await scene.answer(session, row, "first", "second")
        done = await scene.client.call("chat.answers", session=session.id, row=row)
    assert (done["ended"], done["status"]) == (True, "completed")
    assert [out["content"]["text"] for out in done["outs"]] == ["first", "second"]
    assert [out["delivery"] for out in done["outs"]] == ["queued", "queued"]


async def test_a_message_answered_together_with_another_finds_the_answer(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        session, first = await scene.say("term-1")
        _, second = await scene.say("term-2")
        box = scene.host.mailboxes
        await scene.answer(session, first, "to both")
        await box.run(session, lambda mailbox: mailbox.finish("t-1", [MessageId(second)], [], None))
        found = await scene.client.call("chat.answers", session=session.id, row=second)
    assert [out["content"]["text"] for out in found["outs"]] == ["to both"]


async def test_answers_are_found_behind_a_long_history(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        session, row = await scene.say("term-0")
        await scene.answer(session, row, "the oldest")
        for number in range(1, 80):
            _, later = await scene.say(f"term-{number}")
            await scene.answer(session, later, "later", turn=f"t-{number}")
        found = await scene.client.call("chat.answers", session=session.id, row=row)
    assert [out["content"]["text"] for out in found["outs"]] == ["the oldest"]


async def test_a_delivery_reaches_the_attached_client_and_its_word_ends_it(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene, aclosing(scene.client.stream("chat.attach", group="main")) as events:
        attached = await anext(events)
        assert attached["message_bytes"] == 2048
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                scene.host.terminal.deliver, Delivery(key="out-1", address=MAIN, kind="chat", content={"text": "hi"})
            )
            event = await anext(events)
            assert (event["kind"], event["key"], event["content"]) == ("message", "out-1", {"text": "hi"})
            answer = await scene.client.call("chat.ack", attachment=attached["attachment"], key="out-1")
            assert answer == {"acknowledged": True}


async def test_a_client_that_goes_is_not_at_the_terminal_any_more(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as scene:
        async with aclosing(scene.client.stream("chat.attach", group="main")) as events:
            await anext(events)
            assert scene.host.terminal.attached("main") == 1
        await scene.client.call("status")  # The cancellation was sent before this.
        while scene.host.terminal.attached("main"):
            await anyio.lowlevel.checkpoint()
