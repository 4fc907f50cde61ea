"""Homes with history, made without containers: every session has messages that were answered and delivered."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Connection

from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.groups.creation import create_group
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.groups import MessagingGroup
from hermitcrab.model.ids import Generation, MessageId, MessagingGroupId, SessionId
from hermitcrab.model.messages import Address, InboundRow, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.store import messaging_groups
from hermitcrab.store import sessions as session_queries
from hermitcrab.store.database import Store


async def fill(path: Path, sessions: int, *, messages: int = 1) -> None:
    """Prepare the home `path` with `sessions` settled sessions of `messages` answered messages each."""
    home = Home(path)
    home.prepare()
    async with (
        Store.open(home.database) as store,
        Mailboxes(lambda session: session_folders(home, session).mailbox) as mailboxes,
    ):
        if sessions == 0:
            return
        group = await create_group(store, folder="filled")
        made: list[Session] = []

        def insert(connection: Connection) -> None:
            for number in range(sessions):
                chat = MessagingGroup(
                    id=MessagingGroupId(f"mg-{number}"), channel_type="filled", platform_id=f"chat-{number}"
                )
                messaging_groups.insert(connection, chat)
                session = Session(id=SessionId(f"sess-{number}"), agent_group_id=group.id, messaging_group_id=chat.id)
                made.append(session_queries.find_or_insert(connection, session))
                session_queries.settle(connection, session.id, session_queries.reasons(connection, session.id))

        await store.write(insert)
        for session in made:
            await mailboxes.run(session, lambda mailbox, session=session: _history(mailbox, session, messages))  # type: ignore[misc]


def _history(mailbox: Mailbox, session: Session, messages: int) -> None:
    now = datetime.now(UTC)
    stamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    address = Address(channel_type="filled", platform_id=session.id.replace("sess-", "chat-"))
    for number in range(messages):
        key, reply = MessageId(f"m-{number}"), MessageId(f"r-{number}")
        mailbox.accept(
            InboundRow(id=key, kind="chat", timestamp=stamp, content={"text": f"message {number}"}, address=address)
        )
        mailbox.claim(f"turn-{number}", [key], Generation(0))
        out = OutboundRow(
            id=reply, kind="chat", timestamp=stamp, content={"text": "reply"}, address=address, in_reply_to=key
        )
        mailbox.finish(f"turn-{number}", [key], [out], None)
        mailbox.begin_delivery(reply)
        mailbox.delivered(reply, None)
