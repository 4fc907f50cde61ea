"""`messages.*` and `delivery.doctor`: what became of each message, what is stuck, and another attempt."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from sqlite3 import Connection

from hermitcrab.control.host import ControlledHost
from hermitcrab.control.lookup import session_named
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import Emit
from hermitcrab.errors import BadInputError, ConflictError, HermitcrabError, NotFoundError
from hermitcrab.logic.prognosis import of_incoming, of_outgoing
from hermitcrab.mailbox.deliveries import lane_of
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import MessageId, SessionId
from hermitcrab.model.lives import STATES, Entry, Life
from hermitcrab.model.messages import delivery_key
from hermitcrab.model.sessions import Session
from hermitcrab.store import sessions

MOST_LISTED = 1000
SESSIONS_AT_MOST = 200
"""Mailboxes that one listing opens; the next page goes on after them."""

SEARCHED_AT_MOST = 1000
"""Sessions, newest first, that are searched for a message that was named without its session."""

UNFINISHED_AT_MOST = 500
"""Of one session, in one look."""


class MessageMethods:
    def __init__(self, host: ControlledHost) -> None:
        self._host = host

    async def list(self, params: Params, _emit: Emit) -> Json:
        """The newest messages of one session, or of a page of sessions; with `state` only those in it."""
        name, state, before = (
            params.optional_text("session"),
            params.optional_text("state"),
            params.optional_text("before"),
        )
        limit = params.integer("limit", default=50, least=1, most=MOST_LISTED)
        params.done()
        if state is not None and state not in STATES:
            raise BadInputError(f"There is no state {state[:40]!r}.", hint=f"States: {', '.join(STATES)}.")
        if name is not None:
            page, more = [await session_named(self._host, name)], False
        else:
            start = SessionId(before) if before else None
            page = await self._host.store.read(
                lambda connection: sessions.page(connection, before=start, limit=SESSIONS_AT_MOST)
            )
            more = len(page) == SESSIONS_AT_MOST
        found: list[tuple[Session, Entry]] = []
        unreadable: list[Json] = []
        for session in page:
            try:
                entries = await self._host.mailboxes.run(session, lambda mailbox: mailbox.entries(state, limit))
            except HermitcrabError as error:
                unreadable.append({"session": session.id, "reason": error.message})
                continue
            found += [(session, each) for each in entries]
        if name is None:
            found.sort(key=lambda each: each[1].at, reverse=True)
        return {
            "messages": [_entry_json(session, each) for session, each in found[:limit]],
            "unreadable": unreadable,
            "next_before": page[-1].id if more else None,
        }

    async def show(self, params: Params, _emit: Emit) -> Json:
        """One message: its state, everything that happened to it, and what it answers or was answered by."""
        name = params.text("message")
        params.done()
        session, life = await self._find(name)
        return {
            "message": _entry_json(session, life.entry),
            "events": [asdict(each) for each in life.events],
            "answers" if life.entry.direction == "in" else "answered": [
                _entry_json(session, each) for each in life.linked
            ],
        }

    async def retry(self, params: Params, _emit: Emit) -> Json:
        """Another attempt at a message that ended badly, or an earlier one at a message that waits."""
        name = params.text("message")
        params.done()
        session, life = await self._find(name)
        entry, host = life.entry, self._host
        key = MessageId(entry.id)
        # Marked before anything waits, so that a host that dies in between looks here at its next start.
        await host.store.write(lambda connection: sessions.unsettle(connection, session.id))
        if entry.direction == "out":
            if entry.state in {"delivered", "confirmed"}:
                raise ConflictError(f"message {entry.id} is {entry.state}, so there is nothing to repeat")
            if entry.state == "queued":
                await host.mailboxes.run(session, lambda mailbox: mailbox.deliver_now(lane_of(entry.address)))
            else:
                await host.mailboxes.run(session, lambda mailbox: mailbox.retry_delivery(key))
            host.deliverer.notify(session)
            return {"message": delivery_key(session.id, key), "as": delivery_key(session.id, key)}
        again: str | None = entry.id
        if entry.state == "quarantined":
            await host.mailboxes.run(session, lambda mailbox: mailbox.release(key))
        elif entry.state != "received":
            again = await host.mailboxes.run(session, lambda mailbox: _accept_again(mailbox, key))
        if again is None:
            raise ConflictError(
                f"Message {entry.id} was repeated before.", hint=f"crab messages list --session {session.id}"
            )
        host.runner.request(session)
        return {
            "message": delivery_key(session.id, key),
            "as": delivery_key(session.id, MessageId(again)),
        }

    async def doctor(self, params: Params, _emit: Emit) -> Json:
        """What waits in either direction in every session that is not settled, why, and what happens next."""
        params.done()
        host, now = self._host, datetime.now(UTC)
        unsettled = await host.store.read(_unsettled)
        under_way = host.deliverer.under_way()
        views = {view.session_id: view for view in host.runner.views()}
        waiting: list[Json] = []
        for session in unsettled:
            try:
                entries = await host.mailboxes.run(session, lambda mailbox: mailbox.unfinished(UNFINISHED_AT_MOST))
            except HermitcrabError as error:
                waiting.append(_unreadable(session, error))
                continue
            view = views.get(session.id)
            troubled: set[str] = set()
            for each in entries:
                waited_s = _seconds_since(each.queued_at or each.at, now)
                if each.direction == "in":
                    text = view.text if view else ""
                    found = of_incoming(each, waited_s=waited_s, phase=view.phase if view else None, text=text)
                else:
                    lane = lane_of(each.address)
                    found = of_outgoing(
                        each,
                        now=now,
                        waited_s=waited_s,
                        give_up_after_s=host.settings.delivery.give_up_after_s,
                        under_way=lane in under_way.get(session.id, ()),
                        held_back=lane in troubled and each.state == "queued",
                    )
                    if each.state in {"queued", "sending"}:
                        troubled.add(lane)
                waiting.append({**_entry_json(session, each), "waited_s": round(waited_s, 1), **asdict(found)})
        stuck = sum(each["stuck"] for each in waiting)
        return {
            "stuck": stuck,
            "waiting": waiting,
            "sessions": len(unsettled),
            "under_way": sum(map(len, under_way.values())),
            "paused_channels": {each: round(left_s, 1) for each, left_s in sorted(host.deliverer.paused().items())},
            "by_state": dict(sorted(Counter(each["state"] for each in waiting).items())),
        }

    async def _find(self, name: str) -> tuple[Session, Life]:
        """The message that `SESSION/ID` or a bare ID names. Raises NotFoundError, or ConflictError when several do."""
        session_name, slash, row_id = name.partition("/")
        if slash:
            session = await session_named(self._host, session_name)
            life = await self._host.mailboxes.run(session, lambda mailbox: mailbox.life(row_id))
            if life is not None:
                return session, life
            raise NotFoundError(f"Session {session.id} has no message {row_id[:80]!r}.")
        found: list[tuple[Session, Life]] = []
        page = await self._host.store.read(lambda connection: sessions.page(connection, limit=SEARCHED_AT_MOST))
        for session in page:
            try:
                life = await self._host.mailboxes.run(session, lambda mailbox: mailbox.life(name))
            except HermitcrabError:
                continue  # `messages.list` and the doctor name mailboxes that cannot be read.
            if life is not None:
                found.append((session, life))
        if not found:
            raise NotFoundError(
                f"The newest {len(page)} session(s) have no message {name[:80]!r}.",
                hint="crab messages list shows ids.",
            )
        if len(found) > 1:
            names = ", ".join(delivery_key(session.id, MessageId(name)) for session, _ in found[:10])
            raise ConflictError(f"{len(found)} sessions have a message {name[:80]!r}.", hint=f"Name one: {names}")
        return found[0]


def _unsettled(connection: Connection) -> list[Session]:
    return sessions.unsettled(connection)


def _accept_again(mailbox: Mailbox, key: MessageId) -> str | None:
    row = mailbox.accept_again(key)
    return row.id if row is not None else None


def _unreadable(session: Session, error: HermitcrabError) -> Json:
    return {
        "id": None,
        "session": session.id,
        "state": "unreadable",
        "reason": error.message,
        "stuck": True,
        "next": error.hint or f"crab sessions check {session.id}",
        "next_at": None,
    }


def _entry_json(session: Session, entry: Entry) -> Json:
    return {**asdict(entry), "id": delivery_key(session.id, MessageId(entry.id)), "session": session.id}


def _seconds_since(text: str, now: datetime) -> float:
    try:
        then = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    then = then if then.tzinfo is not None else then.replace(tzinfo=UTC)
    return max(0.0, (now - then).total_seconds())
