"""The breakers of everything that starts depend on, so that a hundred sessions do not hammer what is broken."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import anyio
import structlog

from hermitcrab.errors import EngineError, Failure, StoreDamagedError, StoreError, StoreTooNewError
from hermitcrab.logic.breaker import Breaker, BreakerState

ENGINE, STORE, GATEWAY, IMAGE = "engine", "store", "gateway", "image"
"""Kinds of dependencies. An image is a group's: its key says whose."""

_BY_FAILURE = {
    Failure.RUNTIME_UNAVAILABLE: ENGINE,
    Failure.GATEWAY_UNAVAILABLE: GATEWAY,
    Failure.IMAGE_UNAVAILABLE: IMAGE,
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerView:
    """A breaker that is not closed, as `crab status` shows it."""

    dependency: str
    state: str
    failures: int
    retry_in_s: float
    text: str
    """What went wrong last."""


class Breakers:
    def __init__(self) -> None:
        self._breakers: dict[str, Breaker] = {}
        self._texts: dict[str, str] = {}
        self._changed = anyio.Event()

    async def passable(self, needs: Sequence[str], who: str) -> None:
        """Until none of them says to wait."""
        while (until := self._waits_until(needs, who)) is not None:
            changed = self._changed
            with anyio.move_on_after(max(0.0, until - anyio.current_time())):
                await changed.wait()

    def enter(self, needs: Sequence[str], who: str) -> bool:
        """Try now, for all if need be; whoever may must say `worked`, `broke` or `left` afterwards."""
        now = anyio.current_time()
        if not all(self._of(key).admits(who, now) for key in needs):
            return False
        for key in needs:
            self._put(key, self._of(key).entered(who, now))
        return True

    def worked(self, needs: Sequence[str]) -> None:
        for key in needs:
            if self._of(key) != Breaker():
                if self._of(key).until is not None:
                    log.info("breaker.closed", dependency=key)
                self._put(key, Breaker())

    def broke(self, needs: Sequence[str], who: str, error: Exception) -> None:
        """What `error` says of them."""
        if isinstance(error, EngineError) and error.failure is Failure.STARTED_THEN_DIED:
            self.worked(needs)  # It came as far as running: that took all of them.
            return
        kind = dependency_of(error)
        for key in needs:
            before = self._of(key)
            if key.split(" ")[0] != kind:
                self._put(key, before.left(who))
                continue
            after = before.broke(who, anyio.current_time(), random.random())  # noqa: S311
            self._texts[key] = str(error)
            if after.opened > before.opened:
                log.warning("breaker.opened", dependency=key, failures=len(after.failed), text=str(error))
            self._put(key, after)

    def left(self, needs: Sequence[str], who: str) -> None:
        """It was called off."""
        for key in needs:
            self._put(key, self._of(key).left(who))

    def hold(self, key: str, within_s: float, text: str) -> None:
        """Nobody tries for so long, whoever failed: somebody else finds out whether it works."""
        before = self._of(key)
        self._texts[key] = text
        self._put(key, replace(before, until=anyio.current_time() + within_s, probe=None))

    def recheck(self, key: str) -> None:
        """Somebody saw it work: the next session may try at once."""
        self._put(key, self._of(key).due(anyio.current_time()))

    def reason(self, needs: Sequence[str], who: str) -> str | None:
        """Why a start waits; None: not for any of these."""
        now = anyio.current_time()
        for key in needs:
            breaker = self._of(key)
            if not breaker.admits(who, now):
                waits = max(0.0, (breaker.until or now) - now)
                next_try = f"tried again in {waits:.0f} s" if waits else "being tried by another session"
                return f"waits for the {key}, {next_try}: {self._texts.get(key, '')}"
        return None

    def views(self) -> list[BreakerView]:
        now = anyio.current_time()
        return [
            BreakerView(
                dependency=key,
                state=breaker.state(now).value,
                failures=len(breaker.failed),
                retry_in_s=round(max(0.0, (breaker.until or now) - now), 1),
                text=self._texts.get(key, ""),
            )
            for key, breaker in sorted(self._breakers.items())
            if breaker.state(now) is not BreakerState.CLOSED
        ]

    def _of(self, key: str) -> Breaker:
        return self._breakers.get(key, Breaker())

    def _put(self, key: str, breaker: Breaker) -> None:
        if breaker == self._of(key):
            return
        if breaker == Breaker():
            self._breakers.pop(key, None)
            self._texts.pop(key, None)
        else:
            self._breakers[key] = breaker
        self._changed.set()
        self._changed = anyio.Event()

    def _waits_until(self, needs: Sequence[str], who: str) -> float | None:
        """When to look again; None: go. Infinite while another session tries for all."""
        now = anyio.current_time()
        waits = [self._of(key) for key in needs if not self._of(key).admits(who, now)]
        if not waits:
            return None
        return max(each.until if each.until is not None and each.until > now else float("inf") for each in waits)


def dependency_of(error: Exception) -> str | None:
    """What of all that a start needs is broken, if that is what its error says."""
    if isinstance(error, EngineError):
        return _BY_FAILURE.get(error.failure)
    # A damaged mailbox is one session's alone.
    if isinstance(error, StoreError) and not isinstance(error, (StoreDamagedError, StoreTooNewError)):
        return STORE
    return None
