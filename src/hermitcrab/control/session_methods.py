"""`sessions.*`, `session.ask`, `logs` and `deaths`: sessions and their containers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime

import anyio
from anyio import to_thread

from hermitcrab.containers import certificates
from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.control.host import ControlledHost
from hermitcrab.control.lookup import group_named, session_named, sessions_json
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import Emit
from hermitcrab.errors import BadInputError, NotFoundError
from hermitcrab.logic.ending import Cause
from hermitcrab.logic.moment import parse_moment
from hermitcrab.logic.tail import new_lines
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import Generation, MessageId, SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.store import deaths, sessions

ASKED_WITHIN_S = 30.0

MOST_LINES = 2000
MOST_LISTED = 1000

LOOKED_EVERY_S = 0.5
"""How often a log that somebody follows is read again. Only while somebody follows it."""


class SessionMethods:
    def __init__(self, host: ControlledHost) -> None:
        self._host = host

    async def list(self, params: Params, _emit: Emit) -> Json:
        folder, before = params.optional_text("group"), params.optional_text("before")
        limit = params.integer("limit", default=100, least=1, most=MOST_LISTED)
        params.done()
        group = await group_named(self._host, folder) if folder else None
        found = await self._host.store.read(
            lambda connection: sessions.page(
                connection,
                before=SessionId(before) if before else None,
                limit=limit,
                agent_group_id=group.id if group else None,
            )
        )
        more = len(found) == limit
        return {"sessions": await sessions_json(self._host, found), "next_before": found[-1].id if more else None}

    async def show(self, params: Params, _emit: Emit) -> Json:
        name = params.text("session")
        params.done()
        session = await session_named(self._host, name)
        counts = await self._host.mailboxes.run(session, Mailbox.counts)
        aside = await self._host.mailboxes.run(session, lambda mailbox: mailbox.entries("quarantined", MOST_LISTED))
        return {
            "session": (await sessions_json(self._host, [session]))[0],
            "mailbox": asdict(counts),
            "quarantined": [
                {
                    "id": each.id,
                    "at": each.at,
                    "since": each.changed_at,
                    "text": each.text,
                    "tries": each.attempts,
                    "reason": each.reason,
                }
                for each in aside
            ],
            "timings_ms": dict(self._host.runner.timings(session.id)),
            "certificates": await self._host.runner.certificates(session),
        }

    async def wake(self, params: Params, _emit: Emit) -> Json:
        name = params.text("session")
        params.done()
        return asdict(await self._host.runner.wake(await session_named(self._host, name)))

    async def stop(self, params: Params, _emit: Emit) -> Json:
        name = params.text("session")
        params.done()
        session = await session_named(self._host, name)
        return {"stopped": await self._host.runner.kill(session.id)}

    async def restart(self, params: Params, _emit: Emit) -> Json:
        """A fresh container in the place of the one that it has."""
        name, message, wake = params.text("session"), params.optional_text("message"), params.flag("wake")
        params.done()
        session = await session_named(self._host, name)
        return asdict(await self._host.runner.restart(session, message=message, wake=wake))

    async def interrupt(self, params: Params, _emit: Emit) -> Json:
        """End the turn that runs; the container stays."""
        name = params.text("session")
        params.done()
        session = await session_named(self._host, name)
        return {"interrupted": self._host.runner.interrupt(session.id)}

    async def release_message(self, params: Params, _emit: Emit) -> Json:
        """Have a message out of quarantine, and answered as if it had just come."""
        name, message = params.text("session"), params.text("message")
        params.done()
        session = await session_named(self._host, name)
        key = MessageId(message.removeprefix(f"{session.id}/"))
        # Marked before anything waits, so that a host that dies in between looks here at its next start.
        await self._host.store.write(lambda connection: sessions.unsettle(connection, session.id))
        row = await self._host.mailboxes.run(session, lambda mailbox: mailbox.inbound(key))
        if row is None:
            raise NotFoundError(
                f"Session {session.id} has no message {message[:80]!r}.",
                hint=f"crab sessions show {session.id} lists those in quarantine.",
            )
        released = await self._host.mailboxes.run(session, lambda mailbox: mailbox.release(key))
        if released:
            self._host.runner.request(session)
        return {"session": session.id, "message": key, "released": released, "status": row.status}

    async def reconnect(self, params: Params, _emit: Emit) -> Json:
        """Cut the runner's link, which it then makes anew."""
        name = params.text("session")
        params.done()
        session = await session_named(self._host, name)
        return {"reconnected": self._host.runner.reconnect(session.id)}

    async def ask(self, params: Params, _emit: Emit) -> Json:
        """A question to the session's runner itself; `evidence` is answered from inside the sandbox."""
        name, subject, arguments = params.text("session"), params.text("subject"), params.json("arguments")
        params.done()
        session = await session_named(self._host, name)
        answer = await self._host.runner.ask(session.id, subject, arguments, timeout_s=ASKED_WITHIN_S)
        return {"answer": answer}

    async def logs(self, params: Params, emit: Emit) -> Json:
        """Events {"line"}: the last `lines` of the container's log, then, with `follow`, what it adds."""
        name, follow = params.text("session"), params.flag("follow")
        count = params.integer("lines", default=100, least=1, most=MOST_LINES)
        params.done()
        session = await session_named(self._host, name)
        before = await self._host.runner.logs(session, lines=MOST_LINES if follow else count)
        for line in before[-count:]:
            await emit({"line": line})
        while follow:
            await anyio.sleep(LOOKED_EVERY_S)
            after = await self._host.runner.logs(session, lines=MOST_LINES)
            for line in new_lines(before, after):
                await emit({"line": line})
            before = after
        return {}

    async def deaths(self, params: Params, emit: Emit) -> Json:
        """Events, one for each end of a container, newest first: of one session from its folder, of all by the index.

        Events, as a thousand ends with their last lines would be too much for one answer.
        """
        name, logs = params.optional_text("session"), params.flag("logs")
        cause, since = _cause(params.optional_text("cause")), _since(params.optional_text("since"))
        limit = params.integer("limit", default=20, least=1, most=deaths.KEPT)
        params.done()
        if name:
            session = await session_named(self._host, name)
            certified = (await self._certificates(session)).values()
            found = [
                each
                for each in certified
                if cause in {None, each["cause"]} and (since is None or each["ended_at"] >= since)
            ][-limit:][::-1]
            for each in found:
                await emit(each if logs else {field: value for field, value in each.items() if field != "log"})
            return {}
        newest = await self._host.store.read(
            lambda connection: deaths.newest(connection, limit=limit, cause=cause, since=since)
        )
        whole = await self._certificates_of({death.session for death in newest}) if logs else {}
        for death in newest:
            log = {"log": whole.get((death.session, death.generation), {}).get("log", [])} if logs else {}
            await emit({**asdict(death), **log})
        return {}

    async def _certificates_of(self, ids: Iterable[SessionId]) -> dict[tuple[SessionId, Generation], Json]:
        """Whole certificates are in the sessions' folders: only those of these sessions are read."""
        found: dict[tuple[SessionId, Generation], Json] = {}
        for key in ids:
            session = await self._host.store.read(lambda connection, key=key: sessions.by_id(connection, key))  # type: ignore[misc]
            if session is not None:
                for generation, certificate in (await self._certificates(session)).items():
                    found[key, generation] = certificate
        return found

    async def _certificates(self, session: Session) -> dict[Generation, Json]:
        """Oldest first. A generation that a crash had certified twice is in it once, as it was told first."""
        path = session_folders(self._host.home, session).certificates
        written = await to_thread.run_sync(lambda: certificates.read(path, last=deaths.KEPT))
        found: dict[Generation, Json] = {}
        for each in written:
            found.setdefault(each["generation"], each)
        return found


def _cause(name: str | None) -> str | None:
    if name is not None and name not in set(Cause):
        raise BadInputError(f"No container ends by {name[:40]!r}.", hint=f"Causes: {', '.join(Cause)}.")
    return name


def _since(text: str | None) -> str | None:
    """As certificates tell moments, so that texts compare."""
    return None if text is None else parse_moment(text, datetime.now(UTC)).isoformat(timespec="seconds")
