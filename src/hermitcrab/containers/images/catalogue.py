"""Every image that Hermitcrab made for this home, and the removal of those that nothing needs any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anyio import to_thread

from hermitcrab.containers.engines.bubblewrap_records import Shelf
from hermitcrab.containers.engines.docker_api import EngineName
from hermitcrab.containers.engines.docker_builder import ImageBuilder
from hermitcrab.containers.images.desk import owner_of
from hermitcrab.containers.images.shelf import FolderImage, ImageShelf
from hermitcrab.errors import EngineError
from hermitcrab.logic.engine_images import EngineImage
from hermitcrab.logic.image_recipe import BuildLimits
from hermitcrab.settings.home import Home


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    engine: str
    image: str
    """Its id, or its folder."""
    kind: str
    names: tuple[str, ...]
    size_bytes: int
    created: int
    use: Literal["container", "group", "name", ""]
    """Why it is kept: a container has it, a group or the settings name it, it is the agent image of some version."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    images: tuple[ListedImage, ...]
    problems: dict[str, str]
    """Engines that could not be asked, and why: what they have is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    image: ListedImage
    kept_because: str
    """Empty: it is gone, or would be."""


async def catalogue(home: Home, sockets: dict[EngineName, str], kept: set[str]) -> Catalogue:
    """Images with this home's label. `kept`: ids, names and folders that this home may still need."""
    found = await to_thread.run_sync(_folders, home, kept)
    problems: dict[str, str] = {}
    for engine, socket in sockets.items():
        try:
            async with ImageBuilder(engine, socket) as builder:
                used = await builder.used_images()
                found += [
                    _of_engine(engine, each, used, kept)
                    for each in await builder.images()
                    if each.owner == owner_of(home)
                ]
        except EngineError as error:
            problems[engine] = error.message
    return Catalogue(tuple(found), problems)


async def prune(home: Home, sockets: dict[EngineName, str], kept: set[str], *, dry_run: bool) -> list[Removal]:
    """Remove what the catalogue shows no use of. The engine has the last word, and may know of one."""
    removals = []
    for image in (await catalogue(home, sockets, kept)).images:
        if image.use:
            continue
        why = ""
        if not dry_run:
            why = await _remove(home, sockets, image)
        removals.append(Removal(image=image, kept_because=why))
    return removals


async def _remove(home: Home, sockets: dict[EngineName, str], image: ListedImage) -> str:
    if image.engine == "bubblewrap":
        shelf = _shelf(home)
        folder = next((each for each in shelf.images() if each.path == image.image), None)
        if folder is not None:
            await to_thread.run_sync(shelf.remove, folder)
        return ""
    for engine, socket in sockets.items():
        if engine == image.engine:
            async with ImageBuilder(engine, socket) as builder:
                return await builder.remove(image.image)
    return f"{image.engine} is not there"


def _of_engine(engine: str, image: EngineImage, used: set[str], kept: set[str]) -> ListedImage:
    use: Literal["container", "group", "name", ""] = ""
    if image.id in used:
        use = "container"
    elif kept & {image.id, image.id.removeprefix("sha256:"), *image.names}:
        use = "group"
    elif image.kind == "agent" and image.names:
        use = "name"
    return ListedImage(
        engine=engine,
        image=image.id,
        kind=image.kind,
        names=image.names,
        size_bytes=image.size_bytes,
        created=image.created,
        use=use,
    )


def _folders(home: Home, kept: set[str]) -> list[ListedImage]:
    records = [each.record() for each in Shelf(home.engine_folder("bubblewrap")).all()]
    used = {record.spec.image for record in records if record is not None}
    return [_of_folder(each, used, kept) for each in _shelf(home).images()]


def _of_folder(image: FolderImage, used: set[str | None], kept: set[str]) -> ListedImage:
    return ListedImage(
        engine="bubblewrap",
        image=image.path,
        kind=image.kind,
        names=(image.name,),
        size_bytes=image.size_bytes,
        created=image.created,
        use="container" if image.path in used else "group" if image.path in kept else "",
    )


def _shelf(home: Home) -> ImageShelf:
    return ImageShelf(home.images, BuildLimits())
