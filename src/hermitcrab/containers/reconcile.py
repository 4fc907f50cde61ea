"""What a host does first: bring what runs and what should run together.

What of the engine's containers is ours and current is adopted, what is ours and stale is removed, and sessions that
were left in the middle of something are looked at. Nothing of anybody else's is touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio
import structlog

from hermitcrab.containers.ending import Ender
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.runner import ContainerRunner
from hermitcrab.errors import EngineError
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.container import ContainerView
from hermitcrab.model.ids import Generation
from hermitcrab.model.sessions import Session
from hermitcrab.store import sessions
from hermitcrab.store.database import Store

AT_ONCE = 16
"""Containers that are looked at together; one that is slow holds up no other."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Reconciled:
    adopted: int = 0
    removed: int = 0
    woken: int = 0
    delivering: list[Session] = field(default_factory=list)
    """Sessions with messages that were not delivered yet."""
    engine_unknown: bool = False
    """The engine could not be asked: nothing was adopted, removed or started (law 1)."""


async def reconcile(
    *, runner: ContainerRunner, ender: Ender, engine: Engine, store: Store, mailboxes: Mailboxes
) -> Reconciled:
    """Bring what runs and what should run together. Work is by containers and unsettled sessions, not by history."""
    result = Reconciled()
    limiter = anyio.Semaphore(AT_ONCE)
    try:
        found = await engine.containers()
    except EngineError as error:
        log.warning("reconcile.engine-unknown", text=error.message, hint=error.hint)
        result.engine_unknown = True
        found = []

    async def settle_container(view: ContainerView) -> None:
        async with limiter:
            try:
                if await runner.adopt(view):
                    result.adopted += 1
                    return
                await ender.certify_stale(view)
                await engine.remove(view.name)
                result.removed += 1
            except EngineError as error:
                log.warning("reconcile.failed", container=view.name, text=error.message)

    async with anyio.create_task_group() as tasks:
        for view in found:
            tasks.start_soon(settle_container, view)

    async def look(session: Session) -> None:
        async with limiter:
            if not runner.attends(session.id):
                # No container of any older generation is left: what it had claimed is free again.
                older = Generation(session.generation + 1)
                await mailboxes.run(session, lambda mailbox: mailbox.release_claims(older))
            counts = await mailboxes.run(session, Mailbox.counts)
            if counts.undelivered:
                result.delivering.append(session)
            if counts.pending_triggers and not runner.attends(session.id) and not result.engine_unknown:
                result.woken += 1
                runner.request(session)
            if not counts.undelivered and not counts.pending_triggers:
                await runner.settle(session)

    async with anyio.create_task_group() as tasks:
        for session in await store.read(sessions.unsettled):
            tasks.start_soon(look, session)
    log.info(
        "reconciled",
        adopted=result.adopted,
        removed=result.removed,
        woken=result.woken,
        to_deliver=len(result.delivering),
    )
    return result
