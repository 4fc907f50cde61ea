"""`images.*`: agent groups' images."""

from __future__ import annotations

import math
from dataclasses import asdict

import anyio

from hermitcrab.control.host import ControlledHost
from hermitcrab.control.lookup import group_named
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import Emit
from hermitcrab.errors import HermitcrabError
from hermitcrab.groups.images import GroupBuilt
from hermitcrab.model.groups import AgentGroup


class ImageMethods:
    def __init__(self, host: ControlledHost) -> None:
        self._host = host

    async def build(self, params: Params, emit: Emit) -> Json:
        """Events {"line"} while the group's image is made, and {"built"} last. Who leaves early ends the build."""
        folder = params.text("group")
        params.done()
        group = await group_named(self._host, folder)
        sender, lines = anyio.create_memory_object_stream[str](math.inf)  # bounded by the log's limit
        built: GroupBuilt | None = None
        failure: HermitcrabError | None = None

        async def make(group: AgentGroup) -> None:
            nonlocal built, failure
            with sender:
                try:
                    built = await self._host.images.build(group, progress=sender.send_nowait)
                except HermitcrabError as error:
                    failure = error  # out of the task group by itself

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(make, group)
            with lines:
                async for line in lines:
                    await emit({"line": line[:2000]})
        if failure is not None:
            raise failure
        assert built is not None
        await emit({"built": built_json(built)})
        return {}

    async def list(self, params: Params, _emit: Emit) -> Json:
        params.done()
        found = await self._host.images.catalogue()
        return {"images": [asdict(each) for each in found.images], "problems": found.problems}

    async def prune(self, params: Params, _emit: Emit) -> Json:
        dry_run = params.flag("dry_run")
        params.done()
        return {"removals": [asdict(each) for each in await self._host.images.prune(dry_run=dry_run)]}


def built_json(built: GroupBuilt) -> Json:
    return {
        "group": built.group,
        "image": built.image,
        "packages": built.packages,
        "fresh": built.fresh,
        "log": None if built.log is None else str(built.log),
    }
