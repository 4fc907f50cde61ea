"""Unpacked images: whole or not there, whatever happens on the way."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from hermitcrab.containers.images.shelf import FolderImage, ImageShelf
from hermitcrab.errors import BadInputError, EngineError, Failure
from hermitcrab.logic.image_recipe import BuildLimits


def root_archive(*names: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"true"))
    return content.getvalue()


ROOT = root_archive("usr/bin/true", "etc/hostname")


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1000):
        await anyio.lowlevel.checkpoint()
        yield content[start : start + 1000]


async def put(shelf: ImageShelf, archive: AsyncIterator[bytes], told: list[str], identity: str = "abc1") -> FolderImage:
    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncIterator[bytes]]:
        yield archive

    return await shelf.put(
        identity, opened(), kind="agent", name="agent:1", engine="docker", source="sha256:1", progress=told.append
    )


def left(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.suffix != ".lock")


async def test_two_who_want_one_image_unpack_it_once(tmp_path: Path) -> None:
    shelf, told = ImageShelf(tmp_path, BuildLimits()), list[str]()
    found: list[FolderImage] = []

    async def want() -> None:
        found.append(await put(shelf, chunks(ROOT), told))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(want)
        tasks.start_soon(want)
    assert found[0] == found[1] == shelf.find("abc1")
    assert sum("Unpacking" in line for line in told) == 1
    assert left(tmp_path) == ["abc1.json", "abc1.root"]


@pytest.mark.parametrize("how", ["cut off", "cancelled", "too large", "no root"])
async def test_what_was_not_unpacked_whole_is_not_there(tmp_path: Path, how: str) -> None:
    shelf = ImageShelf(tmp_path, BuildLimits(disk_bytes=-4 * 1024**3 + 2000) if how == "too large" else BuildLimits())

    async def stuck() -> AsyncIterator[bytes]:
        yield ROOT[:2000]
        await anyio.sleep_forever()

    if how == "cancelled":
        with anyio.move_on_after(0.2) as scope:
            await put(shelf, stuck(), [])
        assert scope.cancelled_caught
    else:
        content = {"cut off": ROOT[:700], "too large": ROOT, "no root": root_archive("bin/true")}[how]
        with pytest.raises(EngineError) as raised:
            await put(shelf, chunks(content), [])
        expected = Failure.RESOURCES_EXHAUSTED if how == "too large" else Failure.IMAGE_UNAVAILABLE
        assert raised.value.failure is expected
    assert left(tmp_path) == []
    assert shelf.images() == []


async def test_what_a_killed_host_left_half_done_is_cleared_away(tmp_path: Path) -> None:
    shelf = ImageShelf(tmp_path, BuildLimits())
    (tmp_path / "abc1.making/usr").mkdir(parents=True)
    (tmp_path / "abc1.root/usr").mkdir(parents=True)  # renamed, but its end was never written down
    assert shelf.find("abc1") is None
    image = await put(shelf, chunks(ROOT), [])
    assert Path(image.path, "usr/bin/true").read_text() == "true"  # noqa: ASYNC240
    assert left(tmp_path) == ["abc1.json", "abc1.root"]
    (tmp_path / "abc1.json").unlink()
    assert shelf.images() == []


@pytest.mark.parametrize("identity", ["", "../x", "a/b", ".", "a b"])
async def test_an_identity_leads_nowhere_else(tmp_path: Path, identity: str) -> None:
    with pytest.raises(BadInputError):
        await put(ImageShelf(tmp_path, BuildLimits()), chunks(ROOT), [], identity)
