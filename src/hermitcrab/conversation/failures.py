"""Telling those concerned that a message could not be delivered: its agent, and a person in another chat.

Neither of the two may begin a loop: the agent hears of it with the next message that it answers, and of a notice that
cannot be delivered either, nobody is told.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from sqlite3 import Connection

from hermitcrab.channels.base import Channel
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import MessageId
from hermitcrab.model.messages import Address, InboundRow, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.store import destinations, sessions
from hermitcrab.store.clock import timestamp
from hermitcrab.store.database import Store

EXCERPT_CHARACTERS = 200


class Failures:
    def __init__(self, store: Store, mailboxes: Mailboxes, channels: Mapping[str, Channel]) -> None:
        self._store, self._mailboxes, self._channels = store, mailboxes, channels

    async def tell(self, session: Session) -> bool:
        """Tell of everything in the session that ended badly and was not told of. Whether a notice now waits.

        Repeating it after a crash in the middle tells nothing twice. Raises StoreError or OSError when that cannot be
        written down; what was not told stays on record as that.
        """
        untold = await self._mailboxes.run(session, lambda mailbox: mailbox.untold())
        if not untold:
            return False
        places = await self._operator_chats(session)
        # A host that is killed now finds what this leaves behind when it looks at unsettled sessions.
        await self._store.write(lambda connection: sessions.unsettle(connection, session.id))
        noticed = False
        for row in untold:
            notice = _notice(row, places)
            await self._mailboxes.run(session, functools.partial(_keep, row, notice))
            noticed = noticed or notice is not None
        return noticed

    async def _operator_chats(self, session: Session) -> list[Address]:
        """Chats of this agent in which its operator is. No other chat may learn what is said elsewhere."""

        def find(connection: Connection) -> list[Address]:
            return [
                Address(channel_type=each.channel_type, platform_id=each.platform_id)
                for each in destinations.for_agent_group(connection, session.agent_group_id)
                if each.type == "channel" and each.channel_type and each.platform_id
            ]

        return [
            each
            for each in await self._store.read(find)
            if (channel := self._channels.get(each.channel_type)) is not None and channel.traits.reaches_operator
        ]


def _keep(row: OutboundRow, notice: OutboundRow | None, mailbox: Mailbox) -> None:
    if not row.content.get("notice"):
        mailbox.accept(_word_to_agent(row))
    if notice is not None:
        mailbox.append([notice])
    mailbox.told(row.id)


def _word_to_agent(row: OutboundRow) -> InboundRow:
    """Context for the agent's next turn; it starts none."""
    return InboundRow(
        id=MessageId(f"undelivered-{row.id}"),
        kind="system",
        timestamp=timestamp(),
        content={
            "action": "deliver_message",
            "status": row.delivery,
            "result": {
                "message": row.seq,
                "to": _place(row.address),
                "text": _excerpt(row),
                "reason": row.reason,
            },
        },
        trigger=False,
    )


def _notice(row: OutboundRow, places: list[Address]) -> OutboundRow | None:
    """One sentence for the operator, through another channel than the one that failed; without what was said."""
    failed = row.address.channel_type if row.address is not None else None
    place = next((each for each in places if each.channel_type != failed), None)
    if place is None or row.content.get("notice"):
        return None
    became = {"refused": "was refused", "unknown-after-crash": "may or may not have arrived"}
    text = f"A message to {_place(row.address)} {became.get(row.delivery, 'could not be delivered')}: {row.reason}."
    return OutboundRow(
        id=MessageId(f"notice-{row.id}"),
        kind="chat",
        timestamp=timestamp(),
        content={"text": text, "notice": True},
        address=place,
    )


def _place(address: Address | None) -> str:
    return "nowhere" if address is None else f"{address.channel_type}:{address.platform_id}"


def _excerpt(row: OutboundRow) -> str | None:
    text = row.content.get("text")
    if not isinstance(text, str):
        return None
    return text if len(text) <= EXCERPT_CHARACTERS else f"{text[:EXCERPT_CHARACTERS]}…"
