"""The limit on what a session may keep on disk: measured while it works, and its end when it is crossed.

A container that works is measured now and then; so is each that runs when the disk loses much. One that holds too much
is frozen, measured once more while it stands still, and only then ended. It starts again when there is room: somebody
has removed something, or raised the limit. What is written between two looks is not held back; no file may be larger
than the limit, which the kernel sees to.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from time import monotonic

import anyio
import structlog
from anyio import CapacityLimiter, to_thread

from hermitcrab.containers.disk.held_files import held_bytes
from hermitcrab.containers.disk.measuring import free, measure
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle.slot import Measured, Slot
from hermitcrab.containers.materials.desk import session_folders
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.lifecycle import Signal
from hermitcrab.logic.precedence import allowance
from hermitcrab.logic.workspace import MEBIBYTE, Allowance, Free, Usage, excess, is_due
from hermitcrab.model.ids import SessionId
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import ContainerSettings

AT_ONCE = 1
"""Sessions that are measured at the same time: it is the disk that is waited for."""

REMOVED = "files that were removed and are still open"

log = structlog.get_logger(__name__)


class Workspaces:
    def __init__(self, home: Home, settings: ContainerSettings, engine: Engine) -> None:
        self._home, self._engine, self._every_s = home, engine, settings.workspace_look_s
        self._usual = Allowance(bytes=settings.workspace_mb * MEBIBYTE, files=settings.workspace_files)
        self._full: set[SessionId] = set()
        """Sessions whose container was ended for it: the only ones that are measured before a start."""
        self._looking: set[SessionId] = set()
        self._limiter: CapacityLimiter | None = None

    def allowed(self, slot: Slot) -> Allowance:
        return allowance(slot.config.limits, self._usual)

    async def check_room(self, slot: Slot) -> None:
        """Raises EngineError, `resources-exhausted`, for a session that was over its limit and still is."""
        if slot.session.id not in self._full:
            return
        allowed = self.allowed(slot)
        if text := excess(await self._measured(slot, allowed), allowed):
            raise EngineError(
                Failure.RESOURCES_EXHAUSTED,
                text,
                hint=f"Remove something there, or: crab groups config set {slot.group.folder} limits.workspace_mb N",
            )
        self._full.discard(slot.session.id)

    async def free(self) -> Free | None:
        """What is left on the disk now; None when it does not say."""
        try:
            return await to_thread.run_sync(free, self._home.path)
        except OSError as error:
            log.warning("workspace.disk-not-read", text=str(error))
            return None

    async def begin(self, slot: Slot) -> None:
        """A container is about to start: from now on it counts what it takes."""
        left = await self.free()
        slot.measured = None if left is None else Measured(at=anyio.current_time(), free=left)

    async def look(self, slot: Slot, stop: Callable[[Slot, str], Awaitable[None]], *, left: Free) -> None:
        """Measure the slot's live container if it is time, and end it if it keeps too much. `left`: see `free`."""
        allowed = self.allowed(slot)
        if not allowed or slot.session.id in self._looking or not self._is_due(slot, allowed, left):
            return
        self._looking.add(slot.session.id)
        try:
            text = excess(await self._measured(slot, allowed), allowed)
            if text:
                text = await self._measured_still(slot, allowed)
        finally:
            self._looking.discard(slot.session.id)
        if text:
            self._full.add(slot.session.id)
            slot.end_text = f"{text} The host ended it."
            log.warning("workspace.full", session=slot.session.id, generation=slot.life.generation, text=text)
            await stop(slot, "workspace-full")

    def _is_due(self, slot: Slot, allowed: Allowance, left: Free) -> bool:
        last = slot.measured
        if last is None:  # It was taken over from an earlier host.
            slot.measured = Measured(at=anyio.current_time(), free=left)
            return False
        return is_due(
            allowed,
            since_s=anyio.current_time() - last.at,
            every_s=self._every_s,
            took_s=last.took_s,
            worked=slot.active_at > last.at or (slot.exchange is not None and slot.exchange.has_work),
            then=last.free,
            now=left,
        )

    async def _measured(self, slot: Slot, allowed: Allowance) -> Usage:
        folders = session_folders(self._home, slot.session)
        roots = (folders.work, folders.state, self._home.groups / slot.group.folder)
        self._limiter = self._limiter or CapacityLimiter(AT_ONCE)
        async with self._limiter:
            began = monotonic()
            left = await to_thread.run_sync(free, self._home.path)
            usage = await to_thread.run_sync(partial(measure, roots, allowed))
            if not excess(usage, allowed):
                usage = replace(usage, parts={**usage.parts, REMOVED: await self._held(slot)})
            took_s = monotonic() - began
        slot.measured = Measured(at=anyio.current_time(), took_s=took_s, free=left, usage=usage)
        return usage

    async def _held(self, slot: Slot) -> int:
        """Bytes of files without a name, as far as they can be told."""
        try:
            view = await self._engine.inspect(slot.name)
        except EngineError:
            return 0
        if view is None or view.pid is None:
            return 0
        device = (await to_thread.run_sync(os.stat, self._home.path)).st_dev
        return await to_thread.run_sync(held_bytes, view.pid, device)

    async def _measured_still(self, slot: Slot, allowed: Allowance) -> str:
        """What is too much while nothing is written; empty when a file was only counted twice, and it goes on."""
        async with slot.lock:
            if not slot.take(Signal.QUIET):
                return ""  # It is ending, or rests already.
            try:
                await self._engine.freeze(slot.name)
                text = excess(await self._measured(slot, allowed), allowed)
            except EngineError as error:
                log.info("workspace.not-frozen", session=slot.session.id, text=error.message)
                text = excess(await self._measured(slot, allowed), allowed)
            if text:
                return text
            await self._engine.thaw(slot.name)
            slot.take(Signal.THAWED)
            if slot.exchange is not None:
                slot.exchange.pulse.thawed()
        return ""
