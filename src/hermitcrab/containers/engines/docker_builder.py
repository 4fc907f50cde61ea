"""Images through the API of Docker and Podman: looked up, made, listed, removed. Used by `images/desk.py`.

An image is made by running the installer in a container of its parent and keeping what came of it. The engine's own
builder takes no part: it trusts layers that others left in its cache (CVE-2024-24557), obeys the parent's ONBUILD, and
cannot be given the limits of a container.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.to_thread

from hermitcrab.containers.engines.docker_api import ApiError, EngineApi, EngineName
from hermitcrab.containers.engines.docker_filters import filters
from hermitcrab.containers.engines.docker_probe import Probe, probe_body, processes_at_most
from hermitcrab.errors import EngineError, Failure, sole
from hermitcrab.logic import docker_answers
from hermitcrab.logic.engine_images import (
    EngineImage,
    check_image_name,
    id_of,
    listed_image,
    name_and_tag,
    whole_id,
)
from hermitcrab.logic.image_recipe import (
    LABEL_KIND,
    BuildLimits,
    Recipe,
    build_body,
    build_name,
    build_prefix,
    commit_changes,
    export_name,
)

SIZE_LOOK_S = 1.0
"""How often the size of a running build is asked for: no engine here can limit it by itself."""

MAKE_DEADLINE_S = 120.0
COMMIT_DEADLINE_S = 600.0
REMOVE_DEADLINE_S = 60.0
_LOG_END_S = 5.0
_TAIL_LINES = 20

Progress = Callable[[str], object]
Json = dict[str, Any]


class ImageBuilder:
    """The images of one daemon."""

    def __init__(self, engine: EngineName, socket: str | None = None) -> None:
        self.engine = engine
        self._api = EngineApi(engine, socket)
        self._info: Json | None = None
        """What the engine says of itself, asked once: Podman takes long for it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._api.aclose()

    async def resolve(self, image: str, *, progress: Progress = lambda _line: None, pull: bool = False) -> str:
        """The id of the image that is called `image`, fetched from its registry first with `pull` if it is not here.

        Raises EngineError `image-unavailable`.
        """
        check_image_name(image)
        found = await self._look(image)
        if found is None and pull:
            await self._pull(image, progress)
            found = await self._look(image)
        if found is None:
            raise EngineError(
                Failure.IMAGE_UNAVAILABLE,
                f"{self.engine} has no image {image}",
                hint=f"Name one that is here. Without a registry, make a base: bash image/base.sh NAME {self.engine}",
            )
        return id_of(found)

    async def images(self) -> list[EngineImage]:
        """Every image that carries our label, of any home, the newest first."""
        listed = await self._api.request(
            "GET", "/images/json", doing="list images", params={"filters": json.dumps({"label": [LABEL_KIND]})}
        )
        found = [listed_image(each) for each in listed or [] if isinstance(each, dict)]
        return sorted((each for each in found if each.kind), key=lambda each: (-each.created, each.id))

    async def has(self, image: str) -> bool:
        """Whether the image of that id is here."""
        return await self._look(image) is not None

    async def used_images(self) -> set[str]:
        """Ids of the images that any container has, whoever's it is."""
        listed = await self._api.request("GET", "/containers/json", doing="list containers", params={"all": "true"})
        return {whole_id(str(each.get("ImageID", ""))) for each in listed or []}

    async def name(self, image: str, name: str) -> None:
        """Give the image `name`, taking it from the one that has it."""
        repository, tag = name_and_tag(name)
        await self._api.request(
            "POST", f"/images/{image}/tag", doing=f"name the image {name}", params={"repo": repository, "tag": tag}
        )

    async def remove(self, image: str) -> str:
        """Remove the image unless something needs it; then the answer says what. Empty: it is gone."""
        try:
            found = await self._look(image)
            for name in (found or {}).get("RepoTags") or []:
                await self._api.request(
                    "DELETE", f"/images/{name}", doing=f"remove the name {name}", params={"noprune": "1"}
                )
            await self._api.request(
                "DELETE", f"/images/{image}", doing=f"remove the image {image}", params={"noprune": "1"}
            )
        except ApiError as error:
            # Docker removes an image with the last of its names.
            return "" if error.failure is Failure.IMAGE_UNAVAILABLE else error.words[:200]
        return ""

    async def build(
        self, recipe: Recipe, *, context: Path, owner: str, name: str | None, limits: BuildLimits, progress: Progress
    ) -> str:
        """Make the image and return its id. `progress` gets each line that the installer writes.

        However this ends, no container of the build is left. Raises EngineError `image-unavailable`, with the last
        lines of the log, or `resources-exhausted` for a build that crossed a limit.
        """
        container = await self._create_build(recipe, context=context, owner=owner, limits=limits)
        try:
            await self._api.request(
                "POST", f"/containers/{container}/start", doing="start the build", deadline_s=MAKE_DEADLINE_S
            )
            await self._run(container, limits, progress)
            return await self._commit(container, recipe, owner=owner, name=name)
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(EngineError):
                await self._remove_container(container)

    async def leftovers(self, owner: str) -> list[str]:
        """Ids of containers of this home's builds. Whoever holds the home's build lock may remove them.

        By name, which the host gives: an image hands its labels on to every container that is made from it.
        """
        listed = await self._api.request("GET", "/containers/json", doing="list builds", params={"all": "true"})
        prefix = build_prefix(owner)
        return [
            str(each.get("Id"))
            for each in listed or []
            if any(str(name).removeprefix("/").startswith(prefix) for name in each.get("Names") or [])
        ]

    async def remove_leftover(self, container: str) -> None:
        await self._remove_container(container)

    @contextlib.asynccontextmanager
    async def probe(self, image: str, script: str, *, owner: str, name: str | None = None) -> AsyncIterator[Probe]:
        """A container of `image` that runs `script` without a network as nobody, to learn what is in the image."""
        async with self._filter() as system_calls:
            body = probe_body(image, script, owner=owner, engine=self.engine, system_calls=system_calls)
            params = {} if name is None else {"name": name}
            container = await self._create(body, params, doing=f"look into {image}")
        try:
            yield Probe(self._api, container)
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(EngineError):
                await self._remove_container(container)

    @contextlib.asynccontextmanager
    async def root(self, image: str, *, owner: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The whole file system of the image as a tar stream, from a container that never runs.

        One at a time for each owner: what an earlier one left is removed first.
        """
        await self.remove_export(owner)
        async with (
            self.probe(image, "true", owner=owner, name=export_name(owner)) as probe,
            self._api.content("GET", f"/containers/{probe.container}/export", doing=f"export {image}") as content,
        ):
            yield content

    async def remove_export(self, owner: str) -> None:
        """Remove what is left of a `root` that was killed. Not while one is open."""
        await self._remove_container(export_name(owner))

    async def _look(self, image: str) -> Json | None:
        try:
            found = await self._api.request("GET", f"/images/{image}/json", doing=f"look up the image {image}")
        except ApiError as error:
            if error.failure is not Failure.IMAGE_UNAVAILABLE:
                raise
            return None
        return found if isinstance(found, dict) else {}

    async def _pull(self, image: str, progress: Progress) -> None:
        repository, tag = name_and_tag(image)
        params = {"fromImage": repository, "tag": tag}
        try:
            async with self._api.stream("POST", "/images/create", doing=f"fetch {image}", params=params) as messages:
                async for message in messages:
                    if message.get("error"):
                        progress(str(message["error"])[:500])
                        return
                    if isinstance(message.get("status"), str) and "progressDetail" not in message:
                        progress(message["status"][:500])
        except ApiError as error:
            progress(error.words[:500])  # what is not there is said by whoever looks for it

    async def _create_build(self, recipe: Recipe, *, context: Path, owner: str, limits: BuildLimits) -> str:
        async with self._filter() as system_calls:
            body = build_body(
                recipe,
                context=str(context),
                owner=owner,
                limits=limits,
                processes=processes_at_most(),
                engine=self.engine,
                system_calls=system_calls,
            )
            return await self._create(body, {"name": build_name(recipe, owner=owner)}, doing="create the build")

    async def _create(self, body: Json, params: dict[str, str], *, doing: str) -> str:
        made = await self._api.request(
            "POST", "/containers/create", doing=doing, params=params, body=body, deadline_s=MAKE_DEADLINE_S
        )
        return str(made["Id"])

    @contextlib.asynccontextmanager
    async def _filter(self) -> AsyncIterator[str | None]:
        """The filter of system calls for what runs in a build, as the engine takes one while a container is made."""
        if self._info is None:
            self._info = await self._api.request("GET", "/info", doing="describe itself") or {}
        async with anyio.TemporaryDirectory(prefix="crab-filter-") as folder:
            found = await anyio.to_thread.run_sync(filters, self.engine, self._info, Path(folder))
            yield found.get("standard")

    async def _run(self, container: str, limits: BuildLimits, progress: Progress) -> None:
        code: int | None = None
        told = anyio.Event()
        with anyio.move_on_after(limits.seconds) as deadline:
            try:
                async with anyio.create_task_group() as beside:
                    beside.start_soon(self._tell, container, progress, told)
                    beside.start_soon(self._watch_size, container, limits)
                    ended = await self._api.request(
                        "POST", f"/containers/{container}/wait", doing="wait for the build", deadline_s=math.inf
                    )
                    code = int((ended or {}).get("StatusCode", -1))
                    with anyio.move_on_after(_LOG_END_S):
                        await told.wait()
                    beside.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                raise sole(group) from group
        if deadline.cancelled_caught:
            raise EngineError(
                Failure.RESOURCES_EXHAUSTED,
                f"The build took longer than {limits.seconds:g} s and was ended",
                hint=await self._tail(container),
            )
        if code != 0:
            raise await self._failed(container, code, limits)

    async def _failed(self, container: str, code: int | None, limits: BuildLimits) -> EngineError:
        found = await self._api.request("GET", f"/containers/{container}/json", doing="look at the build")
        state = (found or {}).get("State") or {}
        if state.get("OOMKilled") is True:
            return EngineError(
                Failure.RESOURCES_EXHAUSTED,
                f"The build needed more than {limits.memory_bytes // 1024**2} MB of memory and was ended",
                hint=await self._tail(container),
            )
        return EngineError(
            Failure.IMAGE_UNAVAILABLE,
            f"The installer failed (exit code {code}). Its log ends with:\n{await self._tail(container)}",
        )

    async def _tell(self, container: str, progress: Progress, told: anyio.Event) -> None:
        params = {"stdout": "1", "stderr": "1", "follow": "1"}
        pending = b""
        async with self._api.content(
            "GET", f"/containers/{container}/logs", doing="follow the build", params=params
        ) as content:
            async for chunk in content:
                lines, pending = docker_answers.whole_log_lines(pending + chunk)
                for line in lines:
                    progress(line)
        told.set()

    async def _watch_size(self, container: str, limits: BuildLimits) -> None:
        while True:
            await anyio.sleep(SIZE_LOOK_S)
            found = await self._api.request(
                "GET",
                f"/containers/{container}/json",
                doing="measure the build",
                params={"size": "true"},
                deadline_s=MAKE_DEADLINE_S,
            )
            size = (found or {}).get("SizeRw") or 0
            if size > limits.disk_bytes:
                raise EngineError(
                    Failure.RESOURCES_EXHAUSTED,
                    f"The build wrote more than {limits.disk_bytes // 1024**2} MB and was ended",
                )

    async def _tail(self, container: str) -> str:
        content = await self._api.read(
            "GET",
            f"/containers/{container}/logs",
            doing="read the log of the build",
            params={"stdout": "1", "stderr": "1", "tail": "200"},
        )
        return "\n".join(docker_answers.log_lines(content, _TAIL_LINES))

    async def _commit(self, container: str, recipe: Recipe, *, owner: str, name: str | None) -> str:
        params = [("container", container), ("pause", "false")]
        if name is not None:
            repository, tag = name_and_tag(name)
            params += [("repo", repository), ("tag", tag)]
        params += [("changes", each) for each in commit_changes(recipe, owner=owner)]
        made = await self._api.request(
            "POST", "/commit", doing="keep the image", params=params, body={}, deadline_s=COMMIT_DEADLINE_S
        )
        return whole_id(str(made["Id"]))

    async def _remove_container(self, container: str) -> None:
        try:
            await self._api.request(
                "DELETE",
                f"/containers/{container}",
                doing="remove the build",
                params={"force": "true", "v": "true"},
                deadline_s=REMOVE_DEADLINE_S,
            )
        except ApiError as error:
            if not docker_answers.container_is_missing(error.status, error.words):
                raise
