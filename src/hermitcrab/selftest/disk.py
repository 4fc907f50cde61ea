"""A small disk for the scratch home, so that it can be filled without harm to anybody else."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from anyio import to_thread

DISK_BYTES = 512 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk of DISK_BYTES in memory at `folder`, or None where this user may mount nothing."""
    mounted = False
    if os.geteuid() == 0 and shutil.which("mount") is not None:
        options = f"size={DISK_BYTES},mode=755"
        command = ["mount", "-t", "tmpfs", "-o", options, "hermitcrab-selftest", str(folder)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            unmount(folder)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def fill_disk(disk: Path, seconds: float) -> None:
    """Take every byte that is left on the small disk, for a while."""
    ballast = disk / f"ballast-{secrets.token_hex(4)}"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            block = bytes(_BLOCK_BYTES)
            while block:
                try:
                    file.write(block)
                except OSError:
                    block = block[: len(block) // 2]

    try:
        await to_thread.run_sync(fill)
        await anyio.sleep(seconds)
    finally:
        ballast.unlink(missing_ok=True)
