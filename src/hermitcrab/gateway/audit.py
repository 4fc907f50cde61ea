"""One record per request: who asked, where it went, how it ended. Never a value, a path, a query or a header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hermitcrab.model.container import Finding
from hermitcrab.model.ids import Generation, SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """All text in it is ours: an agent's own words appear nowhere."""

    session: SessionId
    generation: Generation
    method: str
    """A well-known method, or `other`."""
    route: str | None
    """The prefix; None when the request was refused before one was found."""
    host: str | None
    """The upstream that the route names, whether it was reached or not."""
    call: str | None
    """The entry of the allow-list that let it through."""
    status: int
    """What the agent got; 0: nothing."""
    rule: str
    """`ok`, or the rule that refused or ended it."""
    bytes_in: int
    """Of the body, from the agent."""
    bytes_out: int
    """Of the body, to the agent."""
    ms: int


class Audit(Protocol):
    """Keeps records. Called in the event loop: it must return at once."""

    def __call__(self, record: AuditRecord, /) -> None: ...


class Notify(Protocol):
    """Is told what the people of a session should know (for one, that no key is set). Must return at once."""

    def __call__(self, session: SessionId, finding: Finding, /) -> None: ...
