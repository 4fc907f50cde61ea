"""What a host that has left must not leave behind, looked for where it would be: at the engine, the kernel, on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from anyio import to_thread

from hermitcrab.app import container_ids, open_engine
from hermitcrab.containers.cgroups import SUBTREE
from hermitcrab.containers.engines.docker_api import EngineApi
from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import InstallationId
from hermitcrab.settings.home import Home
from hermitcrab.settings.load import load
from hermitcrab.store import installation, sessions
from hermitcrab.store.database import Store

_CGROUPS = Path("/sys/fs/cgroup")


async def left_behind(home: Home, environment: Mapping[str, str]) -> list[str]:
    """One line for each thing that is still there; empty: nothing is. No host may run on the home.

    `environment`: the host's, with its settings.
    """
    settings = load(home.path, environment=environment)
    async with Store.open(home.database) as store:
        install = await store.write(installation.get_or_create)
        every = await store.read(lambda connection: sessions.page(connection, limit=1000))
    engine = open_engine(home, settings, install)
    try:
        containers = [f"container {view.name} ({view.status})" for view in await engine.containers()]
    finally:
        await engine.aclose()

    def look() -> list[str]:
        mailboxes = ((each, session_folders(home, each).mailbox) for each in every)
        return [
            *_processes(install),
            *_control_groups(install),
            *(f"folder {path}" for path in home.sessions.glob("*/*/run/*")),
            *(f"record {path}" for path in home.engine_folder("bubblewrap").glob("*")),
            *(f"socket {path}" for path in home.path.rglob("*") if path.is_socket()),
            *(f"claim in {session.id}" for session, folder in mailboxes if _claimed(folder)),
        ]

    found = [*containers, *await to_thread.run_sync(look)]
    match settings.containers.engine:
        case "docker":
            found += await _at_daemon(EngineApi("docker", settings.containers.docker_socket), install)
        case "podman":
            found += await _at_daemon(EngineApi("podman", settings.containers.podman_socket), install)
        case _:
            pass
    return found


async def _at_daemon(api: EngineApi, install: InstallationId) -> list[str]:
    """Networks and volumes that are of this installation, by name or label."""
    try:
        networks = await api.request("GET", "/networks", doing="list networks")
        volumes = (await api.request("GET", "/volumes", doing="list volumes") or {}).get("Volumes")
    finally:
        await api.aclose()
    every: list[tuple[str, Any]] = [*(("network", each) for each in networks or [])]
    every += [("volume", each) for each in volumes or []]
    return [f"{what} {each.get('Name')}" for what, each in every if install in str(each)]


def _processes(install: InstallationId) -> Iterator[str]:
    """By their user, which as root is the installation's alone; else nothing tells them from the user's own."""
    uid, _ = container_ids(install)
    if uid == os.geteuid():
        return
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and folder.stat().st_uid == uid:
                yield f"process {folder.name}: {(folder / 'cmdline').read_bytes()[:80]!r}"
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended just now.


def _control_groups(install: InstallationId) -> Iterator[str]:
    for base in (_CGROUPS, *_CGROUPS.iterdir()):
        yield from (f"control group {path}" for path in (base / SUBTREE).glob(f"{install}/*/"))


def _claimed(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with Mailbox.open(folder) as mailbox:
        return mailbox.counts().claimed > 0
