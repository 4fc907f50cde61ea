"""One attempt to deliver one message: whether the agent may, through which channel, and what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from sqlite3 import Connection
from typing import Literal, TypeVar

import anyio
import structlog
from anyio import to_thread

from hermitcrab.channels.base import Channel, Delivery, SentFile
from hermitcrab.errors import ChannelError, HermitcrabError, NobodyThereError
from hermitcrab.logic.answers import open_for_s
from hermitcrab.logic.delivery import Trouble, plain_platform_id, plain_reason
from hermitcrab.logic.pieces import pieces
from hermitcrab.mailbox.mailbox import AGAIN
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import SessionId
from hermitcrab.model.messages import Address, InboundRow, OutboundRow, OutFile, delivery_key
from hermitcrab.model.sessions import Session
from hermitcrab.store import destinations, messaging_groups, questions
from hermitcrab.store.database import Store
from hermitcrab_wire import faults

LONG_CHARACTERS = 32_768

Found = TypeVar("Found")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sent:
    """The channel took it."""

    platform_id: str | None


@dataclass(frozen=True, slots=True)
class NotGranted:
    """The agent may not send that there."""

    reason: str


Note = Callable[[int, str | None], Awaitable[None]]
"""Writes down that so many parts of the row have arrived, and the platform's id of the last of them."""


class Sender:
    def __init__(
        self,
        store: Store,
        mailboxes: Mailboxes,
        channels: Mapping[str, Channel],
        *,
        outbox_of: Callable[[Session], Path],
        deadline_s: float,
    ) -> None:
        """`outbox_of`: where a session's outgoing files lie."""
        self._store, self._mailboxes, self._channels = store, mailboxes, channels
        self._outbox_of, self._deadline_s = outbox_of, deadline_s
        self._own_chat: dict[SessionId, tuple[str, str]] = {}

    def is_idempotent(self, row: OutboundRow) -> bool:
        """Whether the row may be repeated after an attempt of which nobody knows what came of it."""
        channel = self._channel(row)
        return channel is not None and channel.supports_idempotency

    async def send(self, session: Session, row: OutboundRow, note: Note) -> Sent | NotGranted | Trouble:
        """One attempt at a row that is on record as being sent. Raises nothing of the channel's."""
        try:
            refusal = await self._refusal(session, row)
            if refusal is not None or row.address is None:
                return NotGranted(refusal or "it has no address")
            channel = self._channel(row)
            if channel is None:
                return Trouble(kind="transient", reason=f"channel {row.address.channel_type!r} is not set up")
            template = await self._delivery(session, row, row.address, channel)
            if row.content.get("type") == "ask_question":
                await self._open_question(session, row, row.address)
        except (HermitcrabError, OSError) as error:
            return Trouble(kind="transient", reason=plain_reason(f"it could not be made ready: {error}"))
        if isinstance(template, Trouble):
            return template
        shows = channel.traits.shows
        whole = await to_thread.run_sync(pieces, row.content, shows) if _is_long(row) else pieces(row.content, shows)
        platform_id: str | None = row.platform_message_id
        for number, content in enumerate(whole[row.parts_sent :], row.parts_sent):
            delivery = replace(
                template,
                key=f"{template.key}#{number + 1}" if number else template.key,
                content=content,
                target=template.target if "operation" in content else None,
                files=template.files if "files" in content else (),
            )
            came_of_it = await self._call(channel, delivery)
            if isinstance(came_of_it, Trouble):
                return came_of_it
            if number == 0:
                platform_id = came_of_it.platform_id
            if number + 1 < len(whole):
                await note(number + 1, platform_id)
        return Sent(platform_id)

    async def forget_files(self, session: Session, row: OutboundRow) -> None:
        """The row is where it was to go: its files are not needed any more."""
        if row.files:
            gone = await self._mailboxes.run(session, lambda mailbox: mailbox.forget_files(row.id))
            await to_thread.run_sync(_remove, self._outbox_of(session), gone)

    async def _delivery(
        self, session: Session, row: OutboundRow, address: Address, channel: Channel
    ) -> Delivery | Trouble:
        """The row as a delivery, before it is cut into what the platform takes at once."""
        target = None
        if "operation" in row.content and _can_refer(channel, row):
            about = str(row.content.get("messageId"))
            target = await self._name(about, await self._mailboxes.run(session, lambda mailbox: mailbox.named(about)))
            if target is None:
                return Trouble(kind="permanent", reason="the message that it is about was never delivered")
        files = await to_thread.run_sync(_files, self._outbox_of(session), row.files) if row.files else ()
        if files is None:
            return Trouble(kind="permanent", reason="a file of it is not on the disk any more")
        return Delivery(
            key=delivery_key(session.id, row.id),
            address=address,
            kind=row.kind,
            content=row.content,
            in_reply_to=row.in_reply_to,
            reply_to=None if row.in_reply_to is None else await self._name(row.in_reply_to, row.answers),
            target=target,
            files=files,
        )

    async def _open_question(self, session: Session, row: OutboundRow, address: Address) -> None:
        """Before it is shown, so that nobody can answer it before it is known."""
        seconds = open_for_s(row.content)
        await self._store.write(lambda connection: questions.ask(connection, session.id, row.id, address, seconds))

    async def _name(self, row_id: str, row: InboundRow | OutboundRow | None) -> str | None:
        """What the platform calls a message of either direction. An id that is no row's is taken for the platform's."""
        if isinstance(row, OutboundRow):
            return row.platform_message_id
        plain_id = row_id.partition(AGAIN)[0]
        if row is None or row.address is None or "@" not in plain_id:
            return plain_id
        # The router marks messages of sessions that hear several chats with the chat.
        address = row.address
        chat = await self._store.read(lambda connection: messaging_groups.by_address(connection, address))
        return plain_id.removesuffix(f"@{chat.id}") if chat is not None else plain_id

    async def _call(self, channel: Channel, delivery: Delivery) -> Sent | Trouble:
        try:
            with anyio.move_on_after(self._deadline_s) as attempt:
                platform_id = await _contained(lambda: channel.deliver(delivery))
                faults.point("delivery.sent")
                return Sent(plain_platform_id(platform_id))
        except NobodyThereError as error:
            return Trouble(kind="nobody", reason=plain_reason(error.message))
        except ChannelError as error:
            kind: Literal["transient", "permanent"] = "transient" if error.transient else "permanent"
            return Trouble(
                kind=kind, reason=plain_reason(error.message), retry_after_s=error.retry_after_s, limits=error.limits
            )
        except Exception as error:  # a channel is a plugin: whatever it raises costs this attempt
            log.exception("channel.broken", channel=channel.type, key=delivery.key)
            return Trouble(kind="broken", reason=plain_reason(f"the channel failed: {error!r}"))
        assert attempt.cancelled_caught
        return Trouble(kind="uncertain", reason=f"the channel did not answer in {self._deadline_s:g} s")

    async def _refusal(self, session: Session, row: OutboundRow) -> str | None:
        """Why the agent may not send there, checked at the moment of sending. None: it may."""
        address = row.address
        if address is None:
            return "it has no address"
        place = (address.channel_type, address.platform_id)
        if self._own_chat.get(session.id) == place:
            return None  # A session's own chat never changes; grants to other places may.

        def granted(connection: Connection) -> bool:
            chat = messaging_groups.by_address(connection, address)
            if chat is None:
                return False
            if chat.id == session.messaging_group_id:
                self._own_chat[session.id] = place
                return True
            return any(
                each.type == "channel" and (each.channel_type, each.platform_id) == place
                for each in destinations.for_agent_group(connection, session.agent_group_id)
            )

        if await self._store.read(granted):
            return None
        return f"the agent has no destination {address.channel_type}:{address.platform_id}"

    def _channel(self, row: OutboundRow) -> Channel | None:
        return self._channels.get(row.address.channel_type) if row.address is not None else None


class _ChannelGaveUpError(Exception):
    """A channel raised what is meant to end a task or a process, and nobody here was to end."""


async def _contained(function: Callable[[], Awaitable[Found]]) -> Found:
    """What `function` returns. A cancellation that is not ours, or an exit, is an error like any other here."""
    try:
        return await function()
    except anyio.get_cancelled_exc_class() as error:
        if anyio.current_effective_deadline() == float("-inf"):
            raise
        raise _ChannelGaveUpError("something in the channel was cancelled") from error
    except (SystemExit, GeneratorExit) as error:
        raise _ChannelGaveUpError(f"the channel raised {type(error).__name__}") from error


def _can_refer(channel: Channel, row: OutboundRow) -> bool:
    """Whether the channel is told to which message an edit or a reaction belongs, rather than shown words."""
    shows = channel.traits.shows
    return shows.edits if row.content.get("operation") == "edit" else shows.reactions


def _is_long(row: OutboundRow) -> bool:
    """Whether cutting it would hold up everybody else for a moment."""
    return any(isinstance(each, str) and len(each) > LONG_CHARACTERS for each in row.content.values())


def _files(folder: Path, files: tuple[OutFile, ...]) -> tuple[SentFile, ...] | None:
    """The files of a row as a channel takes them; None when one is gone. The folder is the host's alone."""
    found = tuple(
        SentFile(name=each.name, path=folder / each.handle, bytes=each.bytes, sha256=each.sha256) for each in files
    )
    return found if all(each.path.is_file() for each in found) else None


def _remove(folder: Path, files: tuple[OutFile, ...]) -> None:
    for each in files:
        (folder / each.handle).unlink(missing_ok=True)
