"""An agent group's image: which one its containers start from, and how it gets one of its own with its packages.

The image in use changes only when a new one is whole. A build that fails leaves the old one in use, and why it failed
is kept for whoever asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

import anyio
import structlog
from anyio import to_thread

from hermitcrab.containers.engines.docker_builder import ImageBuilder
from hermitcrab.containers.images.catalogue import Catalogue, Removal, catalogue, prune
from hermitcrab.containers.images.desk import Built, ImageDesk, default_tag
from hermitcrab.containers.images.engines import clear_export, open_builder, sockets, unpack_image
from hermitcrab.containers.images.shelf import ImageShelf
from hermitcrab.errors import ConflictError, EngineError, HermitcrabError
from hermitcrab.logic.image_packages import PackageList, parse_packages
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import AgentGroupId
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import Settings
from hermitcrab.store import agent_groups, container_configs, group_images
from hermitcrab.store.database import Store

log = structlog.get_logger(__name__)

Progress = Callable[[str], object]

FAILURE_CHARACTERS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBuilt:
    """A group's image, in use from its next container on."""

    group: str
    image: str
    """The engine's id of it, or its folder for bubblewrap."""
    packages: dict[str, list[str]]
    fresh: bool
    """False: this very image was there already."""
    log: Path | None


class GroupImages:
    def __init__(self, store: Store, home: Home, settings: Settings, *, engine: str, default: str | None) -> None:
        self._store, self._home, self._settings = store, home, settings
        self._engine, self.default = engine, default
        self._building: set[AgentGroupId] = set()

    async def image_for(self, group: AgentGroup, config: ContainerConfig) -> str | None:
        """What the group's next container starts from. None: the host's own programs (bubblewrap).

        A group whose packages were never installed yet starts without them.
        """
        if config.packages:
            made = await self._store.read(lambda connection: group_images.of(connection, group.id))
            if made is not None and made.image is not None and made.engine == self._engine:
                return made.image
        return config.image or self.default

    async def build(self, group: AgentGroup, *, progress: Progress) -> GroupBuilt:
        """Make the group's image from its packages as they stand now. Raises what went wrong, after noting it."""
        if group.id in self._building:
            raise ConflictError(f"The image of group {group.folder} is being made already")
        config = await self._store.read(lambda connection: container_configs.of(connection, group.id))
        packages = parse_packages(apt=config.packages.apt, npm=config.packages.npm, pip=config.packages.pip)
        self._building.add(group.id)
        try:
            image, built = await self._make(group, config, packages, progress)
        except HermitcrabError as error:
            failure = f"{error.message}\n{error.hint}".strip()[-FAILURE_CHARACTERS:]
            await self._note(
                lambda connection: group_images.failed(connection, group.id, engine=self._engine, failure=failure)
            )
            log.warning("image.failed", group=group.folder, reason=error.message.splitlines()[0])
            if not isinstance(error, EngineError):
                raise
            told = f"{error.message}\nGroup {group.folder} keeps the image that it has."
            raise EngineError(error.failure, told, hint=error.hint) from error
        finally:
            self._building.discard(group.id)
        await self._note(
            lambda connection: group_images.built(
                connection, group.id, engine=self._engine, image=image, packages=json.dumps(packages.texts)
            )
        )
        log.info("image.built", group=group.folder, image=image[:80], fresh=built.fresh)
        return GroupBuilt(group=group.folder, image=image, packages=packages.texts, fresh=built.fresh, log=built.log)

    async def clear_leftovers(self) -> None:
        """Remove what an earlier host left in an engine when it was killed. Raises EngineError; the next host tries."""
        desk = ImageDesk(self._home, self._settings.images)
        shelf = ImageShelf(self._home.images, desk.limits)
        await clear_export(shelf, self._settings.containers, owner=desk.owner)

    async def catalogue(self) -> Catalogue:
        """Every image that was made for this home."""
        return await catalogue(self._home, sockets(self._settings.containers), await self._kept())

    async def prune(self, *, dry_run: bool) -> list[Removal]:
        """Remove the images that nothing needs. Not while one is made, which nothing needs yet."""
        if self._building:
            raise ConflictError("An image is being made now; try again when it is done")
        return await prune(self._home, sockets(self._settings.containers), await self._kept(), dry_run=dry_run)

    async def shortcoming(self, group: AgentGroup, config: ContainerConfig) -> str | None:
        """What of the group's packages its next container has not, and why, in a sentence; None when it has them."""
        if not config.packages:
            return None
        made = await self._store.read(lambda connection: group_images.of(connection, group.id))
        wanted = parse_packages(apt=config.packages.apt, npm=config.packages.npm, pip=config.packages.pip).texts
        if made is None or made.image is None or made.engine != self._engine:
            told = "The packages are in no image yet"
        elif json.loads(made.packages) != wanted:
            told = "The image was made with other packages than these"
        else:
            return None
        if made is not None and made.failure:
            first = made.failure.splitlines()[0].removesuffix(" Its log ends with:")
            told += f", and the newest build failed: {first}"
        return told

    async def _kept(self) -> set[str]:
        return await self._store.read(lambda connection: images_kept(connection, self._settings))

    async def _make(
        self, group: AgentGroup, config: ContainerConfig, packages: PackageList, progress: Progress
    ) -> tuple[str, Built]:
        desk = ImageDesk(self._home, self._settings.images)
        async with open_builder(self._engine, self._settings.containers) as builder:
            parent = config.image or self.default
            shelf = ImageShelf(self._home.images, desk.limits)
            if self._engine == "bubblewrap":
                parent = await to_thread.run_sync(_source_of, shelf, parent, builder)
            built = await desk.build_group(
                builder, folder=group.folder, parent=parent or default_tag(), packages=packages, progress=progress
            )
            if self._engine != "bubblewrap":
                return built.image, built
            folder = await unpack_image(builder, built, shelf, owner=desk.owner, kind="group", progress=progress)
            return folder.path, built

    async def _note(self, function: Callable[[Connection], None]) -> None:
        with anyio.CancelScope(shield=True):
            await self._store.write(function)


def images_kept(connection: Connection, settings: Settings) -> set[str]:
    """Every image that this home may need: of the settings, of each group's config, and the ones made for groups.

    One that was made for a group which has no packages any more is not among them: its next packages make another.
    """
    kept = {settings.containers.image} if settings.containers.image else set()
    for group in agent_groups.all_groups(connection):
        document = container_configs.document(connection, group.id)
        made = group_images.of(connection, group.id)
        if made is not None and made.image is not None and document.get("packages"):
            kept.add(made.image)
        if isinstance(found := document.get("image"), str):
            kept.add(found)
    return kept


def _source_of(shelf: ImageShelf, folder: str | None, builder: ImageBuilder) -> str | None:
    """From which image of the builder's engine a folder was unpacked; None where it cannot be told."""
    for image in shelf.images():
        if image.path == folder and image.engine == builder.engine:
            return image.source
    return None
