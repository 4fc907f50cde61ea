"""Host-written files of a group, as a folder named after its content that nobody changes any more.

Sessions of one group start at different times, with different skills and instructions: each container keeps the folder
that it was started with, and its path in the mounts makes the spec's hash tell of every change in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from hermitcrab.model.documents import Document

KEPT = 8
"""Folders that stay however old they are."""

UNUSED_FOR_S = 7 * 86_400.0
"""Nothing starts or adopts a container with a folder for so long: then none lives with it."""

_DIGEST_CHARACTERS = 16


def publish(place: Path, documents: Mapping[str, Document], *, folders: Iterable[str] = ()) -> Path:
    """`place`/<digest> with these documents by their relative path, and empty `folders`. Blocks. Idempotent."""
    folders = sorted(folders)
    target = folder_of(place, documents, folders=folders)
    if _is_whole(target, documents, folders):
        os.utime(target)
        return target
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix=".new-", ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / "made"
        _write(made, documents, folders)
        for _ in range(2):
            try:
                made.rename(target)
                break
            except OSError:
                if _is_whole(target, documents, folders):
                    break  # Another session of the group was faster.
                # A crash of the machine left its files short.
                target.rename(Path(scratch) / "damaged")
    _tidy(place, target)
    return target


def folder_of(place: Path, documents: Mapping[str, Document], *, folders: Iterable[str] = ()) -> Path:
    """The folder that `publish` makes of these."""
    return place / _digest(documents, sorted(folders))


def _digest(documents: Mapping[str, Document], folders: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in folders:
        digest.update(f"folder {name}\0".encode())
    for name, document in sorted(documents.items()):
        digest.update(f"{name}\0{document.executable}\0{len(document.content)}\0".encode("utf-8", "surrogateescape"))
        digest.update(document.content)
    return digest.hexdigest()[:_DIGEST_CHARACTERS]


def _is_whole(target: Path, documents: Mapping[str, Document], folders: Iterable[str]) -> bool:
    try:
        return all((target / name).is_dir() for name in (".", *folders)) and all(
            (target / name).stat().st_size == len(document.content) for name, document in documents.items()
        )
    except OSError:
        return False


def _write(made: Path, documents: Mapping[str, Document], folders: Iterable[str]) -> None:
    made.mkdir()
    for name in folders:
        (made / name).mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document.content)
        path.chmod(0o755 if document.executable else 0o644)
    for folder in (made, *(each for each in made.rglob("*") if each.is_dir())):
        folder.chmod(0o755)


def _tidy(place: Path, current: Path) -> None:
    """Remove what no container can be using any more, what a crash left half made included."""
    now = time.time()
    ages: list[tuple[float, Path]] = []
    for each in place.iterdir():
        try:
            ages.append((now - each.stat().st_mtime, each))
        except FileNotFoundError:
            continue
    ages.sort()
    for number, (age, each) in enumerate(ages):
        if each != current and number >= KEPT and age > UNUSED_FOR_S:
            shutil.rmtree(each, ignore_errors=True)
