"""What the host does about what a runner says on its link, apart from its rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio
import structlog

from hermitcrab.containers.lifecycle.admission import Admission
from hermitcrab.containers.lifecycle.admitting import Admittance
from hermitcrab.containers.lifecycle.background import Background
from hermitcrab.containers.lifecycle.slot import Slot, Told
from hermitcrab.containers.lifecycle.watch import is_idle
from hermitcrab.containers.link.exchange import Outward
from hermitcrab.logic.lifecycle import Life, Phase
from hermitcrab.model.ids import Generation
from hermitcrab.model.messages import OutboundRow
from hermitcrab_wire import frames

REDIALLED_WITHIN_S = 2.0
"""A runner whose link broke has another by then."""

OFFENCES_AT_MOST = 3
"""Broken contracts on a link before the container is ended."""

log = structlog.get_logger(__name__)


class Hearing:
    def __init__(
        self,
        *,
        background: Background,
        told: Told,
        admission: Admission,
        stop: Callable[[Slot, str], Awaitable[None]],
        check: Callable[[Slot, Generation], Awaitable[None]],
        admittance: Admittance,
    ) -> None:
        self._background, self._told, self._admission = background, told, admission
        self._stop, self._check, self._admittance = stop, check, admittance

    def of(self, slot: Slot) -> Outward:
        """Whom the slot's exchange tells what."""
        session = slot.session

        def ready(hello: frames.Hello) -> None:
            slot.timings.setdefault("runner", float(hello.uptime_ms))
            slot.timings.setdefault("runner_rss_kb", float(hello.rss_kb))
            slot.hello.set()

        def working() -> None:
            slot.active_at = anyio.current_time()
            self._told.working(session)

        def said(rows: Sequence[OutboundRow]) -> None:
            slot.active_at = anyio.current_time()
            self._told.said(session, rows)
            if is_idle(slot):
                self._admission.changed()

        def farewell(reason: str) -> None:
            slot.farewell = reason

        def offended(text: str) -> None:
            slot.offences += 1
            log.warning("link.offence", session=session.id, count=slot.offences, text=text)
            if slot.offences >= OFFENCES_AT_MOST:
                self._background.spawn(self._stop, slot, "broke-contract")

        def gone() -> None:
            self._background.spawn(self._look_after_loss, slot, slot.life.generation)

        return Outward(
            admit=partial(self._admittance.admit, slot),
            ready=ready,
            said=said,
            working=working,
            asked=partial(self._told.asked, session),
            farewell=farewell,
            offended=offended,
            gone=gone,
        )

    async def _look_after_loss(self, slot: Slot, generation: Generation) -> None:
        """A link ends with its container, too; that no event may tell, and no beat will."""
        await anyio.sleep(REDIALLED_WITHIN_S)
        lost = slot.exchange is not None and not slot.exchange.connected
        if lost and slot.life == Life(Phase.READY, generation):
            await self._check(slot, generation)
