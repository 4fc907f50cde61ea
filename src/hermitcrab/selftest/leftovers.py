"""What a host that has ended in good order must not leave behind: looked for by hand, not by asking the host."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from anyio import to_thread

from hermitcrab.app import open_engine
from hermitcrab.containers import certificates
from hermitcrab.containers.cgroups import SUBTREE
from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import Settings
from hermitcrab.store import installation, sessions
from hermitcrab.store.database import Store

CERTIFICATES_AT_MOST = 10_000


async def leftovers(home: Home, settings: Settings, *, log: Path) -> list[str]:
    """One sentence for each thing that should not be there. `log`: what the hosts wrote, as JSON lines."""
    found: list[str] = []
    async with Store.open(home.database) as store:
        install = await store.write(installation.get_or_create)
        engine = open_engine(home, settings, install)
        try:
            found += [f"container {view.name} is there" for view in await engine.containers()]
        finally:
            await engine.aclose()
        every = await store.read(lambda connection: sessions.page(connection, limit=100_000))
        waiting = await store.read(sessions.unsettled)
    found += [f"session {session.id} is still to be looked at by the next host" for session in waiting]
    found += await to_thread.run_sync(lambda: list(_on_disk(home, every)))
    found += await to_thread.run_sync(lambda: list(_processes(home, every)))
    found += await to_thread.run_sync(lambda: list(cgroups_left(install)))
    found += await to_thread.run_sync(lambda: list(_certificates(home, every, log)))
    return found


def _on_disk(home: Home, every: list[Session]) -> Iterator[str]:
    yield from (f"{path.name} is in the trash" for path in home.trash.iterdir())
    for session in every:
        folders = session_folders(home, session)
        run = folders.root / "run"
        if run.is_dir():
            yield from (f"the socket folder {path} is there" for path in run.iterdir())
        with Mailbox.open(folders.mailbox) as mailbox:
            counts = mailbox.counts()
            if counts.claimed or counts.pending_triggers or counts.undelivered:
                yield f"session {session.id} has unfinished rows: {counts}"
            yield from (f"session {session.id}: {problem}" for problem in mailbox.problems())


def _processes(home: Home, every: list[Session]) -> Iterator[str]:
    """Any process but this one that was started for the home, or that has one of its sessions' folders mounted."""
    needles = [os.fsencode(home.path), *(f"/{session.id}/".encode() for session in every)]
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            seen = command + (entry / "mountinfo").read_bytes()
        except OSError:
            continue  # It ended meanwhile, or is not ours to look at.
        if any(needle in seen for needle in needles):
            yield f"process {entry.name} is there: {command.replace(bytes(1), b' ').decode(errors='replace')[:120]}"


def cgroups_left(install: str, root: Path = Path("/sys/fs/cgroup")) -> Iterator[str]:
    # By a walk that passes over what goes meanwhile: the groups of others come and go.
    for folder, inner, _ in os.walk(root):
        if folder.endswith(f"/{SUBTREE}/{install}"):
            yield from (f"the control group {folder}/{name} is there" for name in inner)


def _certificates(home: Home, every: list[Session], log: Path) -> Iterator[str]:
    """Each container that was ever ready has exactly one certificate."""
    ready = _ready(log)
    for session in every:
        path = session_folders(home, session).certificates
        written = certificates.read(path, last=CERTIFICATES_AT_MOST)
        counts = Counter(each["generation"] for each in written)
        for generation, count in counts.items():
            if count > 1:
                yield f"generation {generation} of session {session.id} has {count} certificates"
        for generation in sorted(ready.get(session.id, set()) - counts.keys()):
            yield f"generation {generation} of session {session.id} ended without a certificate"


def _ready(log: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    with log.open(errors="replace") as lines:
        for line in lines:
            if '"container.ready"' not in line and '"container.adopted"' not in line:
                continue
            try:
                told = json.loads(line)
            except ValueError:
                continue  # A host that was killed in the middle of a line.
            found.setdefault(told["session"], set()).add(told["generation"])
    return found
