"""The end of a container: certificate, rows given back, removal. `runner.py` decides when."""

from __future__ import annotations

import functools
from collections import Counter, deque
from typing import Any

import anyio
import structlog
from anyio import to_thread

from hermitcrab.containers import certificates
from hermitcrab.containers.certificates import Certificate
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle.slot import Slot
from hermitcrab.containers.materials.desk import MaterialsDesk, session_folders
from hermitcrab.errors import EngineError, HermitcrabError
from hermitcrab.logic.ending import HEALTHY_AFTER_S, Cause, Circumstances, Ending, explain
from hermitcrab.logic.quarantine import reason_to_quarantine
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.container import ContainerStatus, ContainerView, ExitRecord
from hermitcrab.model.ids import Generation, MessageId, SessionId, new_id
from hermitcrab.model.messages import InboundRow, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.observe.supervision import isolated
from hermitcrab.settings.home import Home
from hermitcrab.store import sessions
from hermitcrab.store.clock import utc_now
from hermitcrab.store.database import Store
from hermitcrab_wire import faults

LOOKED_BACK = 10
"""Generations before the last one that may lack a certificate."""

UNKEPT_AT_MOST = 1000
"""Certificates in memory that could not be written yet."""

log = structlog.get_logger(__name__)


class Ender:
    def __init__(
        self,
        *,
        home: Home,
        store: Store,
        mailboxes: Mailboxes,
        engine: Engine,
        desk: MaterialsDesk,
        same_way_at_most: int,
        machine_restarted: bool = False,
    ) -> None:
        """`machine_restarted`: since the last host on this home. `same_way_at_most`: see `logic.quarantine`."""
        self._same_way_at_most = same_way_at_most
        self._unattended = Circumstances(machine_restarted=machine_restarted, host_was_away=True)
        self._home, self._store, self._mailboxes = home, store, mailboxes
        self._engine, self._desk = engine, desk
        self._unkept: deque[tuple[Session, Certificate]] = deque()
        self._owed: Counter[SessionId] = Counter()
        """Certificates that wait or are being written, by session."""

    async def bury(self, slot: Slot, ending: Ending, record: ExitRecord | None) -> None:
        """Certificate, then removal; the order lets a crash in between be repeated without a loss.

        Raises EngineError when it cannot be removed. A full disk or a damaged mailbox does not keep a container alive:
        its certificate waits for better times, and claims that are not given back now are at the next start.
        """
        generation = slot.life.generation
        now = anyio.current_time()
        duration = now - slot.started_at if slot.started_at is not None else None
        lines = await self._last_lines(slot.name)
        returned = await self._give_back(slot, ending)
        certificate = Certificate(
            session=slot.session.id,
            generation=generation,
            cause=ending.cause,
            text=ending.text,
            ended_at=utc_now().isoformat(timespec="seconds"),
            duration_s=round(duration, 3) if duration is not None else None,
            exit_code=record.exit_code if record else None,
            rows_returned=returned,
            log=lines,
        )
        await self._keep(slot.session, certificate)
        log.info(
            "container.ended",
            session=slot.session.id,
            generation=generation,
            cause=ending.cause,
            text=ending.text,
            rows_returned=returned,
        )
        faults.point("container.certified")
        left = await self._engine.inspect(slot.name)
        if left is not None and left.generation < generation:
            await self.remove_stale(left)  # Its end is one of its own.
        elif left is None or left.generation == generation:  # A newer one has its own life (law 3).
            await self._engine.remove(slot.name)
        await to_thread.run_sync(self._desk.clear, slot.session, generation)
        if not ending.planned and duration is not None and duration >= HEALTHY_AFTER_S:
            slot.failures = 0
        slot.started_at = None
        slot.stuck_tries = 0
        slot.ended.set()

    async def _give_back(self, slot: Slot, ending: Ending) -> int:
        """Close the link, and free the rows that its runner had. How many these were."""
        give_back = functools.partial(
            Mailbox.release_claims,
            before=Generation(slot.life.generation + 1),
            ended_by=ending.cause,
            counts=not ending.planned,
        )
        try:
            if slot.exchange is not None:
                if not ending.planned:
                    slot.exchange.note_suspect()
                await slot.exchange.note_claims()
            return len(await self._mailboxes.run(slot.session, give_back))
        except (HermitcrabError, OSError) as error:
            log.error("rows.not-given-back", session=slot.session.id, text=str(error))
            return 0
        finally:
            await isolated(slot.close_resources)

    async def _keep(self, session: Session, certificate: Certificate) -> None:
        if len(self._unkept) >= UNKEPT_AT_MOST:
            lost = self._unkept.popleft()[1]
            self._owed[lost.session] -= 1
            log.error("certificate.lost", session=lost.session, generation=lost.generation, cause=lost.cause)
        self._unkept.append((session, certificate))
        self._owed[session.id] += 1
        await self.keep_what_waits()

    def owes(self, session_id: SessionId) -> bool:
        """Whether a certificate of that session could not be written yet."""
        return self._owed[session_id] > 0

    async def keep_what_waits(self) -> None:
        """Write the certificates that a full disk did not take before, oldest first, until one still cannot be."""
        while self._unkept:
            session, certificate = self._unkept.popleft()
            is_kept = False
            try:
                await certificates.keep(self._store, session_folders(self._home, session).certificates, certificate)
                is_kept = True
            except (HermitcrabError, OSError) as error:
                log.error("certificate.not-kept", session=session.id, cause=certificate.cause, text=str(error))
                return
            finally:
                if not is_kept:  # Also when whoever was to write it is called off.
                    self._unkept.appendleft((session, certificate))
            self._owed[session.id] -= 1
            self._owed += Counter()  # Without those that are owed nothing.

    async def quarantine_costly_rows(self, slot: Slot, ending: Ending) -> bool:
        """A message that ended container after container is set aside, with a notice, so that others get their turn.

        True: there are notices to deliver.
        """
        now = utc_now()
        rows = await self._mailboxes.run(
            slot.session, lambda mailbox: mailbox.pending(limit=64, fresh_container=True, now=now)
        )
        tried = [row for row in rows if row.tries]
        for row in tried:
            await self._mailboxes.run(slot.session, functools.partial(self._consider, slot.session, row, ending))
        return bool(tried)

    def _consider(self, session: Session, row: InboundRow, ending: Ending, mailbox: Mailbox) -> None:
        why = reason_to_quarantine(row.tries, mailbox.ends(row.id), same_way_at_most=self._same_way_at_most)
        if why is None:
            return
        reason = f"{why}; the last one: {ending.text}"
        now = utc_now()
        notice = OutboundRow(
            id=MessageId(new_id("notice", int(now.timestamp() * 1000))),
            kind="chat",
            timestamp=now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            content={
                "text": f"I have set your message aside: {reason} To try it again: crab sessions release"
                f" {session.id} {row.id}",
                "notice": True,
            },
            address=row.address,
            in_reply_to=row.id,
        )
        log.warning("message.quarantined", session=session.id, message=row.id, text=reason)
        mailbox.quarantine(row.id, notice, reason)

    async def remove_stale(self, view: ContainerView) -> None:
        """Remove a container that nobody attends, if it still is the one that was seen. Its certificate comes first."""
        now = await self._engine.inspect(view.name)
        if now is None or now.generation != view.generation:
            return
        session = await self._store.read(lambda connection: sessions.by_id(connection, view.session))
        if session is not None:
            await self._certify_stale(session, now)
        await self._engine.remove(view.name)
        if session is not None:
            await to_thread.run_sync(self._desk.clear, session, view.generation)

    async def _certify_stale(self, session: Session, view: ContainerView) -> None:
        wanted = {
            ContainerStatus.RUNNING: Cause.REPLACED,
            ContainerStatus.FROZEN: Cause.REPLACED,
            ContainerStatus.CREATED: Cause.HOST_DIED,
        }
        ending = explain(view.exit, wanted=wanted.get(view.status), farewell=None, around=self._unattended)
        certificate = Certificate(
            session=view.session,
            generation=view.generation,
            cause=ending.cause,
            text=ending.text,
            ended_at=utc_now().isoformat(timespec="seconds"),
            exit_code=view.exit.exit_code if view.exit else None,
            log=await self._last_lines(view.name),
        )
        await self._keep(session, certificate)

    async def certify_missing(self, session: Session, last: Generation, *, rows_returned: int) -> None:
        """Nothing is left of the session's generations up to `last`: whatever of them was not certified has ended, too.

        That is one that vanished while no host ran, and ones whose certificate a full disk had not taken when it died.
        """
        if last < 1:
            return  # The first one still runs.

        def look() -> list[dict[str, Any]]:
            # First: a host may have died after the certificate and before this.
            self._desk.clear(session, last)
            return certificates.read(session_folders(self._home, session).certificates)

        kept = await to_thread.run_sync(look)
        known = {each.get("generation") for each in kept}
        first = max(1, last - LOOKED_BACK)
        recent = [each for each in kept if first <= (each.get("generation") or 0) <= last]
        await certificates.note_kept(self._store, session.id, recent)
        ending = explain(None, wanted=None, farewell=None, around=self._unattended)
        for number in range(first, last + 1):
            if number in known:
                continue
            certificate = Certificate(
                session=session.id,
                generation=Generation(number),
                cause=ending.cause,
                text=ending.text,
                ended_at=utc_now().isoformat(timespec="seconds"),
                rows_returned=rows_returned if number == last else 0,
            )
            await self._keep(session, certificate)

    async def exit_of(self, slot: Slot) -> ExitRecord | None:
        """The exit record of the slot's generation, if the engine has it."""
        try:
            view = await self._engine.inspect(slot.name)
        except EngineError:
            return None
        return view.exit if view is not None and view.generation == slot.life.generation else None

    async def _last_lines(self, name: str) -> list[str]:
        try:
            return await self._engine.logs(name, lines=certificates.LOG_LINES)
        except EngineError:
            return []  # It never came to be, or the engine has lost it; the certificate says so elsewhere.
