"""A Docker daemon in memory, behind the API's real socket: it keeps containers, and breaks as a test says.

For whole hosts on an engine that fails them: the adapter and all above it are the real ones. What runs in a container
is a `Behaviour`, as in `fake_engine`. It is held to the same conformance suite as the daemon that it stands for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anyio

from hermitcrab.model.container import LABEL_GENERATION, LABEL_INSTALLATION, LABEL_SESSION, ContainerSpec, Limits, Mount
from hermitcrab.model.container import ContainerStatus as Status
from hermitcrab.model.ids import Generation, InstallationId, SessionId
from hermitcrab.testing.fake_docker import INFO, VERSION, Request, chunk, encoded, read_request
from hermitcrab.testing.fake_engine import Behaviour, FakeContainer, FakeMachine, FakeProcess, Obeys

IMAGE = "agent:fake"

Kind = Literal["error", "silence", "truncated", "garbage", "hang-up", "late"]
KINDS: tuple[Kind, ...] = ("error", "silence", "truncated", "garbage", "hang-up", "late")

Answer = tuple[int, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of requests that it is about, until the test mends it."""

    kind: Kind
    """`error`: status 500. `silence`: no answer, ever. `truncated`: the connection ends in the answer. `garbage`: an
    answer that is none. `hang-up`: no answer, and the connection ends. `late`: all is well, once it is mended."""
    about: str = ""
    """Part of "METHOD /path"; empty: every request."""
    acts: bool = False
    """The daemon does what it was asked, and only the answer goes wrong."""


@dataclass(slots=True)
class Kept:
    """A container as the daemon knows it."""

    container: FakeContainer
    labels: Mapping[str, str]
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Listener:
    writer: asyncio.StreamWriter
    labels: list[str]


class FakeDaemon:
    """Use through `fake_daemon`. `faults` may be changed at any time by `breaks` and `mend`."""

    def __init__(self, machine: FakeMachine, behaviour: Callable[[ContainerSpec], Behaviour] | None = None) -> None:
        self.machine = machine
        self.images = {IMAGE}
        self.requests: list[Request] = []
        self.drops_events = False
        """Ends are not told."""
        self.names_stay_in_use = False
        """What is removed is "already in progress" of being removed, and keeps its name."""
        self.most_running = 0
        """The most containers of one session that ever ran at the same time."""
        self._behaviour = behaviour or (lambda _spec: Obeys())
        self._kept: dict[str, Kept] = {}
        self._fault: Fault | None = None
        self._mended = asyncio.Event()
        self._told: list[tuple[dict[str, Any], Mapping[str, str]]] = []
        self._listeners: list[_Listener] = []
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def containers(self) -> list[FakeContainer]:
        return [each.container for each in self._kept.values()]

    @property
    def running(self) -> list[FakeContainer]:
        return [each for each in self.containers if each.runs]

    def asked(self, about: str) -> int:
        """How many requests there were of that "METHOD /path", or part of it."""
        return sum(about in f"{each.method} {each.path}" for each in self.requests)

    def breaks(self, fault: Fault) -> None:
        self._fault, self._mended = fault, asyncio.Event()
        if not fault.about or fault.about in "GET /events":
            self.cut()

    def mend(self) -> None:
        self._fault = None
        self._mended.set()

    def cut(self) -> None:
        """Break every event stream in the middle."""
        for each in self._listeners:
            each.writer.transport.abort()
        self._listeners.clear()

    def finish_removals(self) -> None:
        self.names_stay_in_use = False
        for each in [each for each in self._kept.values() if each.container.is_going]:
            self._forget(each)

    def end(self, name: str, code: int = 1) -> None:
        """The container's main process ends."""
        process = self.machine.containers[name].process
        assert process is not None, f"{name} was not started"
        process.exit(code)

    def close(self) -> None:
        for kept in self._kept.values():
            if kept.container.process is not None:
                kept.container.process.exit(137)
        self.mend()
        for writer in self._writers:
            writer.transport.abort()

    # HTTP.

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._answer_one(await read_request(reader), writer):
                    await writer.drain()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer_one(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        self.requests.append(request)
        fault = self._fault
        if fault is not None and fault.about not in f"{request.method} {request.path}":
            fault = None
        if fault is not None and fault.kind == "late":
            await self._mended.wait()
            fault = None
        if fault is None and request.path == "/events":
            self._listen(request, writer)
            return True
        answer: Answer = (200, {"message": "nothing was done"})
        if fault is None or fault.acts:
            answer = await self._answer(request)
        if fault is None:
            writer.write(encoded(*answer))
            return True
        return self._fail(fault, answer, writer)

    def _fail(self, fault: Fault, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        whole = encoded(200, {"Id": "f" * 64, "State": {"Status": "running"}} if not fault.acts else answer[1])
        match fault.kind:
            case "error":
                writer.write(encoded(500, {"message": "driver failed: database is locked"}))
            case "truncated":
                writer.write(whole[: -max(1, len(whole) // 4)])
                return False
            case "garbage":
                writer.write(encoded(200, b"<html>\x00 this is no answer"))
            case "hang-up":
                return False
            case _:
                pass  # silence
        return True

    def _listen(self, request: Request, writer: asyncio.StreamWriter) -> None:
        labels = json.loads(request.query["filters"])["label"]
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if "since" in request.query:
            for event, of in self._told:
                if event["time"] >= int(request.query["since"]) and _matches(of, labels):
                    writer.write(chunk(event))
        self._listeners.append(_Listener(writer, labels))

    # What a daemon does.

    async def _answer(self, request: Request) -> Answer:
        method, parts = request.method, request.path.strip("/").split("/")
        match method, parts:
            case "GET", ["version"]:
                return 200, VERSION
            case "GET", ["info"]:
                return 200, INFO
            case "GET", ["images", *name, "json"]:
                image = "/".join(name)
                return (200, {"Id": image}) if image in self.images else (404, {"message": f"No such image: {image}"})
            case "POST", ["containers", "create"]:
                return self._create(request.query["name"], json.loads(request.body))
            case "GET", ["containers", "json"]:
                labels = json.loads(request.query["filters"])["label"]
                return 200, [{"Id": id_} for id_, each in self._kept.items() if _matches(each.labels, labels)]
            case _, ["containers", name, *action]:
                kept = self._find(name)
                if kept is None:
                    return 404, {"message": f"No such container: {name}"}
                return await self._act(kept, method, action, request.query)
            case _:
                return 404, {"message": "page not found"}

    async def _act(self, kept: Kept, method: str, action: list[str], query: Mapping[str, str]) -> Answer:
        match method, action:
            case "GET", ["json"]:
                return 200, _shown(kept)
            case "GET", ["logs"]:
                lines = kept.container.lines if query["tail"] == "all" else kept.container.lines[-int(query["tail"]) :]
                return 200, b"".join(_framed(line) for line in lines)
            case "GET", ["stats"]:
                return 200, {
                    "memory_stats": {"usage": 1024 * 1024, "stats": {}},
                    "cpu_stats": {"cpu_usage": {"total_usage": 1000}},
                    "pids_stats": {"current": 1},
                }
            case "POST", ["start"]:
                return self._start(kept)
            case "POST", ["pause" | "unpause" as word]:
                return _pause(kept.container, word)
            case "POST", ["kill"]:
                return self._kill(kept, signal.Signals[query["signal"]])
            case "POST", ["wait"]:
                await kept.ended.wait()
                return 200, {"StatusCode": kept.container.exit.exit_code if kept.container.exit else None}
            case "DELETE", []:
                return self._remove(kept)
            case _:
                return 404, {"message": "page not found"}

    def _create(self, name: str, body: Mapping[str, Any]) -> Answer:
        if body["Image"] not in self.images:
            return 404, {"message": f"No such image: {body['Image']}"}
        if name in self.machine.containers:
            return 409, {"message": f'Conflict. The container name "/{name}" is already in use by container "x".'}
        self.machine.add(_spec(name, body))
        container = self.machine.containers[name]
        self._kept[container.id] = Kept(container, body["Labels"])
        return 201, {"Id": container.id}

    def _start(self, kept: Kept) -> Answer:
        container = kept.container
        if container.runs:
            return 304, b""
        container.status = Status.RUNNING
        container.process = FakeProcess(container, self._ended)
        same = [each for each in self.running if each.spec.session == container.spec.session]
        self.most_running = max(self.most_running, len(same))
        self._behaviour(container.spec).start(container.process)
        return 204, b""

    def _kill(self, kept: Kept, number: signal.Signals) -> Answer:
        process = kept.container.process
        if process is None or not kept.container.runs:
            return 409, {"message": f"Cannot kill container: {kept.container.id} is not running"}
        process.signals.append(number)
        if number is signal.SIGKILL:
            process.exit(128 + number)
        else:
            self._behaviour(kept.container.spec).signal(process, number)
        return 204, b""

    def _remove(self, kept: Kept) -> Answer:
        container = kept.container
        if container.is_going:
            return 409, {"message": f"removal of container {container.id} is already in progress"}
        if container.process is not None:
            container.process.exit(137)
        if self.names_stay_in_use:
            container.is_going = True
            return 409, {"message": f"removal of container {container.id} is already in progress"}
        self._forget(kept)
        return 204, b""

    def _forget(self, kept: Kept) -> None:
        del self._kept[kept.container.id], self.machine.containers[kept.container.spec.name]

    def _ended(self, container: FakeContainer) -> None:
        kept = self._kept.get(container.id)
        if kept is None:
            return
        self.machine.ended(container)
        kept.ended.set()
        event = {
            "Type": "container",
            "Action": "die",
            "time": len(self._told),
            "Actor": {"Attributes": {"name": container.spec.name}},
        }
        self._told.append((event, kept.labels))
        for each in self._listeners if not self.drops_events else ():
            if _matches(kept.labels, each.labels):
                each.writer.write(chunk(event))

    def _find(self, name: str) -> Kept | None:
        named = self.machine.containers.get(name)
        return self._kept.get(name if named is None else named.id)


@contextlib.asynccontextmanager
async def fake_daemon(
    socket: Path, machine: FakeMachine, behaviour: Callable[[ContainerSpec], Behaviour] | None = None
) -> AsyncIterator[FakeDaemon]:
    """A daemon that listens on `socket` for as long as the context is open. Its containers end with it."""
    daemon = FakeDaemon(machine, behaviour)
    server = await asyncio.start_unix_server(daemon.serve, socket)
    try:
        yield daemon
    finally:
        server.close()
        daemon.close()
        await server.wait_closed()


def _pause(container: FakeContainer, word: str) -> Answer:
    wanted, before = (Status.FROZEN, Status.RUNNING) if word == "pause" else (Status.RUNNING, Status.FROZEN)
    if container.status is not before:
        return 409, {"message": f"Container {container.id} is not {before}"}
    container.status = wanted
    if wanted is Status.FROZEN:
        container.thawed = anyio.Event()
    else:
        container.thawed.set()
    return 204, b""


def _shown(kept: Kept) -> dict[str, Any]:
    container = kept.container
    end = container.exit
    words = {Status.FROZEN: "paused", Status.CREATED: "created", Status.RUNNING: "running", Status.EXITED: "exited"}
    return {
        "Id": container.id,
        "Name": f"/{container.spec.name}",
        "Created": "2026-01-01T00:00:00Z",
        "Config": {"Labels": dict(kept.labels)},
        "State": {
            "Status": "removing" if container.is_going else words[container.status],
            "Running": container.runs,
            "Paused": container.status is Status.FROZEN,
            "Pid": container.pid if container.runs else 0,
            "ExitCode": end.exit_code if end else 0,
            "OOMKilled": bool(end and end.oom_killed),
            "FinishedAt": "2026-01-01T00:00:01Z" if end else "0001-01-01T00:00:00Z",
        },
    }


def _spec(name: str, body: Mapping[str, Any]) -> ContainerSpec:
    """As much of the spec as the request tells."""
    labels, (uid, gid) = body["Labels"], body["User"].split(":")
    return ContainerSpec(
        name=name,
        installation=InstallationId(labels[LABEL_INSTALLATION]),
        session=SessionId(labels[LABEL_SESSION]),
        generation=Generation(int(labels[LABEL_GENERATION])),
        image=body["Image"],
        argv=tuple(body["Entrypoint"]),
        env=dict(each.split("=", 1) for each in body["Env"]),
        mounts=tuple(
            Mount(source=each["Source"], target=each["Target"], writable=not each["ReadOnly"])
            for each in body["HostConfig"]["Mounts"]
        ),
        limits=Limits(),
        uid=int(uid),
        gid=int(gid),
    )


def _matches(labels: Mapping[str, str], wanted: list[str]) -> bool:
    return all(labels.get(name) == value for name, _, value in (each.partition("=") for each in wanted))


def _framed(line: str) -> bytes:
    content = line.encode() + b"\n"
    return b"\1\0\0\0" + len(content).to_bytes(4, "big") + content
