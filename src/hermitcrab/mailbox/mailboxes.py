"""All mailboxes of a host: each session's work one thing after the other, in a few threads.

A mailbox stays open while its session is busy, so that a message pays for no opening, and is closed when it was quiet
for a while, so that idle sessions cost neither memory nor descriptors. A damaged one is set aside with its session, and
no other session is touched by it.
"""

from __future__ import annotations

import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.abc
import structlog
from anyio import to_thread

from hermitcrab.errors import HermitcrabError, StoreDamagedError, StoreError, StoreTooNewError
from hermitcrab.mailbox.counts import Standing
from hermitcrab.mailbox.mailbox import THIS_PROCESS, Mailbox
from hermitcrab.model.ids import SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.store.clock import utc_now

OPEN_AT_MOST = 400
QUIET_BEFORE_CLOSE_S = 30.0
THREADS = 8

FORESEEN_AT_ONCE = 16
"""Mailboxes that one thread looks into, one after the other: whoever wants one of them waits for all."""

_STATE_REMEMBERED = 16 * 1024
"""Characters. A session with more state is looked at again, so that hundreds of them are not kept in memory."""

_DESCRIPTORS_EACH = 6
"""Two databases, each with its log and the log's index."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Box:
    path: Path
    turn: anyio.Lock = field(default_factory=lambda: anyio.Lock(fast_acquire=True))
    """Tasks take turns here, in order, without holding a thread while they wait."""
    busy: threading.Lock = field(default_factory=threading.Lock)
    """A task that is cancelled from outside anyio leaves its turn while its thread still works."""
    mailbox: Mailbox | None = None
    foreseen: Standing | None = None
    """How it stood when it was looked at ahead. Nobody had it since."""
    users: int = 0
    """Tasks that work on it or wait for their turn; it is closed only when there are none."""
    last_used: float = 0.0


class Mailboxes:
    """`async with Mailboxes(folder_of) as mailboxes`, then `await mailboxes.run(session, function)`."""

    def __init__(
        self,
        folder_of: Callable[[Session], Path],
        *,
        open_at_most: int = OPEN_AT_MOST,
        quiet_before_close_s: float = QUIET_BEFORE_CLOSE_S,
        whole_for: timedelta | None = None,
        process: str = THIS_PROCESS,
    ) -> None:
        """`folder_of`: where a session's mailbox lies. `whole_for`: older messages are compacted; None: none is.

        `process`: who sends, for the ledger.
        """
        self._process = process
        self._whole_for = whole_for
        self._folder_of = folder_of
        # A quarter of what this process may open: sockets and containers need descriptors too.
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        affordable = descriptors // 4 // _DESCRIPTORS_EACH if descriptors != resource.RLIM_INFINITY else open_at_most
        self._open_at_most = max(1, min(open_at_most, affordable))
        self._quiet_s = quiet_before_close_s
        self._limiter = anyio.CapacityLimiter(THREADS)
        self._boxes: OrderedDict[SessionId, _Box] = OrderedDict()
        """The one used last comes last."""
        self._set_aside: dict[SessionId, StoreError] = {}
        self._withheld: dict[SessionId, StoreError] = {}
        self._closed = False
        self._used = anyio.Event()
        """A mailbox was opened, or one was used while too many are open."""
        self._tasks: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._close_quiet_ones)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:  # Whoever has them may be cancelled, which is raised here.
            await self.aclose()

    async def run(self, session: Session, function: Callable[[Mailbox], T]) -> T:
        """What `function` returns of the session's mailbox, in a thread. It ends even if the caller is cancelled.

        Raises what `function` raises, and StoreError when the mailbox cannot be used; a damaged one stays set aside
        until `release`.
        """
        return await self._run(session, _work, function)

    async def look(self, session: Session, function: Callable[[Mailbox], T]) -> T:
        """As `run`, for a `function` that only reads. A mailbox that is closed stays so, if it can be read that way."""
        return await self._run(session, _look, function)

    async def foresee(self, sessions: Iterable[Session]) -> None:
        """Look into those of these mailboxes that are closed, many together. What cannot be seen so is left out."""
        wanted = list(sessions)
        while wanted and len(self._boxes) < self._open_at_most:
            together, wanted = wanted[:FORESEEN_AT_ONCE], wanted[FORESEEN_AT_ONCE:]
            closed = {each.id: each for each in together if each.id not in self._boxes and self._refusal(each) is None}
            boxes = [self._box(each) for each in closed.values()]
            for box in boxes:
                box.users += 1
                box.turn.acquire_nowait()  # Each is new: nobody can have it yet.
            try:
                found = await to_thread.run_sync(_look_ahead, boxes, limiter=self._limiter)
                for box, standing in zip(boxes, found, strict=True):
                    box.foreseen = standing
            finally:
                for box in boxes:
                    box.turn.release()
                    box.users -= 1

    def foreseen(self, session: Session) -> Standing | None:
        """How the mailbox stands, if it was looked at ahead and nobody has had it since."""
        box = self._boxes.get(session.id)
        return box.foreseen if box is not None and self._refusal(session) is None else None

    async def _run(
        self,
        session: Session,
        work: Callable[[_Box, str, Callable[[Mailbox], T]], T],
        function: Callable[[Mailbox], T],
    ) -> T:
        if (refusal := self._refusal(session)) is not None:
            raise refusal
        box = self._box(session)
        box.users += 1
        try:
            async with box.turn:
                return await to_thread.run_sync(work, box, self._process, function, limiter=self._limiter)
        except (StoreDamagedError, StoreTooNewError) as error:
            raise self._put_aside(session, error) from error
        finally:
            box.users -= 1
            box.last_used = time.monotonic()
            if len(self._boxes) > self._open_at_most:
                self._used.set()

    def _refusal(self, session: Session) -> StoreError | None:
        """Why nobody gets the session's mailbox now."""
        if (aside := self._withheld.get(session.id) or self._set_aside.get(session.id)) is not None:
            return _of_session(aside, session)
        return StoreError(f"session {session.id}: the host is closing its mailboxes") if self._closed else None

    def _box(self, session: Session) -> _Box:
        box = self._boxes.get(session.id)
        if box is None:
            box = self._boxes[session.id] = _Box(self._folder_of(session), last_used=time.monotonic())
            self._used.set()
        else:
            self._boxes.move_to_end(session.id)
        return box

    @property
    def open_count(self) -> int:
        return len(self._boxes)

    @property
    def set_aside(self) -> dict[SessionId, str]:
        """Sessions whose mailbox cannot be used, each with the reason."""
        return {session: error.message for session, error in self._set_aside.items()}

    def release(self, session_id: SessionId) -> None:
        """Somebody repaired the mailbox: try it again."""
        self._set_aside.pop(session_id, None)

    async def withhold(self, session_id: SessionId, why: str, *, hint: str = "") -> None:
        """From now on nobody gets the session's mailbox. Returns when it is closed, after whoever has it now."""
        self._withheld[session_id] = StoreError(why, hint=hint)
        if (box := self._boxes.get(session_id)) is not None:
            await self._close(session_id, box)

    def give_back(self, session_id: SessionId) -> None:
        """Everybody may have the mailbox again."""
        self._withheld.pop(session_id, None)

    async def close_quiet(self, *, unused_since: float) -> None:
        """Close what nobody uses and was not used since then (on the monotonic clock), and what is too many."""
        if not self._boxes or self._is_recent(next(iter(self._boxes.values())), unused_since):
            return  # Without a copy of all of them: it is asked whenever one is opened.
        for key, box in list(self._boxes.items()):
            if self._is_recent(box, unused_since):
                return
            if box.users == 0:
                await self._close(key, box)

    def _is_recent(self, box: _Box, unused_since: float) -> bool:
        """Whether it stays open for now, and with it all that follow: the order is that of use."""
        return box.last_used > unused_since and len(self._boxes) <= self._open_at_most

    async def aclose(self) -> None:
        """Close every mailbox after what it is doing. Nothing can be run from then on."""
        self._closed = True
        for key, box in list(self._boxes.items()):
            await self._close(key, box)

    async def _close(self, key: SessionId, box: _Box) -> None:
        # The box stays in its place meanwhile: whoever wants the mailbox waits for its turn and opens it anew.
        box.users += 1
        try:
            with anyio.CancelScope(shield=True):
                async with box.turn:
                    before = None if self._whole_for is None else utc_now() - self._whole_for
                    await to_thread.run_sync(_shut, box, before, limiter=self._limiter)
        finally:
            box.users -= 1
            if box.users == 0:
                self._boxes.pop(key, None)

    async def _close_quiet_ones(self) -> None:
        """Sleeps for good while nothing is open."""
        while True:
            if self._boxes:
                with anyio.move_on_after(self._quiet_s):
                    await self._used.wait()
            else:
                await self._used.wait()
            self._used = anyio.Event()
            await self.close_quiet(unused_since=time.monotonic() - self._quiet_s)

    def _put_aside(self, session: Session, error: StoreError) -> StoreError:
        error.hint = f"{error.hint} Then: crab sessions check {session.id}".strip()
        log.error("mailbox.set-aside", session=session.id, text=error.message, hint=error.hint)
        self._set_aside[session.id] = error
        return _of_session(error, session)


def _of_session(error: StoreError, session: Session) -> StoreError:
    return type(error)(f"session {session.id}: {error.message}", hint=error.hint)


def _work(box: _Box, process: str, function: Callable[[Mailbox], T]) -> T:
    with box.busy:
        box.foreseen = None
        if box.mailbox is None:
            box.mailbox = Mailbox.open(box.path, process=process)
        try:
            return function(box.mailbox)
        except StoreDamagedError:
            _shut_quietly(box)
            raise


def _look(box: _Box, process: str, function: Callable[[Mailbox], T]) -> T:
    with box.busy:
        if box.mailbox is None:
            # What is wrong with it, its opening tells.
            with suppress(StoreError):
                if (mailbox := Mailbox.at_rest(box.path)) is not None:
                    with mailbox:
                        return function(mailbox)
    return _work(box, process, function)


def _look_ahead(boxes: Iterable[_Box]) -> list[Standing | None]:
    return [_standing(box) for box in boxes]


def _standing(box: _Box) -> Standing | None:
    # What is wrong with it, whoever needs it is told.
    with box.busy, suppress(StoreError, OSError):
        if (mailbox := Mailbox.at_rest(box.path)) is not None:
            with mailbox:
                standing = mailbox.standing()
                is_small = sum(len(key) + len(value) for key, value in standing.state.items()) <= _STATE_REMEMBERED
                return standing if is_small else None
    return None


def _shut(box: _Box, compact_before: datetime | None) -> None:
    with box.busy:
        box.foreseen = None
        if box.mailbox is not None and compact_before is not None:
            try:
                box.mailbox.compact(compact_before)
            except HermitcrabError as error:
                # Old messages stay long for now; whatever is wrong is told to whoever uses the mailbox next.
                log.warning("mailbox.not-compacted", path=str(box.path), text=error.message)
        _shut_quietly(box)


def _shut_quietly(box: _Box) -> None:
    mailbox, box.mailbox = box.mailbox, None
    if mailbox is None:
        return
    try:
        mailbox.close()
    except HermitcrabError as error:
        # All that was accepted is in the log beside the database, and the next opening reads it there.
        log.warning("mailbox.close-failed", path=str(box.path), text=error.message)
