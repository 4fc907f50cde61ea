"""Which Python an image has: a container of it is asked once, and the answer kept. Used by `docker.py`."""

from __future__ import annotations

import re
from pathlib import Path

from anyio import to_thread

from hermitcrab.containers.engines.docker_api import EngineName
from hermitcrab.containers.engines.docker_builder import ImageBuilder
from hermitcrab.containers.file_lock import write_note
from hermitcrab.errors import EngineError, Failure

_SCRIPT = "python3 -c 'import sys; print(\"python\", *sys.version_info[:2])'"
_ANSWER = re.compile(r"python (\d+) (\d+)", re.ASCII)
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")


async def python_of(image: str, *, engine: EngineName, socket: str | None, asker: str, folder: Path) -> tuple[int, int]:
    """The version of the `python3` in the image of that id. `folder`: where the answers are kept.

    `asker` is in the name of the container that is asked, so that one that a killed host left is found and removed.
    """
    found = _ID.fullmatch(image)
    note = folder / found[1] if found is not None else None
    if note is not None and (known := _version(await to_thread.run_sync(_read, note))) is not None:
        return known
    name = f"hermitcrab-python-{asker}"
    async with ImageBuilder(engine, socket) as builder:
        await builder.remove_leftover(name)
        async with builder.probe(image, _SCRIPT, owner=asker, name=name) as probe:
            lines = await probe.output()
    version = next(filter(None, map(_version, lines)), None)
    if version is None:
        raise EngineError(
            Failure.IMAGE_UNAVAILABLE,
            f"The image {image} has no python3 that runs",
            hint="The runner needs Python 3.11 or newer in the image; crab image build makes one that has it.",
        )
    if note is not None:
        await to_thread.run_sync(_keep, note, "python {} {}".format(*version))
    return version


def _version(text: str) -> tuple[int, int] | None:
    found = _ANSWER.fullmatch(text.strip())
    return None if found is None else (int(found[1]), int(found[2]))


def _read(note: Path) -> str:
    try:
        return note.read_text()
    except FileNotFoundError:
        return ""


def _keep(note: Path, text: str) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    write_note(note, text)
