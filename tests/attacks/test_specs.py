"""Family A: names, labels, arguments and images that somebody chose to reach beyond a container's spec."""

from __future__ import annotations

import json
import re
import string
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.app import Host
from hermitcrab.containers.engine import Engine, EngineOptions
from hermitcrab.containers.engines.bubblewrap import BubblewrapEngine
from hermitcrab.containers.engines.docker import docker_engine, podman_engine
from hermitcrab.containers.engines.docker_api import EngineApi
from hermitcrab.errors import BadInputError, EngineError, Failure
from hermitcrab.groups.creation import create_group
from hermitcrab.logic.spec import container_name
from hermitcrab.logic.spec_check import NAME
from hermitcrab.model.container import ContainerStatus
from hermitcrab.model.ids import AgentGroupId, InstallationId, SessionId
from hermitcrab.model.messages import Address, ChannelMessage
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.store import messaging_groups
from hermitcrab.store.database import Store
from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab.testing.foreign_images import foreign_image
from hermitcrab.testing.intruder import add_session, intrude, take_over
from hermitcrab.testing.scratch import RecordingChannel, add_chat, host_on, say, session_of
from hermitcrab.testing.scripted_model import fail, scripted_model

OPENERS: dict[str, Callable[[EngineOptions], Engine]] = {
    "bubblewrap": BubblewrapEngine,
    "docker": docker_engine,
    "podman": podman_engine,
}
RUNS = "time.sleep(600)"
CANARY = "sk-ant-api03-CANARY-of-the-specs-0123456789"  # made up; opens nothing

HOSTILE_NAMES = [
    "--privileged",
    "-v/:/h",
    "-",
    "a b",
    "a;id",
    "a\nb",
    "a\n",
    "a\0b",
    "a" * 300,
    "..",
    ".",
    "../other",
    "a/b",
    "/etc",
    "a\\b",
    "$(id)",
    "`id`",
    "'",
    "",
    " ",
    "\u0430dmin",  # a Cyrillic letter that looks like a Latin one
    "ma\u0131n",
    "A",
    "\u202egnp",
    "global",
    "\ud800",
]

every_engine = pytest.mark.parametrize("engine", [*OPENERS])


async def until(question: Callable[[], Awaitable[Any]]) -> Any:
    """The first answer that is not empty: for what happens in an engine and tells nobody here."""
    with anyio.fail_after(DEADLINE_S):
        while not (found := await question()):  # noqa: ASYNC110
            await anyio.sleep(0.02)
    return found


@asynccontextmanager
async def another_installation(
    engine: str, options: dict[str, Any], folder: Path
) -> AsyncIterator[tuple[Engine, InstallationId]]:
    """The same engine, used by somebody else; what is made through it is removed at the end."""
    installation = InstallationId(f"s{uuid.uuid4().hex[:8]}")
    socket = options.get(f"{engine}_socket")
    stranger = OPENERS[engine](EngineOptions(installation=installation, folder=folder, socket=socket))
    try:
        yield stranger, installation
    finally:
        for view in await stranger.containers():
            await stranger.remove(view.name)
        await stranger.aclose()


def everything_in(folder: Path) -> list[str]:
    return sorted(str(each) for each in folder.rglob("*"))


class TestNames:
    """Lines 1 and 2. Nothing is started for these: what is refused is refused before."""

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    async def test_a_groups_name_that_could_mean_more_is_refused(self, tmp_path: Path, name: str) -> None:
        home = Home(tmp_path / "home")
        home.prepare()
        async with Store.open(home.database) as store:
            before = everything_in(tmp_path)
            with pytest.raises(BadInputError):
                await create_group(store, folder=name)
            assert everything_in(tmp_path) == before

    async def test_what_is_shown_of_a_group_is_text_and_nothing_else(
        self, engine: str, options: dict[str, Any], tmp_path: Path
    ) -> None:
        shown = '"},"x":"\n--privileged\nroot:x:0:0::/:/bin/sh\n@/etc/passwd'
        async with host_on(tmp_path / "home", engine, **options) as (host, _):
            intruder = await intrude(host, "chat")
            intruder.group = replace(intruder.group, name=shown)
            spec = await intruder.spec(RUNS)
            assert shown not in json.dumps([spec.argv, dict(spec.env), spec.labels], ensure_ascii=False)
            (generated,) = (host.home.generated / intruder.group.id).iterdir()
            assert json.loads((generated / "container.json").read_text())["groupName"] == shown
            assert "--privileged" not in (generated / "CLAUDE.md").read_text()
            assert "/:/bin/sh" not in (generated / "passwd").read_text()

    @pytest.mark.parametrize("session_id", [name for name in HOSTILE_NAMES if name and name != "\ud800"])
    async def test_a_session_that_nobody_made_has_no_container_and_no_folder(
        self, engine: str, options: dict[str, Any], tmp_path: Path, session_id: str
    ) -> None:
        async with host_on(tmp_path / "home", engine, **options) as (host, _):
            made_up = Session(id=SessionId(session_id), agent_group_id=AgentGroupId("../.."), messaging_group_id=None)
            assert (await host.runner.wake(made_up)).kind == "failed"
            assert await host.runner.kill(made_up.id) is False
            assert await host.engine.containers() == []
            assert list(host.home.sessions.iterdir()) == []

    async def test_what_a_platform_calls_its_threads_names_nothing_of_ours(
        self, engine: str, options: dict[str, Any], tmp_path: Path
    ) -> None:
        async with host_on(tmp_path / "home", engine, **options) as (host, _):
            group, address = await add_chat(host, "chat")

            def as_a_room(connection: Any) -> None:
                chat = messaging_groups.by_address(connection, address)
                assert chat is not None
                connection.execute("UPDATE messaging_groups SET is_group = 1 WHERE id = ?", (chat.id,))

            await host.store.write(as_a_room)
            thread = replace(address, thread_id="../../--x;id\n")
            now = "2026-01-01T00:00:00.000Z"
            message = ChannelMessage(id="../../one", address=thread, content={"text": "x"}, timestamp=now)
            receipt = await host.router.receive(message)
            (session_id,) = receipt.session_ids
            assert re.fullmatch(r"sess-[0-9]+-[0-9a-f]{10}", session_id)
            assert [each.name for each in (host.home.sessions / group.id).iterdir()] == [session_id]

    @pytest.fixture
    def engine(self) -> str:
        return "bubblewrap"


@given(st.text(max_size=100), st.text(max_size=100))
def test_every_session_has_a_name_of_its_own_that_every_engine_takes(one: str, other: str) -> None:
    try:
        names = [container_name(InstallationId("i1"), SessionId(each)) for each in (one, other)]
    except UnicodeEncodeError:
        return  # Half a character: no store would keep such an id.
    for name in names:
        assert NAME.fullmatch(name)
        assert len(name) <= 63
    assert (names[0] == names[1]) == (one == other)


@given(st.text(string.ascii_letters + string.digits + "-_", min_size=60, max_size=90))
def test_names_that_are_cut_or_folded_stay_distinct(long: str) -> None:
    ids = {long, long.lower(), long.upper(), long + "a", long[:-1], long.replace("-", "_")}
    assert len({container_name(InstallationId("i1"), SessionId(each)) for each in ids}) == len(ids)


@every_engine
async def test_sessions_whose_ids_look_alike_run_side_by_side(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (host, _):
        group, _ = await add_chat(host, "chat")
        tail = "x" * 80
        ids = {f"sess-chat-{thread}{tail}" for thread in ("a", "A", "_", ".")}
        for each in ids:
            await add_session(host, group, "chat", thread=each.removeprefix("sess-chat-"))
        async with anyio.create_task_group() as tasks:
            for each in ids:
                tasks.start_soon(host.runner.wake, await session_of(host, each))
        found = await host.engine.containers()
        assert {view.session for view in found} == ids
        assert len({view.name for view in found}) == len(ids)


@every_engine
async def test_a_foreign_container_under_our_name_is_neither_taken_over_nor_removed(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (host, channel):
        intruder = await intrude(host, "chat")
        async with another_installation(engine, options, host.home.engine_folder(engine)) as (stranger, installation):
            theirs = replace(await intruder.spec(RUNS), installation=installation)
            await stranger.create(theirs)
            await stranger.start(theirs.name)
            before = await stranger.inspect(theirs.name)
            outcome = await host.runner.wake(intruder.session)
            assert (outcome.kind, outcome.failure) == ("failed", Failure.NAME_IN_USE)
            assert await host.engine.containers() == []
            assert await stranger.inspect(theirs.name) == before
            for act in (host.engine.remove, host.engine.freeze, lambda name: host.engine.stop(name, grace_s=0)):
                with pytest.raises(EngineError):
                    await act(theirs.name)
            assert await stranger.inspect(theirs.name) == before
        # With it out of the way the session starts, as if nothing had been.
        assert await answered(channel, await say_in(host, "chat")) == "Echo: hello"


@every_engine
async def test_a_second_installation_sees_and_ends_nothing_of_the_first(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "first", engine, **options) as (first, _):
        mine = await intrude(first, "chat")
        assert (await first.runner.wake(mine.session)).kind == "started"
        (before,) = await first.engine.containers()
        async with host_on(tmp_path / "second", engine, **options) as (second, _):
            # The same session id there, which only the installation tells apart.
            theirs = await intrude(second, "chat")
            assert theirs.name != mine.name
            assert second.reconciled.adopted == second.reconciled.removed == 0
            assert (await second.runner.wake(theirs.session)).kind == "started"
            assert [view.name for view in await second.engine.containers()] == [theirs.name]
            if engine == "bubblewrap":  # The second one's folder knows nothing of the first's at all.
                await second.engine.remove(mine.name)
            else:
                with pytest.raises(EngineError) as caught:
                    await second.engine.remove(mine.name)
                assert caught.value.failure is Failure.NAME_IN_USE
        assert await first.engine.containers() == [before]
        assert before.status is ContainerStatus.RUNNING


USES_THE_KEY = """
link = socket.socket(socket.AF_UNIX)
link.connect("/run/hermitcrab/gateway.sock")
link.sendall(b"POST /anthropic/v1/messages HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}")
while data := link.recv(65536):
    print(data.decode(errors="replace"), flush=True)
print(dict(os.environ), open("/proc/self/cmdline").read(), flush=True)
for folder, _, files in os.walk("/run/hermitcrab"):
    print(folder, files, flush=True)
while not os.path.exists("/workspace/go"):
    time.sleep(0.01)
sys.exit("ended with whatever it knew")
"""


def holders_of(secret: str, folder: Path) -> list[Path]:
    """Files below the folder that have it in them."""
    needle = secret.encode()
    return [each for each in folder.rglob("*") if each.is_file() and needle in each.read_bytes()]


def command_lines() -> bytes:
    """Of every process of this machine."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(each.read_bytes())
        except OSError:
            continue
    return b"\n".join(found)


@every_engine
async def test_the_key_is_used_and_is_nowhere(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERMITCRAB_TEST_CANARY", CANARY)
    with structlog.testing.capture_logs() as logged:
        async with scripted_model(lambda _: fail(401, f"{CANARY} is not a good key")) as model:
            overrides = {
                "gateway.anthropic_upstream": model.url,
                "gateway.anthropic_key": "env:HERMITCRAB_TEST_CANARY",
            }
            async with host_on(tmp_path / "home", engine, overrides, **options) as (host, channel):
                group, address = await add_chat(host, "chat")
                take_over(monkeypatch, host, USES_THE_KEY)
                receipt = await say(host, address, "one", "use your key")
                session = await session_of(host, receipt.session_ids[0])

                async def running() -> Any:
                    views = await host.engine.containers()
                    said = await host.engine.logs(views[0].name, lines=1000) if views else []
                    return views if any("/run/hermitcrab [" in line for line in said) else None

                (view,) = await until(running)
                assert model.requests[0].headers["x-api-key"] == CANARY
                told = json.dumps([repr(view), await host.engine.logs(view.name, lines=1000)])
                if engine != "bubblewrap":
                    api = EngineApi(engine, options[f"{engine}_socket"])  # type: ignore[arg-type]
                    told += json.dumps(await api.request("GET", f"/containers/{view.name}/json", doing="look"))
                    await api.aclose()
                assert view.pid is not None
                environment = await anyio.Path(f"/proc/{view.pid}/environ").read_bytes()
                assert CANARY not in told
                assert CANARY.encode() not in environment
                assert CANARY.encode() not in await to_thread.run_sync(command_lines)
                await anyio.Path(host.home.sessions / group.id / session.id / "work/go").touch()
                (certificate, *_) = await until(lambda: host.runner.certificates(session))
                assert any("ended with whatever" in line for line in certificate["log"])
                assert CANARY not in json.dumps(certificate)
            assert await to_thread.run_sync(holders_of, CANARY, tmp_path) == []
    assert logged
    assert CANARY not in repr(logged)
    assert CANARY not in repr(channel.delivered)


@pytest.fixture
async def hostile_image(engine: str, options: dict[str, Any]) -> AsyncIterator[str]:
    tag = f"hermitcrab-test-hostile:{uuid.uuid4().hex[:8]}"
    async with foreign_image(engine, options[f"{engine}_socket"], tag=tag, base=options["image"]):  # type: ignore[arg-type]
        yield tag


LOOKS_AROUND = """
answer({
    "uid": os.getuid(), "pid": os.getpid(), "cwd": os.getcwd(), "session": os.environ["HERMITCRAB_LINK"],
    "data": attempt(write, "/data/x"), "root": attempt(write, "/x"),
})
"""


@pytest.mark.parametrize("engine", ["docker", "podman"])
async def test_a_hostile_image_decides_nothing(
    engine: str, options: dict[str, Any], tmp_path: Path, hostile_image: str
) -> None:
    # It ends by itself when it is told to, however late it has its turn.
    patient = {"stop_grace_s": 60, "image": hostile_image}
    async with host_on(tmp_path / "home", engine, **{**options, **patient}) as (host, channel):
        intruder = await intrude(host, "chat")
        found = await intruder.ask(LOOKS_AROUND)
        assert found == {
            "uid": host.starter.uid,
            "pid": 1,
            "cwd": "/workspace/agent",
            "session": "/run/hermitcrab/link.sock",
            "data": "EROFS",
            "root": "EROFS",
        }
        # The runner itself answers from it, and nothing of the image's own ever ran.
        assert await answered(channel, await say_in(host, "chat")) == "Echo: hello"
        (view,) = await host.engine.containers()
        assert view.session == intruder.session.id
        notes = host.home.groups / intruder.group.folder
        assert {each.name for each in notes.iterdir()} & {"entered", "commanded", "healthy"} == set()
        await host.runner.kill(intruder.session.id)
        assert (await host.runner.certificates(intruder.session))[-1]["exit_code"] == 0


@pytest.mark.parametrize("engine", ["docker", "podman"])
async def test_a_tag_that_is_moved_after_the_look_at_it_changes_nothing(
    engine: str, options: dict[str, Any], tmp_path: Path, hostile_image: str
) -> None:
    tag = f"hermitcrab-test-moved:{uuid.uuid4().hex[:8]}"
    repository, _, version = tag.partition(":")
    api = EngineApi(engine, options[f"{engine}_socket"])  # type: ignore[arg-type]

    async def point_at(image: str) -> str:
        params = {"repo": repository, "tag": version}
        await api.read("POST", f"/images/{image}/tag", doing="move the tag", params=params)
        found = await api.request("GET", f"/images/{image}/json", doing="look")
        return str(found["Id"]).removeprefix("sha256:")

    try:
        honest = await point_at(options["image"])
        async with host_on(tmp_path / "home", engine, **{**options, "image": tag}) as (host, _):
            intruder = await intrude(host, "chat")
            spec = await intruder.spec(RUNS)
            assert await point_at(hostile_image) != honest
            await host.engine.create(spec)
            made = await api.request("GET", f"/containers/{spec.name}/json", doing="look")
            assert str(made["Image"]).removeprefix("sha256:") == honest
            await host.engine.remove(spec.name)
    finally:
        await api.request("DELETE", f"/images/{tag}", doing="remove the tag", params={"force": "true"})
        await api.aclose()


async def say_in(host: Host, chat: str) -> str:
    receipt = await say(host, Address(channel_type="recording", platform_id=chat), "one", "hello")
    return str(receipt.row_ids[0])


async def answered(channel: RecordingChannel, row_id: str) -> str:
    _, delivery = await channel.answer_to(row_id)
    return str(delivery.content["text"])


async def test_nothing_of_ours_lies_in_the_shared_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need_engine: Callable[[str], object]
) -> None:
    """Whoever else is on the machine could have put something there before, under a name that is easy to guess."""
    need_engine("bubblewrap")
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    monkeypatch.setenv("TMPDIR", str(shared))
    made: list[str] = []
    real = tempfile.mkdtemp

    def noted(suffix: str | None = None, prefix: str | None = None, dir: str | None = None) -> str:  # noqa: A002
        if dir is None:
            made.append(str(prefix))
        return real(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkdtemp", noted)
    async with host_on(tmp_path / "home", "bubblewrap") as (host, channel):
        _, address = await add_chat(host, "chat")
        receipt = await say(host, address, "one", "hello")
        await channel.answer_to(receipt.row_ids[0])
        assert list(shared.iterdir()) == []
    assert list(shared.iterdir()) == []
    assert made == [], "not even for a moment"
