"""`chat.*`: a person at a terminal. What is on its way to the person goes through the terminal channel, not past it."""

from __future__ import annotations

import os
import pwd

from anyio import to_thread

from hermitcrab.control.host import ControlledHost
from hermitcrab.control.lookup import group_named, session_named
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import Emit
from hermitcrab.control.uploads import Uploads
from hermitcrab.errors import ConflictError, NotFoundError
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import MessageId
from hermitcrab.model.messages import InboundRow, OutboundRow, delivery_key
from hermitcrab_wire.limits import MAX_FILE_BYTES, MAX_FILES_IN_A_MESSAGE

HISTORY_PAGE = 64
HISTORY_AT_MOST = 1024
"""Rows after the message asked about that are looked through for its answers."""

ENDED = frozenset({"completed", "failed", "quarantined"})
"""States of a message that nothing more will be said to."""


class ChatMethods:
    def __init__(self, host: ControlledHost) -> None:
        self._host = host
        self._uploads = Uploads(host.home.trash / "incoming")

    async def attach(self, params: Params, emit: Emit) -> Json:
        """Be at a group's terminal until cancelled. Each event of kind `message` must be acknowledged by `chat.ack`."""
        folder = params.text("group")
        params.done()
        group = await group_named(self._host, folder)
        with self._host.terminal.attach(group.folder) as attachment:
            limit = self._host.settings.limits.message_bytes
            await emit({"kind": "attached", "attachment": attachment.id, "message_bytes": limit})
            async for event in attachment.events:
                await emit(event)
        return {}

    async def ack(self, params: Params, _emit: Emit) -> Json:
        attachment, key = params.text("attachment"), params.text("key")
        params.done()
        return {"acknowledged": self._host.terminal.acknowledge(attachment, key)}

    async def upload(self, params: Params, _emit: Emit) -> Json:
        """A part of a file that a message will name. Returns where the next one begins."""
        key, size = params.text("id"), params.integer("bytes", default=0, least=0, most=MAX_FILE_BYTES)
        offset = params.integer("offset", default=0, least=0, most=MAX_FILE_BYTES)
        data = params.optional_text("data") or ""
        params.done()
        return {"received": await to_thread.run_sync(self._uploads.add, key, size, offset, data)}

    async def send(self, params: Params, _emit: Emit) -> Json:
        """Returns once the message is on disk. The same `id` again is the same message."""
        folder, message_id, text = params.text("group"), params.text("id"), params.optional_text("text")
        named = [_named_file(each) for each in params.objects("files", most=MAX_FILES_IN_A_MESSAGE)]
        params.done()
        group = await group_named(self._host, folder)
        files = [await to_thread.run_sync(self._uploads.whole, *each) for each in named]
        receipt = await self._host.terminal.say(
            platform_id=group.folder,
            message_id=message_id,
            text=text or "",
            sender=_user_name(),
            files=tuple(files),
        )
        await to_thread.run_sync(self._uploads.drop, [key for key, _, _ in named])
        if not receipt.accepted:
            raise ConflictError(
                f"Group {group.folder!r} did not take the message: {receipt.reason}.",
                hint=f"crab groups show {group.folder} shows who hears its chats.",
            )
        return {
            "repeat": receipt.reason is not None,
            "heard_by": [
                {"session": session, "row": row}
                for session, row in zip(receipt.session_ids, receipt.row_ids, strict=True)
            ],
        }

    async def answers(self, params: Params, _emit: Emit) -> Json:
        """What has become of one message, and what was said to it in its own chat so far, oldest first."""
        name, row_id = params.text("session"), params.text("row")
        params.done()
        session = await session_named(self._host, name)
        row, outs = await self._host.mailboxes.run(session, lambda mailbox: _answers(mailbox, MessageId(row_id)))
        return {
            "status": row.status,
            "ended": row.status in ENDED,
            "tries": row.tries,
            "outs": [
                {
                    "key": delivery_key(session.id, out.id),
                    "message_kind": out.kind,
                    "content": out.content,
                    "in_reply_to": out.in_reply_to,
                    "delivery": out.delivery,
                    "reason": out.reason,
                }
                for out in outs
            ],
        }


def _answers(mailbox: Mailbox, row_id: MessageId) -> tuple[InboundRow, list[OutboundRow]]:
    row = mailbox.inbound(row_id)
    if row is None:
        raise NotFoundError(f"There is no message {row_id[:80]!r} in this session.")
    later: list[OutboundRow] = []
    before: int | None = None
    looked_at = 0
    while looked_at < HISTORY_AT_MOST:
        page = mailbox.history(before, HISTORY_PAGE)
        looked_at += len(page)
        later += [
            each
            for each in page
            if isinstance(each, OutboundRow) and each.seq > row.seq and each.address == row.address
        ]
        if len(page) < HISTORY_PAGE or page[-1].seq <= row.seq:
            break
        before = page[-1].seq
    later.reverse()
    named = [each for each in later if each.in_reply_to == row.id]
    if named or row.status not in ENDED:
        return row, named
    # It was answered together with others, and the answer names one of those.
    return row, [each for each in later if each.in_reply_to is not None]


def _named_file(params: Params) -> tuple[str, str, str]:
    """Upload, name and SHA-256."""
    named = params.text("id"), params.text("name"), params.text("sha256")
    params.done()
    return named


def _user_name() -> str:
    """Whoever reaches the socket is the host's own user (or root)."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid-{os.geteuid()}"
