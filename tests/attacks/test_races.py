"""Family B, lines 18 and 21: agents that swap files and folders for links, over and over, while the host looks at them."""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from hermitcrab.containers.disk import trees
from hermitcrab.containers.disk.measuring import measure
from hermitcrab.logic.workspace import MEBIBYTE, Allowance
from hermitcrab.testing.engine_harness import Ends
from hermitcrab.testing.intruder import intrude
from hermitcrab.testing.scratch import host_on

every_engine = pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])
SWAPS = 10_000
LOOKS = 300

SWAP = """
tree = "/workspace/tree"
os.makedirs(tree + "/folder/inner")
write(tree + "/file", b"mine")
write(tree + "/folder/inner/file", b"mine")
os.symlink(SECRETS + "/file", tree + "/file-link")
os.symlink(SECRETS, tree + "/folder-link")
os.symlink(SECRETS, tree + "/folder/inner-link")
libc = ctypes.CDLL(None, use_errno=True)
swaps = 0
while swaps < AT_LEAST or not os.path.exists("/workspace/stop"):
    for name in ("file", "folder", "folder/inner"):
        here, there = f"{tree}/{name}".encode(), f"{tree}/{name}-link".encode()
        # An exchange in one step; of "inner" only while it is where it belongs.
        swaps += libc.renameat2(-100, here, -100, there, 2) == 0
answer(swaps)
"""


def look(work: Path, seen: set[bytes]) -> None:
    """All that the host ever does in there: an export's walk, which reads everything, and the measuring."""
    with suppress(OSError):  # An export is made of what stands still; this does not.
        for _, opened in trees.walk(work):
            if opened is not None:
                seen.add(opened.read(4096))
    used = measure([work], Allowance(bytes=1 << 40, files=1 << 30))
    assert used.bytes < MEBIBYTE


@every_engine
async def test_ten_thousand_swaps_lead_the_host_nowhere(engine: str, options: dict[str, Any], tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    (secrets / "inner").mkdir(parents=True)
    for path in (secrets / "file", secrets / "inner" / "file"):
        path.write_bytes(b"CANARY" * MEBIBYTE)
    async with host_on(tmp_path / "home", engine, **options) as (host, _):
        intruder = await intrude(host, "swapper")
        seen: set[bytes] = set()

        def look_again_and_again() -> None:
            looks = 0
            while looks < LOOKS or b"mine" not in seen:
                look(intruder.folders.work, seen)
                looks += (intruder.folders.work / "tree" / "folder" / "inner-link").is_symlink()
            (intruder.folders.work / "stop").touch()

        async with Ends(host.engine) as ends:
            await intruder.launch(f"SECRETS, AT_LEAST = {str(secrets)!r}, {SWAPS}\n{SWAP}")
            await to_thread.run_sync(look_again_and_again)
            await ends.of(intruder.name)
        (line,) = [each for each in await host.engine.logs(intruder.name, lines=10) if each.startswith("answer ")]
        assert int(line.removeprefix("answer ")) >= SWAPS
        assert seen - {b""} == {b"mine"}
        await host.engine.remove(intruder.name)
        # And once it has ended, what is removed is the agent's own.
        await to_thread.run_sync(trees.remove, intruder.folders.work)
        assert sorted(each.name for each in secrets.rglob("*")) == ["file", "file", "inner"]


def test_what_is_removed_while_it_is_swapped_is_never_what_a_link_leads_to(tmp_path: Path) -> None:
    """As a rule the container has ended before; this is what holds without that."""
    libc = ctypes.CDLL(None, use_errno=True)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for number in range(50):
        (secrets / str(number)).touch()
    stop = threading.Event()

    def swap() -> None:
        here, there = str(tmp_path / "tree" / "folder").encode(), str(tmp_path / "tree" / "folder-link").encode()
        while not stop.is_set():
            libc.renameat2(-100, here, -100, there, 2)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(200):
            (tmp_path / "tree/folder/inner").mkdir(parents=True)
            (tmp_path / "tree/folder-link").symlink_to(secrets)
            while (tmp_path / "tree").exists():
                with suppress(OSError):  # It was another thing than a moment ago, and is looked at again.
                    trees.remove(tmp_path / "tree")
    finally:
        stop.set()
        swapping.join()
    assert len(list(secrets.iterdir())) == 50
