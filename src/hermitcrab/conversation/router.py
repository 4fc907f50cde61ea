"""From a channel's event to rows in mailboxes: which agents hear it, in which sessions, and that it is on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Literal

import anyio
import structlog
from anyio import to_thread

from hermitcrab.channels.base import Choice, Receipt
from hermitcrab.containers.runner import ContainerRunner
from hermitcrab.conversation import inbox
from hermitcrab.conversation.answering import Answering
from hermitcrab.conversation.inbox import Attachment, Inbox
from hermitcrab.errors import BadInputError, HermitcrabError
from hermitcrab.logic.delivery import plain_reason
from hermitcrab.logic.routing import Hearing, hearings, thread_of_session
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.groups import MessagingGroup
from hermitcrab.model.ids import MessageId, SessionId, new_id
from hermitcrab.model.messages import ChannelMessage, InboundRow, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.store import messaging_groups, questions, sessions, wirings
from hermitcrab.store.database import Store
from hermitcrab.store.questions import AskedQuestion
from hermitcrab_wire.codec import is_too_deep
from hermitcrab_wire.limits import MAX_FILES_IN_A_MESSAGE, MAX_NESTING

WAITING_AT_MOST = 10_000
"""Unanswered messages whose files are kept for them."""

log = structlog.get_logger(__name__)


class Router:
    """Implements `channels.base.ChannelHost`."""

    def __init__(
        self,
        store: Store,
        mailboxes: Mailboxes,
        runner: ContainerRunner,
        *,
        message_bytes_at_most: int,
        failed_later: Callable[[Session, OutboundRow], None] = lambda _session, _row: None,
        inbox_of: Callable[[Session], Path],
        said: Callable[[Session], None] = lambda _: None,
    ) -> None:
        """`failed_later`: told of a message that a platform had taken and then could not deliver.

        `inbox_of`: where a session's files from people lie. `said`: told of a session in which the host has said
        something.
        """
        self._store, self._mailboxes, self._runner = store, mailboxes, runner
        self._bytes_at_most = message_bytes_at_most
        self._failed_later, self._inbox_of = failed_later, inbox_of
        self._answering = Answering(store, mailboxes, runner, said=said)

    async def receive(self, message: ChannelMessage) -> Receipt:
        """Commit the message for every agent that hears it, then have them woken."""
        _check(message, self._bytes_at_most)
        plan = await self._store.read(lambda connection: _plan(connection, message))
        if plan.asked:
            answered = await self._answering.typed(message, plan.asked, keys=_keys(plan.chat, message))
            if answered is not None:
                return answered
        if plan.chat is None:
            return Receipt(accepted=False, reason="no agent is wired to this chat")
        if not plan.heard:
            return Receipt(accepted=False, reason="no agent of this chat is addressed by it")
        chat = plan.chat
        heard: list[tuple[Session, InboundRow]] = []
        failed: list[HermitcrabError] = []
        repeats = 0
        persisted_at: float | None = None
        # A channel that goes away in between must not leave a row that is on disk and that nobody was told of.
        with anyio.CancelScope(shield=True):
            for hearing, known in plan.heard:
                try:
                    session = known or await self._new_session(hearing, chat, message)
                    accepted = await self._accept(session, hearing, message)
                    persisted_at = time.monotonic()
                    if accepted is None:
                        repeats += 1
                        await self._see_to_repeat(session, hearing, message)
                except HermitcrabError as error:
                    # One agent's trouble keeps no other from hearing it (law 14).
                    failed.append(error)
                    continue
                if accepted is not None and accepted.trigger:
                    await self._runner.offer(session, accepted)
                heard.append((session, accepted or _row(hearing, message)))
        if failed:
            # The channel may bring it again: whoever has it already recognises the repeat.
            raise failed[0]
        return Receipt(
            accepted=True,
            reason="it was received before" if repeats == len(plan.heard) else None,
            row_ids=tuple(row.id for _, row in heard),
            session_ids=tuple(session.id for session, _ in heard),
            persisted_at=persisted_at,
        )

    async def choose(self, choice: Choice) -> Receipt:
        """The answer to an agent's question, as a message in its session. Only the first one counts."""
        return await self._answering.choose(choice)

    async def settled(self, key: str, *, failed: str | None) -> None:
        """What became later of a delivery. What does not fit what is known of it changes nothing."""
        found = await self._answering.delivered(key)
        if found is None:
            return
        session, row = found
        status: Literal["confirmed", "failed"] = "confirmed" if failed is None else "failed"
        reason = None if failed is None else plain_reason(failed)
        changed = await self._mailboxes.run(
            session, lambda mailbox: mailbox.settle_later(row.id, status, reason, tell=failed is not None)
        )
        if changed and failed is not None:
            self._failed_later(session, replace(row, delivery="failed", reason=reason))

    async def _see_to_repeat(self, session: Session, hearing: Hearing, message: ChannelMessage) -> None:
        """Whoever sends something again may do so because nothing came of it."""
        key = _row(hearing, message).id
        row = await self._mailboxes.run(session, lambda mailbox: mailbox.inbound(key))
        if row is not None and row.trigger and row.status == "pending":
            self._runner.request(session)

    async def _new_session(self, hearing: Hearing, chat: MessagingGroup, message: ChannelMessage) -> Session:
        session = Session(
            id=SessionId(new_id("sess", int(time.time() * 1000))),
            agent_group_id=hearing.wiring.agent_group_id,
            messaging_group_id=chat.id,
            thread_id=_thread(hearing, chat, message),
        )
        return await self._store.write(lambda connection: sessions.find_or_insert(connection, session))

    async def _accept(self, session: Session, hearing: Hearing, message: ChannelMessage) -> InboundRow | None:
        row = _row(hearing, message)
        if message.files:
            attachments = await self._stage(session, row.id, message)
            row = replace(row, content={**row.content, "attachments": [*_listed(row), *attachments]})
        with self._runner.receiving(session.id) as attended:
            if not attended:
                await self._store.write(lambda connection: sessions.unsettle(connection, session.id))
            return await self._mailboxes.run(session, lambda mailbox: mailbox.accept(row))

    async def _stage(self, session: Session, key: MessageId, message: ChannelMessage) -> list[Attachment]:
        """Lay the message's files into the session's inbox, before the row that names them is committed."""
        place = Inbox(self._inbox_of(session))
        waiting = await self._mailboxes.run(session, lambda mailbox: mailbox.unfinished(WAITING_AT_MOST))
        ids = [each.id for each in waiting]
        return await to_thread.run_sync(partial(place.stage, key, message.files, unanswered=ids))


def _listed(row: InboundRow) -> list[Attachment]:
    """What the channel itself says of attachments, without anything that would look like a file of ours."""
    given = row.content.get("attachments")
    listed = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    return [{key: value for key, value in each.items() if key != "localPath"} for each in listed]


@dataclass(frozen=True, slots=True)
class _Plan:
    chat: MessagingGroup | None
    """None: no agent is wired to it."""
    heard: list[tuple[Hearing, Session | None]]
    """Who takes the message, each with its session if there is one already."""
    asked: list[AskedQuestion]
    """Questions of agents in this conversation, which the message may answer."""


def _plan(connection: Connection, message: ChannelMessage) -> _Plan:
    """All that the central database knows of the message, read at once."""
    chat = messaging_groups.by_address(connection, message.address)
    wired = wirings.for_messaging_group(connection, chat.id) if chat is not None else []
    asked = questions.in_chat(connection, message.address)
    if chat is None or not wired:
        return _Plan(None, [], asked)
    heard = hearings(message, chat, wired, engaged_sessions=frozenset())
    return _Plan(
        chat,
        [
            (
                hearing,
                sessions.find(connection, hearing.wiring.agent_group_id, chat.id, _thread(hearing, chat, message)),
            )
            for hearing in heard
        ],
        asked,
    )


def _keys(chat: MessagingGroup | None, message: ChannelMessage) -> tuple[str, ...]:
    """Ids of rows that the message may have."""
    return (message.id,) if chat is None else (message.id, f"{message.id}@{chat.id}")


def _thread(hearing: Hearing, chat: MessagingGroup, message: ChannelMessage) -> str | None:
    return thread_of_session(hearing.wiring, message, supports_threads=chat.is_group)


def _row(hearing: Hearing, message: ChannelMessage) -> InboundRow:
    # Platforms number messages within a chat, and an agent-shared session hears several chats.
    shared = hearing.wiring.session_mode == "agent-shared"
    key = f"{message.id}@{hearing.wiring.messaging_group_id}" if shared else message.id
    return InboundRow(
        id=MessageId(key),
        kind=message.kind,
        timestamp=message.timestamp,
        content=message.content,
        address=message.address,
        trigger=hearing.mode == "answer",
    )


def _check(message: ChannelMessage, bytes_at_most: int) -> None:
    """Refuse what cannot be kept whole. Raises BadInputError."""
    inbox.check(message.files, files_at_most=MAX_FILES_IN_A_MESSAGE)
    if not 0 < len(message.id) <= 150:  # leaves room for suffixes within the link's limit
        raise BadInputError("a message's id must have 1 to 150 characters")
    try:
        size = len(json.dumps(message.content, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError as error:
        raise BadInputError(
            "The message is not valid Unicode.", hint="Send it as UTF-8; nothing of it was kept."
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInputError("The message is not plain JSON.", hint="Nothing of it was kept.") from error
    if size > bytes_at_most:
        raise BadInputError(
            f"The message has {size:,} bytes; the limit is {bytes_at_most:,}.",
            hint="Send a shorter one, or raise limits.message_bytes in hermitcrab.toml.",
        )
    if is_too_deep(message.content):
        raise BadInputError(f"The message is nested more than {MAX_NESTING} deep.", hint="Nothing of it was kept.")
