"""`sessions.export`, `import`, `hold`, `release`, `delete` and `check`: sessions as folders."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from hermitcrab.control.host import ControlledHost
from hermitcrab.control.lookup import group_named, session_named
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import Emit
from hermitcrab.conversation.archive import ArchiveReader
from hermitcrab.errors import BadInputError
from hermitcrab.store import sessions


class ArchiveMethods:
    def __init__(self, host: ControlledHost) -> None:
        self._host = host

    async def export(self, params: Params, _emit: Emit) -> Json:
        name, path = params.text("session"), _absolute(params.text("path"))
        without_files, replace = params.flag("without_files"), params.flag("replace")
        params.done()
        session = await session_named(self._host, name)
        return asdict(await self._host.archivist.export(session, path, files=not without_files, replace=replace))

    async def import_(self, params: Params, _emit: Emit) -> Json:
        path, folder = _absolute(params.text("path")), params.optional_text("group")
        go_on, token = params.flag("go_on"), params.optional_text("token")
        params.done()
        if folder is None:
            with ArchiveReader(path) as reader:
                folder = reader.about.group
        group = await group_named(self._host, folder)
        return asdict(await self._host.archivist.import_(path, group, go_on=go_on, token=token))

    async def hold(self, params: Params, _emit: Emit) -> Json:
        name, why, token = params.text("session"), params.text("why"), params.optional_text("token")
        params.done()
        session = await session_named(self._host, name)
        return {"session": session.id, "token": await self._host.archivist.hold(session, why, token=token)}

    async def release(self, params: Params, _emit: Emit) -> Json:
        name = params.text("session")
        params.done()
        session = await session_named(self._host, name)
        return {"session": session.id, "released": await self._host.archivist.release(session)}

    async def delete(self, params: Params, _emit: Emit) -> Json:
        name = params.text("session")
        params.done()
        session = await session_named(self._host, name)
        await self._host.archivist.delete(session)
        return {"session": session.id}

    async def check(self, params: Params, emit: Emit) -> Json:
        """Events, one for each session: of the one that was named, else of all, newest first."""
        name = params.optional_text("session")
        params.done()
        if name:
            await emit(asdict(await self._host.archivist.check(await session_named(self._host, name))))
            return {}
        before = None
        while found := await self._host.store.read(
            lambda connection, before=before: sessions.page(connection, before=before)  # type: ignore[misc]
        ):
            for session in found:
                await emit(asdict(await self._host.archivist.check(session)))
            before = found[-1].id
        return {}


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise BadInputError("The path of an archive must be absolute.")
    return path
