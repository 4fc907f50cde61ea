"""Sessions as folders: exporting, importing, moving and deleting them, and looking whether they are sound.

A crash at any step leaves the session whole here, or gone from here, never half of it: what is not whole yet and what
is about to go lies in the home's trash, which a starting host clears.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog
from anyio import to_thread

from hermitcrab import __version__
from hermitcrab.containers import certificates
from hermitcrab.containers.disk import trees
from hermitcrab.containers.materials.desk import PLACES, SessionFolders, session_folders
from hermitcrab.conversation.answering import open_again
from hermitcrab.conversation.archive import HOST_WRITTEN, TREES, About, ArchiveReader, ArchiveWriter
from hermitcrab.errors import BadInputError, ConflictError, NotFoundError, StoreDamagedError, StoreTooNewError
from hermitcrab.mailbox import copies
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.groups import AgentGroup, MessagingGroup
from hermitcrab.model.ids import Generation, MessagingGroupId, SessionId, new_id
from hermitcrab.model.messages import Address
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.store import agent_groups, messaging_groups, moves, sessions, wirings
from hermitcrab.store.database import Store

_LEAVING, _COMING = "leaving-", "coming-"
"""How names in the trash begin: a session that is being deleted, and one that is not whole yet."""

log = structlog.get_logger(__name__)


class Containers(Protocol):
    """Who sees to it that a session has no container while its folders are read or taken away."""

    async def withhold(self, session_id: SessionId, why: str) -> None: ...

    def give_back(self, session_id: SessionId) -> None: ...

    def request(self, session: Session) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    path: str
    about: About
    bytes: int
    rows: dict[str, int]
    """Messages and certificates, by side."""
    entries: dict[str, int]
    """Files, folders and links, by tree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    session: SessionId
    group: str
    rows: dict[str, int]
    entries: dict[str, int]
    is_wired: bool
    """False: no message reaches it before its chat is wired to the group."""
    was_here: bool = False
    """An earlier attempt of the same move had done it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    session: SessionId
    problems: tuple[str, ...]
    """Empty: it is sound."""


class Archivist:
    def __init__(
        self, *, home: Home, store: Store, mailboxes: Mailboxes, containers: Containers, uid: int, gid: int
    ) -> None:
        self._home, self._store, self._mailboxes, self._containers = home, store, mailboxes, containers
        self._uid, self._gid = uid, gid

    async def open(self) -> None:
        """What a host does first: hold again what was held, and finish what an earlier host had begun to remove."""
        for hold in await self._store.read(moves.held):
            await self._withhold(hold.session, hold.why)
        for name in await to_thread.run_sync(os.listdir, self._home.trash):
            if name.startswith(_LEAVING):
                key = SessionId(name.removeprefix(_LEAVING))
                await self._store.write(lambda connection, key=key: sessions.delete(connection, key))  # type: ignore[misc]
            await to_thread.run_sync(_throw_away, self._home.trash / name)

    # Out.

    async def export(self, session: Session, path: Path, *, files: bool = True, replace: bool = False) -> Exported:
        """Write the session to `path`. Its container is ended first, and started again if something waits.

        Messages that come meanwhile are kept and wait. Raises ConflictError when the container does not end or the file
        is there, BadInputError when the session is too large.
        """
        is_held = any(hold.session == session.id for hold in await self._store.read(moves.held))
        about = await self._about(session)
        folders = session_folders(self._home, session)
        if is_held:  # By a move: nobody else has it, and it stays that way.
            return await to_thread.run_sync(partial(self._write_held, folders, path, about, files, replace))
        async with self._without_container(session, "it is being exported"):
            write = partial(_write, folders, path, about, files, replace)
            return await self._mailboxes.run(session, write)

    def _write_held(self, folders: SessionFolders, path: Path, about: About, files: bool, replace: bool) -> Exported:
        with Mailbox.open(folders.mailbox) as mailbox:
            return _write(folders, path, about, files, replace, mailbox)

    async def _about(self, session: Session) -> About:
        def read(connection: sqlite3.Connection) -> tuple[AgentGroup | None, MessagingGroup | None]:
            chat = session.messaging_group_id
            return (
                agent_groups.by_id(connection, session.agent_group_id),
                messaging_groups.by_id(connection, chat) if chat is not None else None,
            )

        group, chat = await self._store.read(read)
        return About(
            session=session.id,
            group=group.folder if group is not None else "",
            provider=session.provider,
            generation=session.generation,
            created_at=session.created_at,
            thread=session.thread_id,
            channel_type=chat.channel_type if chat is not None else None,
            platform_id=chat.platform_id if chat is not None else None,
            exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
        )

    @asynccontextmanager
    async def _without_container(self, session: Session, why: str) -> AsyncGenerator[None]:
        await self._containers.withhold(session.id, why)
        try:
            yield
        finally:
            self._containers.give_back(session.id)
            if (await self._mailboxes.run(session, Mailbox.counts)).pending_triggers:
                self._containers.request(session)

    # In.

    async def import_(self, path: Path, group: AgentGroup, *, go_on: bool, token: str | None = None) -> Imported:
        """Take the session in `path` in as one of `group`'s. All of it is verified before anything is made.

        `go_on`: what waited there is answered and delivered here. Otherwise it is a copy, and what waited is closed:
        somebody else may have answered it. `token`: the move that this is part of; its repeat changes nothing.
        Raises BadInputError for a file that no export wrote, ConflictError for a session or conversation that is here.
        """
        await to_thread.run_sync(_verify, path)
        with ArchiveReader(path) as reader:
            about = reader.about
        session_id = SessionId(about.session)
        if token is not None and await self._came_by(session_id, token):
            return Imported(session=session_id, group=group.folder, rows={}, entries={}, is_wired=True, was_here=True)
        session, is_wired = await self._place_for(about, group)
        folders = session_folders(self._home, session)
        coming = self._home.trash / f"{_COMING}{secrets.token_hex(8)}"
        try:
            read = partial(_read, path, SessionFolders(root=coming), self._uid, self._gid, go_on)
            rows, entries = await to_thread.run_sync(read)
            await self._move_in(session, coming, folders.root, token)
            await open_again(self._store, self._mailboxes, session)
        finally:
            await to_thread.run_sync(_throw_away, coming)
        log.info("session.imported", session=session.id, group=group.folder, go_on=go_on)
        if go_on:
            self._containers.request(session)
        return Imported(session=session.id, group=group.folder, rows=rows, entries=entries, is_wired=is_wired)

    async def _came_by(self, session_id: SessionId, token: str) -> bool:
        def read(connection: sqlite3.Connection) -> bool:
            is_here = sessions.by_id(connection, session_id) is not None
            return is_here and moves.imported_by(connection, session_id) == token

        return await self._store.read(read)

    async def _place_for(self, about: About, group: AgentGroup) -> tuple[Session, bool]:
        """The session's row as it will be, and whether its chat is wired; the chat is made known if it was not."""

        def place(connection: sqlite3.Connection) -> tuple[Session, bool]:
            chat: MessagingGroup | None = None
            if about.channel_type is not None and about.platform_id is not None:
                address = Address(channel_type=about.channel_type, platform_id=about.platform_id)
                chat = messaging_groups.by_address(connection, address)
                if chat is None:
                    key = MessagingGroupId(new_id("mg", int(time.time() * 1000)))
                    chat = MessagingGroup(id=key, channel_type=address.channel_type, platform_id=address.platform_id)
                    messaging_groups.insert(connection, chat)
            session = Session(
                id=SessionId(about.session),
                agent_group_id=group.id,
                messaging_group_id=chat.id if chat is not None else None,
                thread_id=about.thread,
                provider=about.provider,
                generation=Generation(about.generation),
                created_at=about.created_at,
            )
            if sessions.by_id(connection, session.id) is not None:
                raise ConflictError(
                    f"Session {session.id} is here already.", hint="crab sessions delete removes it, with all it holds."
                )
            there = sessions.find(connection, group.id, session.messaging_group_id, session.thread_id)
            if there is not None:
                raise ConflictError(
                    f"The conversation has a session here already, {there.id}.",
                    hint="Import it for another group (--group), or delete that session first.",
                )
            wired = [each.messaging_group_id for each in wirings.for_agent_group(connection, group.id)]
            return session, chat is None or chat.id in wired

        return await self._store.write(place)

    async def _move_in(self, session: Session, coming: Path, root: Path, token: str | None) -> None:
        def insert(connection: sqlite3.Connection) -> None:
            sessions.insert(connection, session)
            sessions.unsettle(connection, session.id)
            if token is not None:
                moves.note_import(connection, session.id, token)

        def rename() -> None:
            os.sync()  # What was copied is on the disk before anything says that it is here.
            root.parent.mkdir(parents=True, exist_ok=True)
            if root.exists():
                # There is no such session, so that this is what a crash left of an earlier attempt.
                root.rename(self._home.trash / f"{_COMING}{secrets.token_hex(8)}")
            coming.rename(root)

        await to_thread.run_sync(rename)
        await self._store.write(insert)

    # Away.

    async def hold(self, session: Session, why: str, *, token: str | None = None) -> str:
        """Give the session up to a move, until it is deleted or released, over restarts of the host too.

        Its container ends, its messages are refused. Returns the move's token: the one that was given, or an earlier
        one's if it was held already. Raises ConflictError when the container does not end, and then holds nothing anew.
        """
        if why == "":
            raise BadInputError("a hold needs a reason")
        token = token or secrets.token_hex(16)
        hold = await self._store.write(lambda connection: moves.hold(connection, session.id, token, why[:200]))
        try:
            await self._withhold(session.id, hold.why)
        except ConflictError:
            if hold.token == token:
                await self.release(session)
            raise
        return hold.token

    async def release(self, session: Session) -> bool:
        """Call a move off: the session lives on here. False: it was not held."""
        released = await self._store.write(lambda connection: moves.release(connection, session.id))
        self._mailboxes.give_back(session.id)
        self._containers.give_back(session.id)
        if released and (await self._mailboxes.run(session, Mailbox.counts)).pending_triggers:
            self._containers.request(session)
        return released

    async def _withhold(self, session_id: SessionId, why: str) -> None:
        await self._containers.withhold(session_id, why)
        await self._mailboxes.withhold(session_id, why, hint=f"crab sessions move {session_id} --cancel gives it back.")

    async def delete(self, session: Session) -> None:
        """Remove the session with all that it holds. Whoever writes to its conversation next begins a new one."""
        await self._withhold(session.id, "it is being deleted")
        root = session_folders(self._home, session).root
        leaving = self._home.trash / f"{_LEAVING}{session.id}"

        def rename() -> None:
            try:
                root.rename(leaving)
            except FileNotFoundError:
                leaving.mkdir(exist_ok=True)  # It has no folder yet; a crash from here on must still end in no session.

        await to_thread.run_sync(rename)
        gone = await self._store.write(lambda connection: sessions.delete(connection, session.id))
        await to_thread.run_sync(_throw_away, leaving)
        self._mailboxes.give_back(session.id)
        self._containers.give_back(session.id)
        if not gone:
            raise NotFoundError(f"There is no session {session.id} any more.")
        log.info("session.deleted", session=session.id)

    # Looking.

    async def check(self, session: Session) -> Check:
        """Whether the session's databases are sound, every page of them. Others are not held up.

        Those that were damaged are opened anew; if somebody has put sound ones in their place, the session goes on.
        """
        was_aside = session.id in self._mailboxes.set_aside
        self._mailboxes.release(session.id)
        try:
            problems = await self._mailboxes.run(session, Mailbox.problems)
        except (StoreDamagedError, StoreTooNewError) as error:
            problems = [error.message]
        if was_aside and not problems:
            self._containers.request(session)
        return Check(session=session.id, problems=tuple(problems))


def _write(folders: SessionFolders, path: Path, about: About, files: bool, replace: bool, mailbox: Mailbox) -> Exported:
    rows: dict[str, int] = {}
    entries: dict[str, int] = {}
    with ArchiveWriter(path, replace=replace) as writer:
        for side in copies.SIDES:
            rows[side] = writer.lines(side, mailbox.copy(side))
        rows["certificates"] = writer.lines("certificates", _certificates(folders.certificates))
        for name in TREES if files else ():
            if (root := folders.root / name).is_dir():
                entries[name] = writer.tree(name, trees.walk(root, without=PLACES[name]))
        size = writer.finish(about)
    return Exported(path=str(path), about=about, bytes=size, rows=rows, entries=entries)


def _certificates(path: Path) -> Iterator[bytes]:
    for each in certificates.read(path, last=10_000):
        yield json.dumps(each).encode() + b"\n"


def _verify(path: Path) -> None:
    with ArchiveReader(path) as reader:
        reader.verify()


def _read(
    path: Path, folders: SessionFolders, uid: int, gid: int, go_on: bool
) -> tuple[dict[str, int], dict[str, int]]:
    rows: dict[str, int] = {}
    entries: dict[str, int] = {}
    with ArchiveReader(path) as reader:
        folders.mailbox.mkdir(parents=True, mode=0o700)
        for side in copies.SIDES:
            rows[side] = copies.fill(folders.mailbox, side, reader.lines(side))
        with Mailbox.open(folders.mailbox) as mailbox:
            mailbox.release_claims(Generation(reader.about.generation + 1))
            if not go_on:
                mailbox.close_what_waits("it was imported as a copy, and is answered where it came from")
        for name in TREES:
            (root := folders.root / name).mkdir()
            owner = (os.geteuid(), os.getegid()) if name in HOST_WRITTEN else (uid, gid)
            if os.geteuid() == 0:
                os.chown(root, *owner)
            with trees.Filler(root, uid=owner[0], gid=owner[1]) as filler:
                count = 0
                for entry, content in reader.tree(name):
                    if entry.path[0] in PLACES[name]:
                        raise BadInputError(
                            f"{path}: {name}/{trees.printable(entry.path)} stands where the host puts its own",
                            hint="Nothing of it was taken in.",
                        )
                    filler.add(entry, content)
                    count += 1
            entries[name] = count
        folders.logs.mkdir()
        rows["certificates"] = _keep_certificates(folders.certificates, reader.lines("certificates"))
    return rows, entries


def _keep_certificates(path: Path, lines: Iterator[bytes]) -> int:
    kept: list[str] = []
    for line in lines:
        try:
            told = json.loads(line)
            kept.append(json.dumps(asdict(certificates.Certificate(**told)), ensure_ascii=False) + "\n")
        except (ValueError, TypeError, RecursionError) as error:
            raise BadInputError("a certificate in the archive is none", hint="Nothing of it was taken in.") from error
    path.write_text("".join(kept))
    return len(kept)


def _throw_away(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        trees.remove(path)
    else:
        path.unlink(missing_ok=True)
