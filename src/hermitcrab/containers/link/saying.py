"""What a runner's frame says, as the row that is kept: the host's own address and time, its kind checked, its files.

What a frame says of session or sender is ignored; where it may go is decided again when it is delivered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from anyio import to_thread

from hermitcrab.containers.link.uploads import Uploads
from hermitcrab.errors import BadInputError, ConflictError, HermitcrabError
from hermitcrab.logic import kinds
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.groups import Destination
from hermitcrab.model.ids import MessageId
from hermitcrab.model.messages import Address, InboundRow, OutboundRow, OutFile
from hermitcrab.model.sessions import Session
from hermitcrab.store.clock import timestamp, utc_now
from hermitcrab_wire.codec import WireError, is_too_deep
from hermitcrab_wire.limits import MAX_CONTENT_BYTES, MAX_FILES_IN_A_MESSAGE, MAX_ID_CHARACTERS, MAX_NESTING

OUTBOUND_KINDS = frozenset({"chat", "chat-sdk"})

QUESTIONS_IN_A_TURN_AT_MOST = 64
"""Through which it is followed back who began the turn."""

LATEST_DELIVERY = timedelta(days=366)


class RefusedError(HermitcrabError):
    """What the agent said is not accepted, and the link goes on."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def code_of(error: HermitcrabError) -> str:
    """What the runner is told of a refusal."""
    if isinstance(error, RefusedError):
        return error.code
    return "id-reused" if isinstance(error, ConflictError) else "not-accepted"


class Sayings:
    def __init__(
        self,
        session: Session,
        mailboxes: Mailboxes,
        uploads: Uploads,
        outstanding: Callable[[], Mapping[MessageId, InboundRow | None]],
    ) -> None:
        """`outstanding`: rows that the runner works on, so that most of what is answered need not be read."""
        self._session, self._mailboxes, self._uploads, self._outstanding = session, mailboxes, uploads, outstanding

    async def row(self, said: Mapping[str, Any], destinations: list[Destination], home: Address | None) -> OutboundRow:
        """The row for one thing said. Raises RefusedError, or WireError when the frame breaks the contract."""
        key, kind, content = said.get("id"), said.get("kind", "chat"), said.get("content")
        if not (isinstance(key, str) and 0 < len(key) <= MAX_ID_CHARACTERS and isinstance(content, dict)):
            raise WireError("malformed", "something said has no id or no content")
        if kind not in OUTBOUND_KINDS:
            raise RefusedError("unknown-kind", f"messages of kind {str(kind)[:40]!r} are not accepted")
        if is_too_deep(content):
            raise RefusedError("too-deep", f"a message may not be nested more than {MAX_NESTING} deep")
        size = len(json.dumps(content, ensure_ascii=False).encode())
        if size > MAX_CONTENT_BYTES:
            raise RefusedError("too-large", f"a message may have {MAX_CONTENT_BYTES} bytes")
        try:
            content = kinds.checked(content, key)
        except BadInputError as error:
            raise RefusedError("not-accepted", error.message) from error
        about = await self._about(content)
        answered = await self._answered(said.get("in_reply_to"))
        if content.get("answeredBy") == "asker":
            content["askedOf"] = await self._asker(answered)
        address: Address | None
        if about is not None:
            address = about
        elif (to := said.get("to")) is not None:
            address = _address_of(str(to), destinations)
        elif answered is not None and answered.address is not None:
            address = answered.address
        else:
            address = home
        if address is None:
            raise RefusedError("no-address", "this session belongs to no chat; name a destination")
        return OutboundRow(
            id=MessageId(key),
            kind=str(kind),
            timestamp=timestamp(),
            content=content,
            address=address,
            in_reply_to=answered.id if answered is not None else None,
            deliver_after=_time(said.get("deliver_after")),
            files=await self._files(key, said.get("files"), content),
        )

    async def _about(self, content: dict[str, Any]) -> Address | None:
        """Where the message is that an edit or a reaction is about; its row's id takes the place of its number."""
        seq = content.get("seq")
        if "operation" not in content or not isinstance(seq, int):
            return None
        found = await self._mailboxes.run(self._session, lambda mailbox: mailbox.numbered(seq))
        if found is None or found.address is None:
            raise RefusedError("unknown-message", f"there is no message #{seq} in a chat")
        content["messageId"] = found.id
        del content["seq"]
        return found.address

    async def _files(self, key: str, ids: object, content: dict[str, Any]) -> tuple[OutFile, ...]:
        names = content.get("files", [])
        if not ids and not names:
            return ()
        if not isinstance(ids, list) or len(ids) > MAX_FILES_IN_A_MESSAGE or not all(isinstance(i, str) for i in ids):
            raise RefusedError("unknown-file", "files must be sent before the message that names them")
        if len(ids) != len(names):
            raise RefusedError("unknown-file", f"the message names {len(names)} files, and {len(ids)} came with it")
        found = await to_thread.run_sync(self._uploads.take, ids, names)
        if found is None:
            # A repeat of what was kept before changes nothing, whatever became of its files since.
            if await self._mailboxes.run(self._session, lambda mailbox: mailbox.outbound(key)) is not None:
                return ()
            raise RefusedError("unknown-file", "a file of this message is not here; send it again")
        return found

    async def _asker(self, row: InboundRow | None) -> str:
        """Who wrote the message that is worked on: only that person may answer a question that says so."""

        def trace(mailbox: Mailbox) -> object:
            found = row
            for _ in range(QUESTIONS_IN_A_TURN_AT_MOST):
                if found is None or found.content.get("type") != "question_response":
                    break
                # The answer to an earlier question: the one who wanted all this is further back.
                question = mailbox.outbound(str(found.content.get("questionId")))
                found = mailbox.inbound(question.in_reply_to) if question is not None and question.in_reply_to else None
            return found.content.get("senderId") if found is not None else None

        sender = await self._mailboxes.run(self._session, trace)
        if not isinstance(sender, str) or not sender:
            raise RefusedError("nobody-asked", "nobody wrote the message that this replies to; let anyone answer it")
        return sender

    async def _answered(self, in_reply_to: object) -> InboundRow | None:
        if not isinstance(in_reply_to, str):
            return None
        if (row := self._outstanding().get(MessageId(in_reply_to))) is not None:
            return row
        return await self._mailboxes.run(self._session, lambda mailbox: mailbox.inbound(in_reply_to))


def _address_of(name: str, destinations: list[Destination]) -> Address:
    for each in destinations:
        if each.name == name and each.type == "channel" and each.channel_type and each.platform_id:
            return Address(channel_type=each.channel_type, platform_id=each.platform_id)
    known = ", ".join(sorted(each.name for each in destinations)) or "none"
    raise RefusedError("unknown-destination", f"no destination {name[:80]!r}; known: {known}")


def _time(text: object) -> str | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        latest = utc_now() + LATEST_DELIVERY
        if moment is not None and moment.tzinfo is not None and moment <= latest:
            return timestamp(moment)
    except (ValueError, OverflowError):
        pass
    raise RefusedError("bad-time", "`deliver_after` is a time with its zone, within a year from now")
