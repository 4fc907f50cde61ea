"""What agents ask of the host: looked up and answered as a message of their session, or refused with the reason.

A repeat of a request is answered under the same id, which is a message that is there already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from sqlite3 import Connection
from typing import Any

import structlog

from hermitcrab.containers.link.saying import RefusedError
from hermitcrab.containers.runner import ContainerRunner
from hermitcrab.logic.agent_requests import COMMANDS, Command, Problem, command_of, why_not
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import AgentGroupId, MessageId, SessionId
from hermitcrab.model.messages import InboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.store import agent_groups, container_configs, destinations, messaging_groups, sessions, wirings
from hermitcrab.store.clock import timestamp
from hermitcrab.store.database import Store

ROWS_AT_MOST = 200

Json = dict[str, Any]

log = structlog.get_logger(__name__)


class Actions:
    def __init__(self, store: Store, mailboxes: Mailboxes, runner: Callable[[], ContainerRunner]) -> None:
        """`runner`: asked for when there is something to answer, as it needs this itself."""
        self._store, self._mailboxes, self._runner = store, mailboxes, runner

    async def take(self, session: Session, content: Json) -> None:
        """Carry out a request. Its answer is on disk when this returns. Raises RefusedError."""
        if (reason := why_not(content)) is not None:
            raise RefusedError("not-available", reason)
        key = content["requestId"]
        frame: Json = {"id": key}
        found = await self._store.read(lambda connection: _answer(connection, session, content))
        if isinstance(found, Problem):
            frame |= {"ok": False, "error": {"code": found.code, "message": found.message}}
        else:
            frame |= {"ok": True, "data": found}
        log.info("agent.command", session=session.id, command=str(content.get("command"))[:120], ok=frame["ok"])
        row = InboundRow(
            id=MessageId(f"cli-resp-{key}"),
            kind="system",
            timestamp=timestamp(),
            content={
                "type": "cli_response",
                "requestId": key,
                "frame": frame,
                "action": "cli_request",
                "status": "ok" if frame["ok"] else "error",
                "result": frame,
            },
            trigger=False,
        )
        accepted = await self._mailboxes.run(session, lambda mailbox: mailbox.accept(row))
        if accepted is not None:
            await self._runner().offer(session, accepted)


def _answer(connection: Connection, session: Session, content: Json) -> list[Json] | Json | Problem:
    scope = container_configs.of(connection, session.agent_group_id).cli_scope
    command = command_of(content, scope, session.agent_group_id)
    if isinstance(command, Problem):
        return command
    found = _looked_up(connection, command, session)
    return found if found is not None else Problem("not-found", f"there is no {command.id or command.name}")


def _looked_up(connection: Connection, command: Command, asker: Session) -> list[Json] | Json | None:
    """Rows with the columns of the earlier system's tables, as far as there are such."""
    match command.name:
        case "help":
            return [{"command": name, "description": text} for name, text in COMMANDS.items()]
        case "groups-list":
            groups = [each for each in agent_groups.all_groups(connection) if command.group in {None, each.id}]
            return [asdict(each) for each in groups[:ROWS_AT_MOST]]
        case "groups-get":
            group = agent_groups.by_id(connection, AgentGroupId(command.id or command.group or asker.agent_group_id))
            return None if group is None else asdict(group)
        case "destinations-list":
            # An agent that may look at all groups names the one it means; without a name it means its own.
            wanted = command.group or asker.agent_group_id
            return [asdict(each) for each in destinations.for_agent_group(connection, wanted)[:ROWS_AT_MOST]]
        case "sessions-list":
            page = sessions.page(connection, limit=ROWS_AT_MOST, agent_group_id=command.group)
            return [asdict(each) for each in page]
        case "sessions-get":
            session = sessions.by_id(connection, SessionId(str(command.id)))
            return asdict(session) if session is not None and command.group in {None, session.agent_group_id} else None
        case "messaging-groups-list":
            return [asdict(each) for each in messaging_groups.all_groups(connection)[:ROWS_AT_MOST]]
        case _:
            return [asdict(each) for each in wirings.all_wirings(connection)[:ROWS_AT_MOST]]
