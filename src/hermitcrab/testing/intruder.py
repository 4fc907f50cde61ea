"""Programs of a test's own in exactly the containers that sessions have: how an attack is tried from inside.

Everything around the program is the host's own work: folders, sockets, mounts, limits. Only the command is another.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from hermitcrab.app import Host
from hermitcrab.containers.lifecycle.slot import Slot
from hermitcrab.containers.link.exchange import Outward
from hermitcrab.containers.materials.desk import SessionFolders, session_folders
from hermitcrab.logic.lifecycle import Life, Phase
from hermitcrab.logic.spec import container_name
from hermitcrab.model.container import ContainerSpec, ContainerView
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import Generation, MessagingGroupId, SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.store import sessions
from hermitcrab.testing.engine_harness import Ends
from hermitcrab.testing.scratch import add_chat

TOOLS = '''
import ctypes, errno, json, os, signal, socket, stat, subprocess, sys, threading, time

def attempt(action, *arguments, **named):
    """ "done", or the name of the error that it was refused with."""
    try:
        action(*arguments, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"

def write(path, data=b"x"):
    with open(path, "wb") as file:
        file.write(data)

def answer(value):
    print("answer", json.dumps(value), flush=True)

'''
"""What every program of an intruder begins with."""

LIAR = """
from hermitcrab_wire import codec, frames

def dial():
    made = socket.socket(socket.AF_UNIX)
    made.connect("/run/hermitcrab/link.sock")
    return made

def tell(frame, link=None):
    (link or first).sendall(codec.encode(frame.to_json()))

def greeting(**lies):
    told = {"protocol": 1, "generation": int(os.environ["HERMITCRAB_GENERATION"]), "provider": "echo", "version": "x",
            "writable": os.environ["HERMITCRAB_WRITABLE"].split(":")}
    return frames.Hello(**{**told, **lies})

first = dial()
tell(greeting())
threading.Thread(target=lambda: [None for _ in iter(lambda: first.recv(65536), b"")], daemon=True).start()
"""
"""Is greeted as a runner is, and hears nothing of what it is told."""

GENERATION = Generation(1)


@dataclass(slots=True)
class Intruder:
    """One session, and what may be tried in containers of it. Nothing else wakes it."""

    host: Host
    session: Session
    group: AgentGroup

    @property
    def folders(self) -> SessionFolders:
        return session_folders(self.host.home, self.session)

    @property
    def name(self) -> str:
        """Of its containers."""
        return container_name(self.host.installation, self.session.id)

    async def spec(self, program: str) -> ContainerSpec:
        """The session's real spec, but for the program that it runs."""
        return with_program(await self.host.starter.prepare(self._slot(), GENERATION), program)

    async def launch(self, program: str) -> None:
        """Start a container with it and leave it running."""
        spec = await self.spec(program)
        await self.host.engine.create(spec)
        await self.host.engine.start(spec.name)

    async def run(self, program: str) -> tuple[ContainerView, list[str]]:
        """Run it to its end, and remove the container: how it ended, and what it wrote."""
        engine = self.host.engine
        async with Ends(engine) as ends:
            await self.launch(program)
            await ends.of(self.name)
        try:
            view = await engine.inspect(self.name)
            assert view is not None
            return view, await engine.logs(self.name, lines=1000)
        finally:
            await engine.remove(self.name)

    async def ask(self, program: str) -> Any:
        """What the program gave to `answer`."""
        view, lines = await self.run(program)
        answers = [line.removeprefix("answer ") for line in lines if line.startswith("answer ")]
        assert answers, (view.exit, lines)
        return json.loads(answers[-1])

    @asynccontextmanager
    async def doors_open(self) -> AsyncIterator[None]:
        """With the link and the gateway of its containers listening."""
        slot = self._slot()
        quiet = Outward(
            ready=lambda _: None,
            said=lambda _rows: None,
            working=lambda: None,
            farewell=lambda _: None,
            offended=lambda _: None,
            gone=lambda: None,
        )
        await self.host.starter.prepare(slot, GENERATION)
        await self.host.starter.open_sockets(slot, GENERATION, quiet)
        try:
            yield
        finally:
            await slot.close_resources()

    def _slot(self) -> Slot:
        return Slot(session=self.session, group=self.group, name=self.name, life=Life(Phase.ABSENT, Generation(0)))


async def intrude(host: Host, name: str) -> Intruder:
    """A session of a new agent group, of which nobody says anything. The host sweeps no more.

    To a sweep, a container that was started beside the host is what an earlier one left, and is removed: on a busy
    machine before the test is through with it.
    """
    vars(host.reconciler)["sweep"] = _look_away
    group, _ = await add_chat(host, name)
    return Intruder(host, await add_session(host, group, name), group)


async def _look_away() -> None:
    return


async def add_session(host: Host, group: AgentGroup, name: str, *, thread: str | None = None) -> Session:
    """A session in the chat of that name."""
    made = Session(
        id=SessionId(f"sess-{name}-{thread}" if thread else f"sess-{name}"),
        agent_group_id=group.id,
        messaging_group_id=MessagingGroupId(f"mg-{name}"),
        thread_id=thread,
    )
    return await host.store.write(lambda connection: sessions.find_or_insert(connection, made))


def with_program(spec: ContainerSpec, program: str) -> ContainerSpec:
    """The same container, running a Python program instead of the runner."""
    return replace(spec, argv=(spec.argv[0], "-c", TOOLS + program))


def take_over(
    monkeypatch: pytest.MonkeyPatch, host: Host, program: str, *, of: Callable[[Session], bool] = lambda _: True
) -> None:
    """From now on, have the host start containers of these sessions with that program instead of the runner."""
    prepare = host.starter.prepare

    async def prepared(slot: Slot, generation: Generation) -> ContainerSpec:
        spec = await prepare(slot, generation)
        return with_program(spec, program) if of(slot.session) else spec

    monkeypatch.setattr(host.starter, "prepare", prepared)
