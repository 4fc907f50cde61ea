"""`crab image`: the images that containers are made from."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from hermitcrab.channels.terminal.render import plain
from hermitcrab.cli.output import GivenHome, Json, print_json, print_line, print_table
from hermitcrab.containers.images.desk import ImageDesk
from hermitcrab.containers.images.engines import open_builder, unpack_archive, unpack_image
from hermitcrab.containers.images.shelf import ImageShelf
from hermitcrab.control.client import ControlClient
from hermitcrab.errors import BadInputError, HostUnreachableError
from hermitcrab.groups.images import GroupImages
from hermitcrab.settings.load import load
from hermitcrab.store.database import Store

EngineChoice = Literal["docker", "podman", "bubblewrap"]


async def build(
    *,
    group: Annotated[str | None, Parameter(help="Make this group's image, with its packages. Needs the host.")] = None,
    engine: Annotated[EngineChoice | None, Parameter(help="For which engine (default: the setting's).")] = None,
    base: Annotated[str | None, Parameter(help="The image to start from (default: an official slim Python).")] = None,
    wheels: Annotated[
        str | None, Parameter(help="A folder of wheels to install instead of fetching Node.js and Claude Code.")
    ] = None,
    tag: Annotated[str | None, Parameter(help="The image's name (default: the one that containers use).")] = None,
    json: Json = False,
    home: GivenHome,
) -> None:
    """Make the agent image, or a group's own. The log goes to stderr; packages are fetched first, the build has no net.

    For bubblewrap the image is unpacked into a folder; --base may then be the path of a root file system's tar archive.
    """
    if group is not None:
        if any(each is not None for each in (engine, base, wheels, tag)):
            raise BadInputError("--group goes alone: the group's config and the host's settings say the rest.")
        built = await _build_group(home, group)
        _print_built(built, f"Group {group} has its image ({built['image']}) from its next container on.", json=json)
        return
    home.prepare()
    settings = load(home.path)
    chosen = engine or settings.containers.engine
    folder_of_wheels = None if wheels is None else Path(wheels)
    desk = ImageDesk(home, settings.images)
    shelf = ImageShelf(home.images, desk.limits)
    if chosen == "bubblewrap" and base is not None and base.startswith("/"):
        folder = await unpack_archive(Path(base), shelf, progress=_tell)
        _print_built({"engine": chosen, **asdict(folder)}, _use_folder(folder.path), json=json)
        return
    async with open_builder(chosen, settings.containers) as builder:
        made = await desk.build_agent(builder, progress=_tell, base=base, name=tag, wheels=folder_of_wheels)
        state = "is ready" if made.fresh else "is up to date"
        if chosen == "bubblewrap":
            folder = await unpack_image(builder, made, shelf, owner=desk.owner, kind="agent", progress=_tell)
            _print_built({"engine": chosen, "fresh": made.fresh, **asdict(folder)}, _use_folder(folder.path), json=json)
            return
    values = {
        "engine": chosen,
        "image": made.name,
        "id": made.image,
        "recipe": made.recipe,
        "fresh": made.fresh,
        "log": made.log,
    }
    _print_built(values, f"{made.name} {state} ({made.image[:19]}).", json=json)


async def list_images(*, json: Json = False, home: GivenHome) -> None:
    """Every image that was made here, and what needs it."""
    async with _images(home) as images:
        found = await images.catalogue()
    if json:
        print_json(found)
        return
    print_table(
        ("ENGINE", "IMAGE", "KIND", "NAMES", "MB", "MADE", "NEEDED BY"),
        [(*_row(each), each["use"] or "nothing") for each in found["images"]],
        empty="No image was made here yet: crab image build",
    )
    for engine, problem in found["problems"].items():
        print_line(f"What {engine} has is not known: {problem}", "warning", stderr=True)


async def prune(
    *,
    dry_run: Annotated[bool, Parameter(help="Only say what would be removed.", negative="")] = False,
    json: Json = False,
    home: GivenHome,
) -> None:
    """Remove the images that no container, no group and no setting needs. Others' images are never touched."""
    async with _images(home) as images:
        removals = await images.prune(dry_run=dry_run)
    if json:
        print_json(removals)
        return
    done = "would be removed" if dry_run else "removed"
    print_table(
        ("ENGINE", "IMAGE", "KIND", "NAMES", "MB", "MADE", "OUTCOME"),
        [
            (*_row(each["image"]), f"kept: {each['kept_because']}" if each["kept_because"] else done)
            for each in removals
        ],
        empty="Every image is needed.",
    )


class _OverHost:
    """Asks the running host, which knows what it builds now."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    async def catalogue(self) -> dict[str, Any]:
        return await self._client.call("images.list")

    async def prune(self, *, dry_run: bool) -> list[dict[str, Any]]:
        found = await self._client.call("images.prune", dry_run=dry_run)
        return list(found["removals"])


class _ByStore:
    """Looks by itself, as no host runs."""

    def __init__(self, images: GroupImages) -> None:
        self._images = images

    async def catalogue(self) -> dict[str, Any]:
        return asdict(await self._images.catalogue())

    async def prune(self, *, dry_run: bool) -> list[dict[str, Any]]:
        return [asdict(each) for each in await self._images.prune(dry_run=dry_run)]


@asynccontextmanager
async def _images(home: GivenHome) -> AsyncIterator[_OverHost | _ByStore]:
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(ControlClient.connect(home))
        except HostUnreachableError:
            home.prepare()
            settings = load(home.path)
            store = await stack.enter_async_context(Store.open(home.database))
            yield _ByStore(GroupImages(store, home, settings, engine=settings.containers.engine, default=None))
        else:
            yield _OverHost(client)


async def _build_group(home: GivenHome, group: str) -> dict[str, Any]:
    built: dict[str, Any] = {}
    async with ControlClient.connect(home) as client, aclosing(client.stream("images.build", group=group)) as events:
        async for event in events:
            if "line" in event:
                _tell(str(event["line"]))
            built = event.get("built", built)
    return built


def _tell(line: str) -> None:
    print(plain(line), file=sys.stderr)


def _print_built(values: dict[str, Any], text: str, *, json: bool) -> None:
    if json:
        print_json(values)
    else:
        print(text)


def _use_folder(path: str) -> str:
    return (
        f"The image lies in {path}. Containers have it when the setting containers.image, or a group's image, says so."
    )


def _row(image: dict[str, Any]) -> tuple[object, ...]:
    made = datetime.fromtimestamp(image["created"], UTC).strftime("%Y-%m-%d %H:%M")
    shown = image["image"] if image["engine"] == "bubblewrap" else image["image"].removeprefix("sha256:")[:12]
    return image["engine"], shown, image["kind"], list(image["names"]), round(image["size_bytes"] / 1e6), made
