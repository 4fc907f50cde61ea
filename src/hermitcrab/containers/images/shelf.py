"""Unpacked images of one home, one folder each, that bubblewrap's containers can have as their root."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from hermitcrab.containers.file_lock import locked, write_note
from hermitcrab.containers.images.unpacking import Unpacked, unpack
from hermitcrab.errors import BadInputError, EngineError, Failure
from hermitcrab.logic.image_recipe import BuildLimits

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderImage:
    """What is known of an unpacked image. It lies beside the folder, where no container sees it."""

    path: str
    kind: str
    name: str
    engine: str
    """Where it was unpacked from: docker, podman, or nothing for an archive."""
    source: str
    """The image's id there, or the archive's path."""
    size_bytes: int
    created: int


class ImageShelf:
    """`<home>/images/<id>.root` and `<id>.json`. The same source is unpacked once."""

    def __init__(self, folder: Path, limits: BuildLimits) -> None:
        self._folder, self._limits = folder, limits

    def find(self, identity: str) -> FolderImage | None:
        root, about = self._places(identity)
        if not (root.is_dir() and about.is_file()):
            return None
        return FolderImage(**json.loads(about.read_text()))

    def images(self) -> list[FolderImage]:
        """Every one, the newest first."""
        found = [self.find(path.stem) for path in self._folder.glob("*.json")]
        return sorted((each for each in found if each is not None), key=lambda each: -each.created)

    def remove(self, image: FolderImage) -> None:
        root = Path(image.path)
        assert root.parent == self._folder
        root.with_suffix(".json").unlink(missing_ok=True)  # first: half a folder must not pass for an image
        shutil.rmtree(root)

    async def put(
        self,
        identity: str,
        archive: AbstractAsyncContextManager[AsyncIterator[bytes]],
        *,
        kind: str,
        name: str,
        engine: str,
        source: str,
        progress: Progress,
    ) -> FolderImage:
        """Unpack the archive as the image `identity`. What is half done at an error, or a kill, never counts.

        The archive is opened when it is this one's turn, and not at all if the image is there by then.
        """
        self._folder.mkdir(exist_ok=True)
        root, about = self._places(identity)
        making = root.with_suffix(".making")
        async with self.alone(progress):
            if (there := self.find(identity)) is not None:
                return there
            progress(f"Unpacking {name} into {root}")
            await anyio.to_thread.run_sync(_clear, making, root)
            try:
                making.mkdir(mode=0o700)
                async with archive as content:
                    unpacked = await self._unpack(content, making)
                if not (making / "usr").is_dir() or (making / "usr").is_symlink():
                    raise EngineError(
                        Failure.IMAGE_UNAVAILABLE, f"{source} is no root file system: there is no folder /usr in it"
                    )
                making.chmod(0o755)
                making.rename(root)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(_clear, making)
            for each in unpacked.left_out:
                progress(f"Left out: {each!r}")
            image = FolderImage(
                path=str(root),
                kind=kind,
                name=name,
                engine=engine,
                source=source,
                size_bytes=unpacked.size_bytes,
                created=int(time.time()),
            )
            await anyio.to_thread.run_sync(write_note, about, json.dumps(asdict(image)))
        return image

    @property
    def exporting(self) -> Path:
        """There while an image is read out of an engine, and after whoever did that was killed; says which engine."""
        return self._folder / ".exporting"

    def alone(self, progress: Progress) -> AbstractAsyncContextManager[None]:
        """For whoever unpacks an image of this home, one at a time over all processes."""
        return locked(self._folder / ".unpacking.lock", progress, "another image of this home is being unpacked")

    async def _unpack(self, archive: AsyncIterator[bytes], making: Path) -> Unpacked:
        """The archive goes through a file without a name: what reads it blocks, and what brings it may be slow."""
        most = self.bytes_at_most
        with anyio.fail_after(self._limits.seconds), tempfile.TemporaryFile(dir=self._folder) as spool:
            size = 0
            async for chunk in archive:
                size += len(chunk)
                if size > most:
                    raise EngineError(Failure.RESOURCES_EXHAUSTED, f"The image is larger than {most // 1024**2} MB")
                await anyio.to_thread.run_sync(spool.write, chunk)
            spool.seek(0)
            return await anyio.to_thread.run_sync(lambda: unpack(spool, making, bytes_at_most=most))

    @property
    def bytes_at_most(self) -> int:
        """An image may be as large as a build may make it, on top of a large parent."""
        return self._limits.disk_bytes + 4 * 1024**3

    def _places(self, identity: str) -> tuple[Path, Path]:
        if not identity.isalnum():
            raise BadInputError(f"{identity!r} is not the id of an image")
        return self._folder / f"{identity}.root", self._folder / f"{identity}.json"


def _clear(*folders: Path) -> None:
    for each in folders:
        if each.exists():
            shutil.rmtree(each)
