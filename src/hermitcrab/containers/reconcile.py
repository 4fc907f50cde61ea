"""Bringing what runs and what should run together: at the host's start, and slowly ever after as the safety net.

What of the engine's containers is ours and current is adopted, what is ours and stale is removed, and sessions that
were left in the middle of something are looked at. Nothing of anybody else's is touched. One session that cannot be
settled holds up no other and does not keep the host from starting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import structlog
from anyio.lowlevel import checkpoint

from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle.deadline import Deadline
from hermitcrab.containers.lifecycle.stopping import ANSWERED_WITHIN_S
from hermitcrab.containers.runner import ContainerRunner
from hermitcrab.errors import EngineError, StoreDamagedError, StoreTooNewError
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.container import ContainerView
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.observe.supervision import isolated
from hermitcrab.store import sessions
from hermitcrab.store.database import Store

AT_ONCE = 4
"""Containers that are looked at together, so that one that is slow does not hold up the others. More only get in each
other's way: what is done for one is mostly this process's own work (measured: 300 adoptions take a fifth longer)."""

SWEEP_INTERVAL_S = 30.0

ASKED_AGAIN_AFTER_S = 3.0
"""While the engine has not answered this host even once, and nothing can be started."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


async def a_few_at_a_time(function: Callable[[T], Awaitable[None]], items: Iterable[T]) -> None:
    """`function` of each item, `AT_ONCE` side by side. An error costs that item alone."""
    waiting = iter(list(items))

    async def work() -> None:
        for item in waiting:
            await isolated(function, item)
            await checkpoint()  # Where there was nothing to wait for, others are served in between.

    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(work)


@dataclass(slots=True)
class Reconciled:
    adopted: int = 0
    removed: int = 0
    woken: int = 0
    repaired: int = 0
    """Containers whose end no event had told."""
    delivering: int = 0
    """Sessions with messages that were not delivered yet."""
    engine_unknown: bool = False
    """The engine could not be asked: nothing was adopted, removed or started (law 1)."""
    unmet: set[SessionId] = field(default_factory=set)
    """Sessions with a container that could be neither adopted nor removed: as unknown as if no engine answered."""


class Reconciler:
    def __init__(
        self,
        *,
        runner: ContainerRunner,
        engine: Engine,
        store: Store,
        mailboxes: Mailboxes,
        deliver: Callable[[Session], None],
    ) -> None:
        """`deliver`: told of each session with messages that were not delivered yet."""
        self._runner, self._engine, self._store, self._mailboxes = runner, engine, store, mailboxes
        self._left, self._deliver = runner.inheritance, deliver
        self._seen = False
        """The engine has answered this host."""

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await anyio.sleep(SWEEP_INTERVAL_S if self._seen else ASKED_AGAIN_AFTER_S)
            await isolated(self.sweep)

    async def reconcile(self) -> Reconciled:
        """What a host does first. Work is by containers and unsettled sessions, not by history."""
        result = Reconciled()
        await self._look_at_containers(result)
        await self._look_at_sessions(result, await self._store.read(sessions.unsettled))
        log.info(
            "reconciled",
            adopted=result.adopted,
            removed=result.removed,
            woken=result.woken,
            to_deliver=result.delivering,
        )
        return result

    async def sweep(self) -> Reconciled:
        """Repair what no event has told. Sessions are looked at only if that could not be done before."""
        result = Reconciled()
        await self._runner.keep_what_waits()
        await self._look_at_containers(result)
        if not result.engine_unknown:
            await self._look_at_sessions(result, await self._overlooked())
        if result.adopted or result.removed or result.repaired or result.woken:
            log.warning(
                "sweep.repaired",
                adopted=result.adopted,
                removed=result.removed,
                ended=result.repaired,
                woken=result.woken,
            )
        return result

    async def _look_at_containers(self, result: Reconciled) -> None:
        try:
            with Deadline(ANSWERED_WITHIN_S, "listing", f"the containers of {self._engine.name}"):
                found = await self._engine.containers()
        except EngineError as error:
            log.warning("reconcile.engine-unknown", text=error.message, hint=error.hint)
            result.engine_unknown = True
            if not self._seen:
                self._left.engine_not_seen(error.message)
            return
        await isolated(self._left.expect, found)
        missing = self._left.live()
        for view in found:
            missing.pop(view.name, None)

        async def meet(view: ContainerView) -> None:
            result.unmet.add(view.session)
            match await self._left.meet(view):
                case "adopted":
                    result.adopted += 1
                case "removed":
                    result.removed += 1
                case "kept":
                    pass
            result.unmet.discard(view.session)

        async def look_again(session: Session) -> None:
            before = self._runner.generation_of(session.id)
            await self._left.look_again(session.id)
            result.repaired += before is not None and self._runner.generation_of(session.id) != before

        await a_few_at_a_time(meet, found)
        await a_few_at_a_time(look_again, missing.values())
        if not self._seen:
            self._seen = True
            self._left.engine_seen()

    async def _overlooked(self) -> list[Session]:
        """Where an earlier look found nothing out."""
        wanted = self._left.overlooked()
        found = [each for each in await self._store.read(sessions.unsettled) if each.id in wanted] if wanted else []
        for gone in {*wanted} - {each.id for each in found}:
            self._left.looked_at(gone)
        return found

    async def _look_at_sessions(self, result: Reconciled, found: Iterable[Session]) -> None:
        """What an earlier host left in them. What cannot be seen now, as on a full disk, a sweep comes back to."""

        async def look(session: Session) -> None:
            self._left.overlook(session.id)
            try:
                await self._look_at(session, result)
            except (StoreDamagedError, StoreTooNewError):
                self._left.looked_at(session.id)  # There is no more to be seen until somebody has mended it.
                raise

        await a_few_at_a_time(look, found)

    async def _look_at(self, session: Session, result: Reconciled) -> None:
        is_unknown = result.engine_unknown or session.id in result.unmet
        may_look = not is_unknown or self._runner.generation_of(session.id) is not None
        if may_look:
            last, freed = self._left.last_ended(session), []
            if not self._runner.attends(session.id):
                # No container of any older generation is left: what it had claimed is free again.
                older = Generation(last + 1)
                freed = await self._mailboxes.run(session, lambda mailbox: mailbox.release_claims(older))
            await self._left.certify_missing(session, last, rows_returned=len(freed))
        known = self._mailboxes.foreseen(session)
        counts = known.counts if known is not None else await self._mailboxes.look(session, Mailbox.counts)
        if counts.undelivered:
            result.delivering += 1
            self._deliver(session)
        if may_look:
            self._left.looked_at(session.id)
        if counts.pending_triggers and not self._runner.attends(session.id) and not is_unknown:
            result.woken += 1
            self._runner.request(session)
        if not counts.undelivered and not counts.pending_triggers and not self._runner.attends(session.id):
            await self._runner.settle(session)
