"""Finding what a person named, and showing rows as JSON. Shared by the method files beside this one."""

from __future__ import annotations

from dataclasses import asdict
from sqlite3 import Connection

from hermitcrab.control.host import ControlledHost
from hermitcrab.control.protocol import Json
from hermitcrab.errors import NotFoundError
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.store import agent_groups, messaging_groups, moves, sessions


async def group_named(host: ControlledHost, folder: str) -> AgentGroup:
    found = await host.store.read(lambda connection: agent_groups.by_folder(connection, folder))
    if found is None:
        raise NotFoundError(f"There is no group {folder[:80]!r}.", hint="crab groups list shows all of them.")
    return found


async def session_named(host: ControlledHost, name: str) -> Session:
    """The session of that id, or the newest session of the group of that name."""

    def find(connection: Connection) -> Session | None:
        if (found := sessions.by_id(connection, SessionId(name))) is not None:
            return found
        if (group := agent_groups.by_folder(connection, name)) is None:
            return None
        newest = sessions.page(connection, agent_group_id=group.id, limit=1)
        return newest[0] if newest else None

    found = await host.store.read(find)
    if found is None:
        raise NotFoundError(f"There is no session {name[:80]!r}.", hint="crab sessions list shows them, newest first.")
    return found


def group_json(group: AgentGroup, provider: str | None) -> Json:
    """`provider`: what its config says, if anything."""
    return {
        "folder": group.folder,
        "name": group.name,
        "id": group.id,
        "provider": provider,
        "created_at": group.created_at,
    }


async def sessions_json(host: ControlledHost, found: list[Session]) -> list[Json]:
    """Each session with its group's and chat's names and the phase of its container.

    In place of a phase: `held` of one that is being moved, `damaged` of one whose messages cannot be read.
    """
    held = {hold.session for hold in await host.store.read(moves.held)}
    damaged = host.mailboxes.set_aside
    views = {view.session_id: view for view in host.runner.views()}

    def names(connection: Connection) -> list[tuple[str, str | None]]:
        rows = []
        for session in found:
            group = agent_groups.by_id(connection, session.agent_group_id)
            chat = (
                messaging_groups.by_id(connection, session.messaging_group_id) if session.messaging_group_id else None
            )
            rows.append(
                (
                    group.folder if group else session.agent_group_id,
                    f"{chat.channel_type}:{chat.platform_id}" if chat else None,
                )
            )
        return rows

    shown: list[Json] = []
    for session, (group, chat) in zip(found, await host.store.read(names), strict=True):
        view = views.get(session.id)
        phase = view.phase if view else "absent"
        if session.id in damaged:
            phase = "damaged"
        elif session.id in held:
            phase = "held"
        shown.append(
            {
                "id": session.id,
                "group": group,
                "chat": chat,
                "thread": session.thread_id,
                "provider": session.provider,
                "generation": session.generation,
                "phase": phase,
                "created_at": session.created_at,
                "last_active_at": session.last_active_at,
                "container": asdict(view) if view else None,
            }
        )
    return shown
