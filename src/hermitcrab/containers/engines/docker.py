"""Docker and Podman as engines: one class over the HTTP API that both serve.

No client program is started and nothing is removed by itself: a container's exit record stays readable until the host
removes it. Every touch looks first whether the container is this installation's, and then acts on its id, never on its
name. Opened through the entry points `docker` and `podman`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from hermitcrab.containers.engine import Engine, EngineOptions
from hermitcrab.containers.engines.docker_api import ApiError, EngineApi, EngineName
from hermitcrab.containers.engines.docker_events import EventFeed
from hermitcrab.containers.engines.docker_filters import filters
from hermitcrab.containers.engines.docker_forgotten import end_forgotten
from hermitcrab.containers.engines.docker_preflight import preflight
from hermitcrab.containers.engines.docker_python import python_of
from hermitcrab.errors import EngineError, Failure, sole
from hermitcrab.logic import docker_answers, docker_body
from hermitcrab.logic.hardening import GVISOR
from hermitcrab.logic.spec_check import NAME
from hermitcrab.model.container import (
    LABEL_INSTALLATION,
    Capabilities,
    ContainerSpec,
    ContainerStats,
    ContainerStatus,
    ContainerView,
    EngineEvent,
    Finding,
)

MAKE_DEADLINE_S = 120.0
"""Creating, starting and removing wait in the engine's own queues; whoever calls has the tighter deadline."""

KILL_DEADLINE_S = 10.0
"""How long a killed container may take to end before it counts as one that cannot be killed."""

_INSPECTIONS_AT_ONCE = 8
_CAP_PROCESSES = 32768

Json = Mapping[str, Any]


def docker_engine(options: EngineOptions) -> Engine:
    return DockerEngine("docker", options)


def podman_engine(options: EngineOptions) -> Engine:
    return DockerEngine("podman", options)


class DockerEngine:
    """See `hermitcrab.containers.engine.Engine` for what each method promises."""

    def __init__(self, name: EngineName, options: EngineOptions) -> None:
        self.name: str = name
        self._engine = name
        self._installation = options.installation
        self._folder, self._socket = options.folder, options.socket
        self._api = EngineApi(name, options.socket)
        self._dialect: docker_body.Dialect | None = None
        self._images: dict[str, tuple[str, tuple[str, ...]]] = {}
        """Id and volumes of each image that was looked at, by the name that was asked for."""
        self._asking = anyio.Lock()
        """One container at a time is asked which Python its image has."""

    async def capabilities(self) -> Capabilities:
        info = await self._info()
        self._dialect = await self._dialect_of(info)  # For the first container: Podman takes long to describe itself.
        return docker_answers.capabilities(self._engine, info, strict=_strict_unrealized(info))

    async def preflight(self) -> list[Finding]:
        return await preflight(self._api)

    async def ensure_image(self, image: str | None) -> None:
        if image is None:
            raise EngineError(
                Failure.IMAGE_UNAVAILABLE,
                f"{self.name} needs an image, and none is set",
                hint="Set containers.image, or use the bubblewrap engine, which runs on the host's own programs.",
            )
        if docker_body.IMAGE.fullmatch(image) is None or ".." in image:
            raise EngineError(Failure.SPEC_INVALID, f"{image!r} is not the name of an image")
        try:
            answer = await self._api.request("GET", f"/images/{image}/json", doing=f"look up the image {image}")
        except ApiError as error:
            if error.failure is not Failure.IMAGE_UNAVAILABLE:
                raise
            raise EngineError(
                Failure.IMAGE_UNAVAILABLE,
                f"{self.name} has no image {image}",
                hint=f"crab image build --engine {self.name} makes the agent image; with --group NAME, a group's own.",
            ) from error
        found = answer or {}
        self._images[image] = str(found.get("Id") or image), docker_answers.volumes_of(found)

    async def python(self, image: str | None) -> tuple[int, int]:
        async with self._asking:
            await self.ensure_image(image)
            return await python_of(
                self._images[str(image)][0],
                engine=self._engine,
                socket=self._socket,
                asker=self._installation,
                folder=self._folder / "pythons",
            )

    async def create(self, spec: ContainerSpec) -> None:
        if spec.image is None or spec.image not in self._images:
            await self.ensure_image(spec.image)
        # By its id: a tag that is moved meanwhile is another image, with volumes that nobody looked at.
        image, volumes = self._images[str(spec.image)]
        if self._dialect is None:
            self._dialect = await self._dialect_of(await self._info())
        body = docker_body.create_body(spec, image=image, dialect=self._dialect, image_volumes=volumes)
        await anyio.to_thread.run_sync(_verify_sources, spec)
        await self._api.request(
            "POST",
            "/containers/create",
            doing=f"create the container {spec.name}",
            params={"name": spec.name},
            body=body,
            deadline_s=MAKE_DEADLINE_S,
        )

    async def start(self, name: str) -> None:
        found = await self._present(name, doing="start")
        if found.status in {ContainerStatus.RUNNING, ContainerStatus.FROZEN}:
            return
        if found.status is ContainerStatus.EXITED:
            # The engine would run it once more; a container here lives once.
            raise EngineError(Failure.STARTED_THEN_DIED, f"The container {name} has ended already")
        await self._act(found, "start", f"start the container {name}")

    async def freeze(self, name: str) -> None:
        await self._reach(name, ContainerStatus.FROZEN, "pause", "freeze")

    async def thaw(self, name: str) -> None:
        await self._reach(name, ContainerStatus.RUNNING, "unpause", "thaw")

    async def stop(self, name: str, *, grace_s: float) -> None:
        found = await self._find(name)
        if found is not None and found.status is ContainerStatus.FROZEN:
            await self._thaw_if_alive(name)
        if found is None or found.status not in {ContainerStatus.RUNNING, ContainerStatus.FROZEN}:
            return
        if grace_s > 0 and await self._ends_after(found, "SIGTERM", grace_s):
            return
        if not await self._ends_after(found, "SIGKILL", KILL_DEADLINE_S):
            raise EngineError(
                Failure.UNKNOWN,
                f"The container {name} cannot be killed",
                hint=f"Process {found.pid} hangs in the kernel, or {self.name} does; look at both.",
            )

    async def remove(self, name: str) -> None:
        found = await self._find(name)
        if found is None:
            return
        if found.status in {ContainerStatus.RUNNING, ContainerStatus.FROZEN}:
            await self.stop(name, grace_s=0)  # Podman would first give it the whole grace
        elif found.status is ContainerStatus.CREATED:
            await anyio.to_thread.run_sync(end_forgotten, found.id)
        with anyio.move_on_after(KILL_DEADLINE_S):
            while (left := await self._find(name)) is not None and left.id == found.id:
                try:
                    await self._api.request(
                        "DELETE",
                        f"/containers/{found.id}",
                        doing=f"remove the container {name}",
                        params={"force": "true", "v": "true"},
                        deadline_s=MAKE_DEADLINE_S,
                    )
                except ApiError as error:
                    if not _is_going(error):
                        raise
                    await anyio.sleep(0.05)  # somebody else removes it: neither engine tells when it is done
            return
        raise EngineError(Failure.UNKNOWN, f"{self.name} has not removed the container {name} in time")

    async def inspect(self, name: str) -> ContainerView | None:
        return await self._find(name)

    async def containers(self) -> list[ContainerView]:
        listed = await self._api.request(
            "GET",
            "/containers/json",
            doing="list containers",
            params={"all": "true", "filters": json.dumps({"label": [f"{LABEL_INSTALLATION}={self._installation}"]})},
        )
        ids = [str(each.get("Id")) for each in listed or []]
        found: dict[str, ContainerView] = {}
        limiter = anyio.CapacityLimiter(_INSPECTIONS_AT_ONCE)

        async def look(container_id: str) -> None:
            async with limiter:
                answer = await self._answer_for(container_id)
            if answer is not None and docker_answers.installation_of(answer) == self._installation:
                found[container_id] = docker_answers.view(answer)

        try:
            async with anyio.create_task_group() as tasks:
                for each in ids:
                    tasks.start_soon(look, each)
        except BaseExceptionGroup as group:
            raise sole(group) from group
        return [found[each] for each in ids if each in found]

    @contextlib.asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        async with EventFeed(self._api, self._installation) as feed:
            yield feed

    async def logs(self, name: str, *, lines: int) -> list[str]:
        found = await self._find(name)
        if found is None:
            return []
        # Podman joins lines wrongly when it is asked for the last ones only; the whole log is bounded by its limit.
        tail = "all" if self._engine == "podman" else str(max(lines, 0))
        content = await self._api.read(
            "GET",
            f"/containers/{found.id}/logs",
            doing=f"read the log of {name}",
            params={"stdout": "true", "stderr": "true", "tail": tail},
        )
        return docker_answers.log_lines(content, lines)

    async def stats(self, name: str) -> ContainerStats:
        found = await self._present(name, doing="measure")
        if found.status not in {ContainerStatus.RUNNING, ContainerStatus.FROZEN}:
            return ContainerStats(memory_bytes=None, cpu_s=None, pids=None)
        answer = await self._api.request(
            "GET",
            f"/containers/{found.id}/stats",
            doing=f"measure {name}",
            params={"stream": "false", "one-shot": "true"},
        )
        return docker_answers.stats(answer or {})

    async def aclose(self) -> None:
        await self._api.aclose()

    async def _info(self) -> Json:
        info = await self._api.request("GET", "/info", doing="describe itself")
        if not isinstance(info, dict) or not info:  # Else a container would be made without what it can do.
            raise EngineError(Failure.UNKNOWN, f"{self.name} does not say what it is", hint="Restart its daemon.")
        return info

    async def _dialect_of(self, info: Json) -> docker_body.Dialect:
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        return docker_body.Dialect(
            engine=self._engine,
            rootless=docker_answers.is_rootless(info),
            sandbox_runtime="runsc" if _has_gvisor(info) else None,
            filters=await anyio.to_thread.run_sync(filters, self._engine, info, self._folder),
            processes=_CAP_PROCESSES if hard == resource.RLIM_INFINITY else min(hard, _CAP_PROCESSES),
        )

    async def _answer_for(self, name_or_id: str) -> Json | None:
        try:
            answer = await self._api.request("GET", f"/containers/{name_or_id}/json", doing=f"look at {name_or_id}")
        except ApiError as error:
            if docker_answers.container_is_missing(error.status, error.words):
                return None
            raise
        return answer if isinstance(answer, dict) else {}

    async def _find(self, name: str) -> ContainerView | None:
        """Our container of that name, or None. A foreign one raises."""
        if NAME.fullmatch(name) is None:
            raise EngineError(Failure.SPEC_INVALID, f"{name!r} is not the name of a container")
        answer = await self._answer_for(name)
        if answer is None or docker_answers.name_of(answer) != name:  # else a foreign id that begins so
            return None
        if docker_answers.installation_of(answer) != self._installation:
            raise EngineError(
                Failure.NAME_IN_USE,
                f"The container {name} is not one of this installation",
                hint=f"Rename or remove it by hand: {self.name} rm {name}",
            )
        return docker_answers.view(answer)

    async def _present(self, name: str, *, doing: str) -> ContainerView:
        found = await self._find(name)
        if found is None:
            raise EngineError(Failure.UNKNOWN, f"There is no container {name} to {doing}")
        return found

    async def _act(self, found: ContainerView, action: str, doing: str, **params: str) -> None:
        await self._api.request(
            "POST", f"/containers/{found.id}/{action}", doing=doing, params=params, deadline_s=MAKE_DEADLINE_S
        )

    async def _reach(self, name: str, wanted: ContainerStatus, action: str, verb: str) -> None:
        found = await self._present(name, doing=verb)
        if found.status is wanted:
            return
        try:
            await self._act(found, action, f"{verb} the container {name}")
        except ApiError:
            now = await self._find(name)
            if now is None or now.id != found.id or now.status is not wanted:
                raise

    async def _thaw_if_alive(self, name: str) -> None:
        try:
            await self.thaw(name)
        except EngineError:
            now = await self._find(name)
            if now is not None and now.status is ContainerStatus.FROZEN:
                raise

    async def _ends_after(self, found: ContainerView, signal: str, within_s: float) -> bool:
        """Send the signal and tell whether the container has ended in time. One that is gone has ended."""
        # Podman looks at this interval whether it has ended; Docker knows at once and ignores it.
        params = {"condition": "not-running", "interval": "20ms"} if self._engine == "podman" else {}
        with anyio.move_on_after(within_s):
            try:
                await self._act(found, "kill", f"signal the container {found.name}", signal=signal)
            except ApiError as error:
                if not _is_not_running(error):
                    raise
            try:
                await self._api.request(
                    "POST", f"/containers/{found.id}/wait", doing="wait", params=params, deadline_s=math.inf
                )
            except ApiError as error:
                if not docker_answers.container_is_missing(error.status, error.words):
                    raise
            return True
        return False


def _has_gvisor(info: Json) -> bool:
    runtime = docker_answers.runtime_paths(info).get("runsc", "")
    # Podman lists every runtime that it has heard of; Docker only ones that somebody registered.
    return bool(runtime) and (not runtime.startswith("/") or Path(runtime).exists())


def _strict_unrealized(info: Json) -> dict[str, str]:
    unrealized = {}
    if not _has_gvisor(info):
        unrealized[GVISOR] = "the engine has no runtime runsc; the container shares the machine's kernel"
    return unrealized


def _is_not_running(error: ApiError) -> bool:
    words = error.words.lower()
    return docker_answers.container_is_missing(error.status, words) or any(
        each in words for each in ("is not running", "can only kill running", "container state improper")
    )


def _is_going(error: ApiError) -> bool:
    words = error.words.lower()
    return docker_answers.container_is_missing(error.status, words) or "already in progress" in words


def _verify_sources(spec: ContainerSpec) -> None:
    """Every source exists and is no symbolic link, and so is what lies under a nested target. Else `spec-invalid`.

    Podman makes missing sources, and both engines make missing nested targets, as root: neither may happen.
    """
    for mount in spec.mounts:
        covered = docker_body.mountpoint_in_source(mount, spec)
        for path, what in ((mount.source, "source"), (covered, "place inside its parent mount")):
            if path is None:
                continue
            try:
                os.lstat(path)
                real = os.path.realpath(path)
            except OSError as error:
                raise EngineError(
                    Failure.SPEC_INVALID, f"The mount on {mount.target} has no {what}: {path}: {error.strerror}"
                ) from error
            if real != os.path.normpath(path):
                raise EngineError(
                    Failure.SPEC_INVALID, f"The mount on {mount.target} goes through a symbolic link: {path}"
                )
