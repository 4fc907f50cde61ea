"""A certificate for every end of a container (law 10): why, with the last log lines, kept in the session's folder."""

from __future__ import annotations

import functools
import json
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import structlog
from anyio import to_thread

from hermitcrab.errors import StoreError
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.store import deaths
from hermitcrab.store.database import Store
from hermitcrab.store.deaths import Death

LOG_LINES = 40
"""Last lines of the container's log that a certificate keeps."""

_LINE_CHARACTERS_AT_MOST = 500
_KEPT_BYTES = 1024 * 1024
"""A file over this is cut to its newer half when the next certificate is written."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    session: SessionId
    generation: Generation
    cause: str
    """One of `logic.ending.Cause`."""
    text: str
    """One sentence for people."""
    ended_at: str
    duration_s: float | None = None
    """From start to end; None when the start was not seen."""
    exit_code: int | None = None
    rows_returned: int = 0
    """Messages that it had and did not finish; the next container gets them."""
    log: list[str] = field(default_factory=list)


async def keep(store: Store, path: Path, certificate: Certificate) -> None:
    """Write the certificate to the session's folder, and note it in the index of all sessions' deaths.

    A generation ends once: one that is in the index has its certificate, and what is found of it later is no other end.
    Raises OSError or StoreError when either cannot be written; repeating it does what is missing.
    """
    if await _is_kept(store, certificate):
        return
    await to_thread.run_sync(write, path, certificate)
    death = Death(
        session=certificate.session,
        generation=certificate.generation,
        cause=certificate.cause,
        text=certificate.text,
        ended_at=certificate.ended_at,
        duration_s=certificate.duration_s,
        exit_code=certificate.exit_code,
        rows_returned=certificate.rows_returned,
    )
    await store.write(lambda connection: deaths.insert(connection, death))


async def note_kept(store: Store, session: SessionId, kept: Sequence[dict[str, Any]]) -> None:
    """Put into the index what only the session's folder has: a host died between the two. Raises StoreError."""
    found = [_death(session, each) for each in kept if isinstance(each.get("generation"), int)]
    lacking = await store.read(lambda connection: deaths.lacking(connection, found)) if found else []
    for each in lacking:
        await store.write(functools.partial(deaths.insert, death=each))


def _death(session: SessionId, kept: dict[str, Any]) -> Death:
    return Death(
        session=session,
        generation=Generation(kept["generation"]),
        cause=str(kept.get("cause")),
        text=str(kept.get("text")),
        ended_at=str(kept.get("ended_at")),
        duration_s=kept.get("duration_s"),
        exit_code=kept.get("exit_code"),
        rows_returned=int(kept.get("rows_returned") or 0),
    )


async def _is_kept(store: Store, certificate: Certificate) -> bool:
    try:
        return await store.read(
            lambda connection: deaths.is_noted(connection, certificate.session, certificate.generation)
        )
    except StoreError:
        return False  # Rather twice than never.


def write(path: Path, certificate: Certificate) -> None:
    """Append to the session's certificates, unless the generation has one. Blocks."""
    if certificate.generation in {each.get("generation") for each in read(path)}:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _KEPT_BYTES:
        lines = path.read_text(errors="replace").splitlines(keepends=True)
        temporary = path.with_suffix(".new")
        temporary.write_text("".join(lines[len(lines) // 2 :]))
        temporary.replace(path)
    values = asdict(certificate)
    values["log"] = [line[:_LINE_CHARACTERS_AT_MOST] for line in certificate.log[-LOG_LINES:]]
    with path.open("ab+") as file:
        # What a full disk or a crash cut short stays a line of its own, and spoils no other.
        begun = "\n" if _is_cut_short(file) else ""
        file.write(f"{begun}{json.dumps(values, ensure_ascii=False)}\n".encode(errors="backslashreplace"))


def _is_cut_short(file: BinaryIO) -> bool:
    """Whether the file's last line has no end."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def read(path: Path, *, last: int = 20) -> list[dict[str, Any]]:
    """The newest certificates, oldest first; a line that a crash cut short is passed over. Blocks."""
    try:
        with path.open(errors="replace") as file:
            lines = deque(file, maxlen=last)
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
