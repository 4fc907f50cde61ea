"""A place where a test makes images with a real engine, and which leaves nothing behind in it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermitcrab.containers.engine import EngineOptions
from hermitcrab.containers.engines.docker import DockerEngine
from hermitcrab.containers.engines.docker_api import EngineApi, EngineName
from hermitcrab.containers.engines.docker_builder import ImageBuilder
from hermitcrab.containers.images.desk import ImageDesk, owner_of
from hermitcrab.logic.engine_images import EngineImage
from hermitcrab.model.container import ContainerSpec
from hermitcrab.model.ids import Generation, InstallationId, SessionId
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import ImageSettings
from hermitcrab.testing.engine_harness import Ends
from hermitcrab.testing.foreign_images import remove_image


@dataclass(slots=True)
class Workshop:
    desk: ImageDesk
    builder: ImageBuilder
    home: Home
    socket: str | None
    told: list[str] = field(default_factory=list)

    async def output(self, image: str, *argv: str) -> list[str]:
        """What a hardened container of the image writes."""
        # One that nobody else has: other tests' containers end at the same engine meanwhile.
        installation = InstallationId(f"t{uuid.uuid4().hex[:8]}")
        options = EngineOptions(installation=installation, folder=self.home.path, socket=self.socket)
        adapter = DockerEngine(self.builder.engine, options)
        spec = ContainerSpec(
            name=f"hermitcrab-image-test-{uuid.uuid4().hex[:8]}",
            installation=installation,
            session=SessionId("s"),
            generation=Generation(1),
            image=image,
            argv=argv,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/home/agent"},
            mounts=(),
            uid=1000,
            gid=1000,
        )
        try:
            async with Ends(adapter) as ends:
                await adapter.create(spec)
                await adapter.start(spec.name)
                await ends.of(spec.name)
            return await adapter.logs(spec.name, lines=200)
        finally:
            await adapter.remove(spec.name)
            await adapter.aclose()

    async def mine(self) -> list[EngineImage]:
        return [each for each in await self.builder.images() if each.owner == self.desk.owner]


@asynccontextmanager
async def workshop(name: EngineName, socket: str | None, path: Path, **settings: Any) -> AsyncIterator[Workshop]:
    home = Home(path)
    home.prepare()
    async with tidy(name, socket, home) as builder:
        yield Workshop(ImageDesk(home, ImageSettings(**settings)), builder, home, socket)


@asynccontextmanager
async def tidy(name: EngineName, socket: str | None, home: Home) -> AsyncIterator[ImageBuilder]:
    """Leaves no image of the home in the engine, and asserts that no build left a container."""
    async with ImageBuilder(name, socket) as builder:
        try:
            yield builder
            assert await builder.leftovers(owner_of(home)) == []
        finally:
            api = EngineApi(name, socket)
            for image in await builder.images():
                if image.owner == owner_of(home):
                    await remove_image(api, image.id)
            await api.aclose()
