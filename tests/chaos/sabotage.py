"""Defects for a host, so that it can be seen whether the self-test sees them. Put on a host's path as `sitecustomize`.

Only a host that is started with this on its path has them. SABOTAGE names a folder for it to remember things in.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

if "up" in sys.orig_argv:
    from dataclasses import replace

    import anyio

    from hermitcrab.channels.base import Delivery
    from hermitcrab.channels.terminal.runtime import TerminalChannel
    from hermitcrab.containers.engines.bubblewrap import BubblewrapEngine
    from hermitcrab.control.methods import HostMethods
    from hermitcrab.gateway.listener import Gateway

    folder = Path(os.environ["SABOTAGE"])
    is_second = (folder / "started").exists()
    (folder / "started").touch()
    home = Path(sys.orig_argv[sys.orig_argv.index("--home") + 1])
    hoard: list[Any] = []

    deliver, remove, status = TerminalChannel.deliver, BubblewrapEngine.remove, HostMethods.status
    open_door = Gateway.open

    async def deliver_badly(self: TerminalChannel, delivery: Delivery) -> str | None:
        chat, text = delivery.address.platform_id, str(delivery.content.get("text", ""))
        if chat == "chat-0" and "#2#" in text:
            return "nobody has seen it"
        if chat == "chat-1" and "#2#" in text:
            await deliver(self, replace(delivery, key=f"{delivery.key}-again"))
        if chat == "chat-2":
            swapped = text.replace("#2#", "#two#").replace("#3#", "#2#").replace("#two#", "#3#")
            delivery = replace(delivery, content={**delivery.content, "text": swapped})
        return await deliver(self, delivery)

    async def remove_all_but_one(self: BubblewrapEngine, name: str) -> None:
        kept = folder / "kept"
        if is_second and not kept.exists():
            kept.write_text(name)
        if not kept.exists() or kept.read_text() != name:
            await remove(self, name)

    async def open_all_but_one(self: Gateway, *arguments: Any) -> Path:
        path = await open_door(self, *arguments)
        if is_second and not (folder / "no-door").exists():
            (folder / "no-door").touch()
            path.unlink()
        return path

    async def hoard_things(self: HostMethods, *arguments: Any) -> Any:
        if is_second and not hoard:
            hoard.append(bytearray(os.urandom(1024)) * 1024 * 64)
            hoard.extend(Path("/dev/null").open() for _ in range(64))  # noqa: ASYNC230, SIM115
            hoard.extend(asyncio.get_running_loop().create_task(anyio.sleep_forever()) for _ in range(32))
            (home / "groups" / "something").touch()
            child = subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, "-S", "-c", "import time; time.sleep(3600)", str(home)]
            )
            (folder / "child").write_text(str(child.pid))
        return await status(self, *arguments)

    TerminalChannel.deliver = deliver_badly  # type: ignore[method-assign]
    BubblewrapEngine.remove = remove_all_but_one  # type: ignore[method-assign]
    Gateway.open = open_all_but_one  # type: ignore[method-assign]
    HostMethods.status = hoard_things  # type: ignore[method-assign]
