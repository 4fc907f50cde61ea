"""An engine under test and what the conformance suite needs around it: specs, other hosts, ends to wait for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Self

import anyio
import pytest

from hermitcrab.containers.engine import Engine, EngineOptions
from hermitcrab.model.container import (
    ContainerSpec,
    ContainerStatus,
    ContainerView,
    Hardening,
    Limits,
    Mount,
    MountClass,
)
from hermitcrab.model.ids import Generation, InstallationId, SessionId

DEADLINE_S = 300.0
"""For one wait in a test. Nothing waits this long unless something is wrong, on the busiest machine."""

RUNS = "echo ready; while :; do sleep 60; done"
"""Until its first word it may be the engine's own program still, which then becomes the script: one with several
threads, which ends in another way when it is told to, and takes on its filter of system calls last."""


@dataclass(slots=True)
class EngineHarness:
    """One engine under test, on an installation of its own."""

    opener: Callable[[EngineOptions], Engine]
    folder: Path
    """Scratch, free of symbolic links, that the engine can mount from."""
    image: str | None = None
    socket: str | None = None
    uid: int = 1000
    gid: int = 1000
    real: bool = True
    installation: InstallationId = InstallationId("conform")
    engine: Engine = field(init=False)
    _others: list[Engine] = field(default_factory=list, init=False)
    _numbers: count[int] = field(default_factory=lambda: count(1), init=False)

    def __post_init__(self) -> None:
        self.engine = self.opener(self._options(self.installation))

    def spec(
        self,
        script: str,
        *,
        name: str | None = None,
        argv: tuple[str, ...] | None = None,
        mounts: tuple[Mount, ...] = (),
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        generation: int = 1,
        image: str | None = None,
        hardening: Hardening = "standard",
    ) -> ContainerSpec:
        """A container that runs `script` in its own /workspace."""
        own_name = name or f"{self.installation}-{next(self._numbers)}"
        work = Mount(source=str(self.writable("work")), target="/workspace", writable=True, mount_class=MountClass.WORK)
        return ContainerSpec(
            name=own_name,
            installation=self.installation,
            session=SessionId(f"session of {own_name}"),
            generation=Generation(generation),
            image=image or self.image,
            argv=argv or ("/bin/sh", "-c", script),
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/home/agent", **(env or {})},
            mounts=(work, *mounts),
            limits=limits or Limits(memory_bytes=256 * 1024 * 1024, pids=64),
            uid=self.uid,
            gid=self.gid,
            workdir="/workspace",
            hardening=hardening,
        )

    def writable(self, name: str) -> Path:
        """A folder on the host that the container's user owns."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid)
        return path

    async def reopen(self) -> None:
        """The host ends and starts again: another object for the same engine."""
        await self.engine.aclose()
        self.engine = self.opener(self._options(self.installation))

    def stranger(self) -> Engine:
        """The same engine as another installation sees it."""
        engine = self.opener(self._options(InstallationId(f"{self.installation}-2")))
        self._others.append(engine)
        return engine

    async def run(self, spec: ContainerSpec) -> tuple[ContainerView, list[str]]:
        """Run it to its end: how it ended, and what it wrote."""
        async with Ends(self.engine) as ends:
            await self.engine.create(spec)
            await self.engine.start(spec.name)
            await ends.of(spec.name)
        view = await self.view(spec.name)
        return view, await self.engine.logs(spec.name, lines=1000)

    async def started(self, script: str = RUNS, **options: object) -> str:
        spec = self.spec(script, **options)  # type: ignore[arg-type]  # passed on as they are
        await self.engine.create(spec)
        await self.engine.start(spec.name)
        return spec.name

    async def view(self, name: str) -> ContainerView:
        view = await self.engine.inspect(name)
        assert view is not None, f"{name} is not there"
        return view

    async def said(self, name: str, line: str) -> None:
        """Wait until the container wrote that line."""
        with anyio.fail_after(DEADLINE_S):
            while line not in await self.engine.logs(name, lines=1000):  # noqa: ASYNC110  # no engine tells of lines
                await anyio.sleep(0.01)

    async def keeps(self, promise: str) -> bool:
        """Whether the engine keeps it on this machine: for a test with more in it than this one promise."""
        return promise not in (await self.engine.capabilities()).unrealized_for("strict")

    async def unrealized(self, promise: str) -> None:
        """Skip the test when the engine says openly that it does not keep this on this machine."""
        why = (await self.engine.capabilities()).unrealized_for("strict").get(promise)
        if why is not None:
            pytest.skip(f"{promise} is not realized here: {why}")

    async def aclose(self) -> None:
        """Remove all that was made."""
        for engine in (self.engine, *self._others):
            for view in await engine.containers():
                await engine.remove(view.name)
            await engine.aclose()

    def _options(self, installation: InstallationId) -> EngineOptions:
        return EngineOptions(installation=installation, folder=self.folder / "engine", socket=self.socket)


class Ends:
    """Listens to an engine for as long as it is entered, and notes who ended."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def __aenter__(self) -> Self:
        self._context = self._engine.events()
        self._events = await self._context.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._context.__aexit__(None, None, None)

    async def of(self, name: str) -> None:
        """Wait for that container's end, told or found."""
        with anyio.fail_after(DEADLINE_S):
            async for event in self._events:
                if event.kind == "ended" and event.name == name:
                    return
                if event.kind == "resync":
                    view = await self._engine.inspect(name)
                    if view is not None and view.status is ContainerStatus.EXITED:
                        return
        raise AssertionError("the events ended")

    async def kinds_until(self, name: str) -> list[str]:
        """The events up to the end of that one."""
        found: list[str] = []
        with anyio.fail_after(DEADLINE_S):
            async for event in self._events:
                found.append(event.kind)
                if event.name == name:
                    break
        return found
