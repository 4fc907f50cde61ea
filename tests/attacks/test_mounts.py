"""Family B, additional mounts: whoever renames folders, hides secrets in them or cannot write gets no container."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from hermitcrab.app import Host
from hermitcrab.containers.lifecycle import starting
from hermitcrab.errors import Failure
from hermitcrab.model.container import Hardening
from hermitcrab.model.container_config import AdditionalMount, ContainerConfig
from hermitcrab.model.messages import Address
from hermitcrab.store import container_configs
from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab.testing.intruder import Intruder, intrude
from hermitcrab.testing.scratch import CHANNEL, RecordingChannel, host_on, say

every_engine = pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])
SECRET = "the key to everything"


@dataclass(slots=True)
class Yard:
    """An operator's folders on the host, and a host whose allow-list opens them."""

    base: Path
    host: Host
    channel: RecordingChannel
    intruder: Intruder

    @property
    def code(self) -> Path:
        return self.base / "projects/code"

    @property
    def keys(self) -> Path:
        return self.base / "keys"

    async def ask_for(self, *mounts: AdditionalMount, hardening: Hardening = "standard") -> None:
        config = ContainerConfig(provider="echo", additional_mounts=mounts, hardening=hardening)
        group = self.intruder.group.id
        await self.host.store.write(lambda connection: container_configs.put(connection, group, config))

    async def told(self, text: str) -> str:
        """What the chat is told, once it is told something with that text."""
        with anyio.fail_after(DEADLINE_S):
            while True:
                for _, delivery in self.channel.delivered.values():
                    if text in str(delivery.content):
                        return str(delivery.content["text"])
                await self.channel.next_delivery()


@asynccontextmanager
async def yard_on(engine: str, options: dict[str, Any], folder: Path, *, root: str = ".") -> AsyncIterator[Yard]:
    base = folder.resolve()  # noqa: ASYNC240
    base.chmod(0o755)
    for each in (base / "projects/code", base / "keys"):
        each.mkdir(parents=True)
    (base / "projects/code/file").write_text("plain")
    (base / "keys/file").write_text(SECRET)
    async with host_on(base / "home", engine, **options) as (host, channel):
        host.home.mounts_file.write_text(
            f"[[roots]]\npath = {json.dumps(str((base / root).resolve()))}\nwrite = true\n"
        )
        host.home.mounts_file.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(base / "projects/code", host.starter.uid, host.starter.gid)
        yield Yard(base, host, channel, await intrude(host, "chat"))


LOOK = """
found = {}
for name in sorted(os.listdir("/workspace/extra")):
    place = "/workspace/extra/" + name
    read = attempt(open, place + "/file")
    found[name] = [open(place + "/file").read() if read == "done" else read, attempt(write, place + "/new")]
answer(found)
"""


@every_engine
async def test_a_mount_is_what_the_allow_list_says_and_nothing_more(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with yard_on(engine, options, tmp_path, root="projects") as yard:
        await yard.ask_for(
            AdditionalMount(host_path=str(yard.code)),
            AdditionalMount(host_path=str(yard.code), name="mine", read_only=False),
            AdditionalMount(host_path=str(yard.keys)),
        )
        found = await yard.intruder.ask(LOOK)
        assert found == {"code": ["plain", "EROFS"], "mine": ["plain", "done"]}
        assert (yard.code / "new").exists()
        assert (
            await yard.intruder.ask(
                "answer([attempt(write, '/workspace/extra/x'), attempt(os.mkdir, '/workspace/extra/y')])"
            )
            == ["EROFS"] * 2
        )
        # Under `strict` nothing additional is written, whatever the allow-list says.
        await yard.ask_for(AdditionalMount(host_path=str(yard.code), read_only=False), hardening="strict")
        assert await yard.intruder.ask(LOOK) == {"code": ["plain", "EROFS"]}


@every_engine
async def test_a_root_that_holds_secrets_gives_none_of_them(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with yard_on(engine, options, tmp_path) as yard:
        monkeypatch.setenv("HOME", str(yard.base / "projects"))
        (yard.base / "projects/.ssh").mkdir()
        (yard.base / "shop").mkdir()
        (yard.base / "shop/link").symlink_to(yard.host.home.path)
        asked = [
            yard.base,  # It contains the home.
            yard.host.home.path,
            yard.host.home.sessions,
            yard.host.home.database,
            yard.intruder.folders.root,
            yard.base / "projects",  # It contains .ssh.
            yard.base / "projects/.ssh",
            yard.base / "shop/link",
            Path("/run"),
            Path("/var/lib/docker"),
            Path("/"),
        ]
        await yard.ask_for(*(AdditionalMount(host_path=str(each), name=f"m{n}") for n, each in enumerate(asked)))
        assert await yard.intruder.ask(LOOK) == {}


@contextmanager
def renaming(place: Path, *others: Path) -> Iterator[None]:
    """`place` is by turns what it was and each of the others, as fast as renames go."""
    stop = threading.Event()
    parked = place.with_name("parked")

    def move(one: Path, to: Path) -> None:
        while True:
            try:
                one.rename(to)
            except OSError:
                with suppress(OSError):
                    to.rmdir()  # Podman makes a folder where it finds none.
            else:
                return

    def swap() -> None:
        while not stop.is_set():
            for other in others:
                move(place, parked)
                move(other, place)
                move(place, other)
                move(parked, place)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@every_engine
async def test_a_loop_of_renames_never_leads_a_container_to_something_else(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with yard_on(engine, options, tmp_path) as yard:
        (yard.base / "projects/link").symlink_to(yard.keys)
        (yard.base / "projects/other").mkdir()
        (yard.base / "projects/other/file").write_text("plain, and of the other folder")
        await yard.ask_for(AdditionalMount(host_path=str(yard.code)))
        seen: list[str] = []
        admitted = starting.Starter.await_hello

        async def looking(starter: starting.Starter, slot: Any) -> None:
            """What the container has there, once it was let in: what was allowed, and nobody ever to the secret.

            The other folder lies at the place long enough to be allowed there, when renames have to wait for the disk.
            """
            await admitted(starter, slot)
            view = await yard.host.engine.inspect(slot.name)
            assert view is not None
            place = anyio.Path(f"/proc/{view.pid}/root/workspace/extra/code")
            (decision,) = slot.decisions
            assert await place.exists() == decision.allowed
            if decision.allowed:
                found = await place.stat()
                assert (found.st_dev, found.st_ino) == decision.chain[-1]
                seen.append(await (place / "file").read_text())

        monkeypatch.setattr(starting.Starter, "await_hello", looking)
        with renaming(yard.code, yard.base / "projects/link", yard.base / "projects/other"):
            kinds = set()
            for _ in range(12 if engine == "bubblewrap" else 5):
                outcome = await yard.host.runner.wake(yard.intruder.session)
                kinds.add((outcome.kind, outcome.failure))
                await yard.host.runner.kill(yard.intruder.session.id)
        assert SECRET not in seen
        failures = {failure for _, failure in kinds if failure is not None}
        assert failures <= {Failure.DENIED_BY_POLICY, Failure.SPEC_INVALID, Failure.UNKNOWN, Failure.STARTED_THEN_DIED}
        assert [view for view in await yard.host.engine.containers() if view.pid is not None] == []


@every_engine
@pytest.mark.parametrize("moment", ["create", "start"])
async def test_a_folder_that_is_swapped_before_the_start_costs_the_container_and_is_told(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    async with yard_on(engine, options, tmp_path) as yard:
        await yard.ask_for(AdditionalMount(host_path=str(yard.code)))
        act = getattr(yard.host.engine, moment)

        async def swapped(argument: Any) -> None:
            if moment == "create":  # The engine has it, and then somebody renames.
                await act(argument)
            if yard.keys.exists():
                yard.code.rename(yard.base / "moved")
                yard.keys.rename(yard.code)
            if moment == "start":  # Too late for every look that comes before.
                await act(argument)

        monkeypatch.setattr(yard.host.engine, moment, swapped)
        receipt = await say(yard.host, Address(channel_type=CHANNEL, platform_id="chat"), "one", "hello")
        told = await yard.told("changed after it was allowed")
        assert str(yard.code) in told
        assert "Your message is kept." in told
        assert await yard.host.engine.containers() == []
        session = await yard.host.starter.reread(receipt.session_ids[0])
        (certificate, *_) = await yard.host.runner.certificates(session)
        assert certificate["cause"] == "start-failed"
        assert "changed after it was allowed" in certificate["text"]
        assert all(SECRET not in str(delivery.content) for _, delivery in yard.channel.delivered.values())


@every_engine
async def test_what_the_containers_user_cannot_write_is_said_before_any_message_is_lost(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("an ordinary user's container writes as that user")
    async with yard_on(engine, options, tmp_path) as yard:
        os.chown(yard.code, 0, 0)
        await yard.ask_for(AdditionalMount(host_path=str(yard.code), read_only=False))
        receipt = await say(yard.host, Address(channel_type=CHANNEL, platform_id="chat"), "one", "hello")
        told = await yard.told("cannot write to")
        uid, gid = yard.host.starter.uid, yard.host.starter.gid
        assert f"/workspace/extra/code (EACCES), which is {yard.code} on the host" in told
        assert f"chown {uid}:{gid} {yard.code}, or make the mount read-only" in told
        assert await yard.host.engine.containers() == []
        # Put right, the same message is answered.
        os.chown(yard.code, uid, gid)
        session = await yard.host.starter.reread(receipt.session_ids[0])
        assert (await yard.host.runner.wake(session)).kind == "started"
        assert (await yard.channel.answer_to(receipt.row_ids[0]))[1].content["text"] == "Echo: hello"
        assert [each.name for each in yard.code.iterdir()] == ["file"]  # The probe left nothing.


async def test_a_broken_allow_list_mounts_nothing_and_stops_nobody(
    need_engine: Callable[[str], object], tmp_path: Path
) -> None:
    need_engine("bubblewrap")
    async with yard_on("bubblewrap", {}, tmp_path) as yard:
        await yard.ask_for(AdditionalMount(host_path=str(yard.code)))
        yard.host.home.mounts_file.write_text("[[roots]]\npaht = 'x'\n")
        assert await yard.intruder.ask(LOOK) == {}
