"""Who can make images on this machine, and how an image gets from there into a folder for bubblewrap."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio import to_thread

from hermitcrab.containers.engines.docker_api import EngineName, usual_sockets
from hermitcrab.containers.engines.docker_builder import ImageBuilder
from hermitcrab.containers.file_lock import write_note
from hermitcrab.containers.images.desk import Built
from hermitcrab.containers.images.shelf import FolderImage, ImageShelf, Progress
from hermitcrab.errors import BadInputError, EngineError, Failure
from hermitcrab.settings.model import ContainerSettings

BUILDERS: tuple[EngineName, ...] = ("docker", "podman")

_CHUNK_BYTES = 1024 * 1024


def sockets(settings: ContainerSettings) -> dict[EngineName, str]:
    """The engines that have a socket here, by name."""
    found: dict[EngineName, str] = {}
    for engine in BUILDERS:
        place = next((each for each in _places(engine, settings) if Path(each).is_socket()), None)
        if place is not None:
            found[engine] = place
    return found


def open_builder(engine: str, settings: ContainerSettings) -> ImageBuilder:
    """The builder of one engine. For bubblewrap it is Docker or Podman, whichever is here: its images come from there.

    Raises EngineError `runtime-unavailable` when there is none.
    """
    if engine not in ("bubblewrap", *BUILDERS):
        raise BadInputError(f"The engine {engine} makes no images", hint="Those that do: docker, podman, bubblewrap.")
    found = sockets(settings)
    wanted: list[EngineName] = [each for each in BUILDERS if engine in (each, "bubblewrap")]
    chosen = next((each for each in wanted if each in found), None)
    if chosen is None:
        places = [place for each in wanted for place in _places(each, settings)]
        hint = f"Start it, or name its socket in containers.{engine}_socket. crab doctor says more."
        if engine == "bubblewrap":
            hint = (
                "Images for bubblewrap are made with one of them; or unpack a root file system: --base /path/root.tar"
            )
        raise EngineError(
            Failure.RUNTIME_UNAVAILABLE, f"No {' or '.join(wanted)} answers on {' or '.join(places)}.", hint=hint
        )
    return ImageBuilder(chosen, found[chosen])


async def unpack_image(
    builder: ImageBuilder, built: Built, shelf: ImageShelf, *, owner: str, kind: str, progress: Progress
) -> FolderImage:
    """The image as a folder, unpacked now if it was not before."""
    identity = built.image.removeprefix("sha256:")[:16]
    there = shelf.find(identity)
    if there is not None:
        return there

    @asynccontextmanager
    async def exported() -> AsyncIterator[AsyncIterator[bytes]]:
        await to_thread.run_sync(write_note, shelf.exporting, builder.engine)
        async with builder.root(built.image, owner=owner) as archive:
            yield archive
        shelf.exporting.unlink(missing_ok=True)  # Not after a failure: what is left then is looked for.

    return await shelf.put(
        identity,
        exported(),
        kind=kind,
        name=built.name,
        engine=builder.engine,
        source=built.image,
        progress=progress,
    )


async def clear_export(shelf: ImageShelf, settings: ContainerSettings, *, owner: str) -> None:
    """Remove the container that a host, or a command, left when it was killed while it unpacked an image.

    Raises EngineError when the engine cannot be asked; the next host tries again.
    """
    if not shelf.exporting.exists():
        return
    async with shelf.alone(lambda _: None):
        try:
            noted = shelf.exporting.read_text()
        except FileNotFoundError:
            return  # Somebody was at it, and has come to its end.
        for engine, place in sockets(settings).items():
            if engine == noted:
                async with ImageBuilder(engine, place) as builder:
                    await builder.remove_export(owner)
                shelf.exporting.unlink(missing_ok=True)


async def unpack_archive(archive: Path, shelf: ImageShelf, *, progress: Progress) -> FolderImage:
    """A root file system from a tar archive, as mmdebstrap makes them, as a folder."""
    try:
        found = await anyio.Path(archive).stat()
    except OSError as error:
        raise BadInputError(f"{archive} cannot be read: {error.strerror}") from error
    # As quick as a look at it: the archive is the operator's own, and a changed one has another size or time.
    identity = f"{found.st_ino:x}x{found.st_size:x}x{found.st_mtime_ns:x}"[:64]
    there = shelf.find(identity)
    if there is not None:
        return there

    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncIterator[bytes]]:
        async with await anyio.open_file(archive, "rb") as file:
            yield _chunks(file)

    return await shelf.put(
        identity, opened(), kind="agent", name=archive.name, engine="", source=str(archive), progress=progress
    )


async def _chunks(file: anyio.AsyncFile[bytes]) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk


def _places(engine: EngineName, settings: ContainerSettings) -> list[str]:
    told = settings.docker_socket if engine == "docker" else settings.podman_socket
    return [told.removeprefix("unix://")] if told else usual_sockets(engine, os.environ)
