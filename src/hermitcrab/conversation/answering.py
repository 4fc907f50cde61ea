"""Answers of people to agents' questions, whether chosen or typed, back into the session that asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from functools import partial

import anyio
import structlog

from hermitcrab.channels.base import Choice, Receipt
from hermitcrab.containers.runner import ContainerRunner
from hermitcrab.errors import HermitcrabError
from hermitcrab.logic.answers import Answers, Late, Question, answer_in, may_answer, open_for_s
from hermitcrab.logic.kinds import chosen
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import MessageId, SessionId
from hermitcrab.model.messages import ChannelMessage, InboundRow, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.store import questions, sessions
from hermitcrab.store.clock import timestamp
from hermitcrab.store.database import Store
from hermitcrab.store.questions import AskedQuestion

LAST_WORDS = 16
"""Newest messages of a session among which an agent's last word is looked for."""

QUESTIONS_AT_MOST = 64
"""Newest things said of a session that came from elsewhere, among which open questions are looked for."""

SHOWN = frozenset({"sending", "delivered", "confirmed", "unknown-after-crash"})
"""States of a question that somebody may have seen."""

log = structlog.get_logger(__name__)

_WHY_NOT = {
    "answered": "has been answered already",
    "expired": "cannot be answered any more, as its time is over",
    "not-asked": "is for somebody else to answer",
}


class Answering:
    def __init__(
        self, store: Store, mailboxes: Mailboxes, runner: ContainerRunner, *, said: Callable[[Session], None]
    ) -> None:
        """`said`: told of a session in which something waits for delivery."""
        self._store, self._mailboxes, self._runner, self._said = store, mailboxes, runner, said

    async def choose(self, choice: Choice) -> Receipt:
        """An option that somebody chose of a question that was shown. Only the first answer counts."""
        found = await self.delivered(choice.key)
        if found is None:
            return Receipt(accepted=False, reason="there is no such question")
        session, asked = found
        value = chosen(asked.content, choice.option)
        if value is None:
            return Receipt(accepted=False, reason="the question has no such option")
        if not may_answer(asked.content, choice.user_id):
            return Receipt(accepted=False, reason=f"the question {_WHY_NOT['not-asked']}")
        known = await self._store.read(lambda connection: questions.by_message(connection, session.id, asked.id))
        if known is not None and known.expires_at <= timestamp() and not await self._is_answered(session, asked.id):
            return Receipt(accepted=False, reason=f"the question {_WHY_NOT['expired']}")
        return await self._answer(session, asked, value, choice.user_id, answer_id=choice.key)

    async def typed(
        self, message: ChannelMessage, asked: Sequence[AskedQuestion], *, keys: Collection[str]
    ) -> Receipt | None:
        """What becomes of a message in a conversation with questions, oldest first. None: it is an ordinary one.

        `keys`: under which ids it would have been kept if it had come before.
        """
        text, sender = message.content.get("text"), message.content.get("senderId")
        if (
            not isinstance(text, str)
            or message.files
            or message.content.get("attachments")
            or message.content.get("isFromMe")
        ):
            return None
        now = timestamp()
        for each in asked:
            if each.answer_id == message.id:
                return _repeat(each)
        # Of those that are over, only the newest can still be meant.
        looked_at = [each for each in asked[:-1] if each.answer_id is None and each.expires_at > now] + [*asked[-1:]]
        candidates: list[tuple[Session, OutboundRow]] = []
        seen: list[Question] = []
        for each in looked_at:
            try:
                looked = await self._look(each, message.id, keys)
            except HermitcrabError as error:
                # A mailbox that cannot be read keeps nobody from talking to the other agents of the chat.
                log.error("question.unreadable", session=each.session_id, text=error.message)
                continue
            if isinstance(looked, Receipt):
                return looked
            if looked is not None:
                candidates.append(looked[:2])
                seen.append(looked[2])
        match answer_in(text, sender if isinstance(sender, str) else None, seen):
            case Answers(place, value):
                session, row = candidates[place]
                return await self._answer(session, row, value, str(sender or ""), answer_id=message.id)
            case Late(place, why):
                session, row = candidates[place]
                await self._tell(session, row, message, _WHY_NOT[why])
                return None
            case None:
                return None

    async def delivered(self, key: str) -> tuple[Session, OutboundRow] | None:
        """The message that a key of a delivery, or of a part of one, stands for."""
        session_id, _, row_id = key.partition("#")[0].partition("/")
        session = await self._store.read(lambda connection: sessions.by_id(connection, SessionId(session_id)))
        if session is None:
            return None
        row = await self._mailboxes.run(session, lambda mailbox: mailbox.outbound(row_id))
        return None if row is None else (session, row)

    async def _look(
        self, asked: AskedQuestion, message_id: str, keys: Collection[str]
    ) -> tuple[Session, OutboundRow, Question] | Receipt | None:
        """The question as its session knows it now. A receipt: this very message has answered it before."""
        session = await self._store.read(lambda connection: sessions.by_id(connection, asked.session_id))
        if session is None:
            return None

        def look(mailbox: Mailbox) -> tuple[OutboundRow, InboundRow | None, bool] | None:
            row = mailbox.outbound(asked.message_id)
            if row is None or row.delivery not in SHOWN or any(mailbox.inbound(key) is not None for key in keys):
                return None
            newest = (each for each in mailbox.history(None, LAST_WORDS) if isinstance(each, OutboundRow))
            last = next((each for each in newest if each.address == row.address), None)
            return row, mailbox.inbound(_answer_row(row.id)), last is not None and last.id == row.id

        found = await self._mailboxes.run(session, look)
        if found is None:
            return None
        row, answer, is_last_word = found
        if answer is not None and answer.content.get("answerId") == message_id:
            return _repeat(asked)
        question = Question(
            content=row.content,
            answered=answer is not None,
            expired=asked.expires_at <= timestamp(),
            is_last_word=is_last_word,
        )
        return session, row, question

    async def _answer(
        self, session: Session, asked: OutboundRow, value: str, user_id: str, *, answer_id: str
    ) -> Receipt:
        """Commit the answer as a message of the session, and have the agent woken for it."""
        row = InboundRow(
            id=_answer_row(asked.id),
            kind="system",
            timestamp=timestamp(),
            content={
                "type": "question_response",
                "questionId": asked.id,
                "selectedOption": value,
                "userId": user_id,
                "answerId": answer_id,
                "action": "question_response",
                "status": "answered",
                "result": {"question": asked.content.get("question"), "answer": value, "by": user_id},
            },
            address=asked.address,
        )
        with anyio.CancelScope(shield=True):
            await self._store.write(lambda connection: sessions.unsettle(connection, session.id))
            accepted = await self._mailboxes.run(session, lambda mailbox: mailbox.accept(row))
            if accepted is not None:
                await self._store.write(
                    lambda connection: questions.answered(connection, session.id, asked.id, answer_id)
                )
                await self._runner.offer(session, accepted)
        reason = "it was answered before" if accepted is None else None
        return Receipt(accepted=True, reason=reason, row_ids=(row.id,), session_ids=(session.id,))

    async def _is_answered(self, session: Session, message_id: str) -> bool:
        return await self._mailboxes.run(session, lambda mailbox: mailbox.inbound(_answer_row(message_id))) is not None

    async def _tell(self, session: Session, asked: OutboundRow, message: ChannelMessage, why: str) -> None:
        """One sentence to whoever answered in vain; the message itself goes on to the agent."""
        title = str(asked.content.get("title") or asked.content.get("question") or "")[:80]
        text = f"The question “{title}” {why}. I have passed your words on as a message."
        notice = OutboundRow(
            id=MessageId(f"late-{hashlib.sha256(f'{asked.id}/{message.id}'.encode()).hexdigest()[:24]}"),
            kind="chat",
            timestamp=timestamp(),
            content={"text": text, "notice": True},
            address=message.address,
        )
        await self._store.write(lambda connection: sessions.unsettle(connection, session.id))
        await self._mailboxes.run(session, lambda mailbox: mailbox.append([notice]))
        self._said(session)


async def open_again(store: Store, mailboxes: Mailboxes, session: Session) -> None:
    """Let people answer what a session has asked that came from another home. The time of each begins anew."""

    def unanswered(mailbox: Mailbox) -> list[OutboundRow]:
        return [
            row
            for row in reversed(mailbox.newest_said(QUESTIONS_AT_MOST))
            if row.content.get("type") == "ask_question"
            and row.delivery in SHOWN
            and mailbox.inbound(_answer_row(row.id)) is None
        ]

    for row in await mailboxes.run(session, unanswered):
        if row.address is not None:
            open_s = open_for_s(row.content)
            await store.write(
                partial(questions.ask, session_id=session.id, message_id=row.id, address=row.address, open_s=open_s)
            )


def _answer_row(question_id: str) -> MessageId:
    return MessageId(f"qr-{question_id}")


def _repeat(asked: AskedQuestion) -> Receipt:
    return Receipt(
        accepted=True,
        reason="it was received before",
        row_ids=(_answer_row(asked.message_id),),
        session_ids=(asked.session_id,),
    )
