"""The port to the running host, as far as the control methods need it. `app.Host` fits it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import anyio

from hermitcrab.channels.terminal.runtime import TerminalChannel
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.explaining import Explainer
from hermitcrab.containers.lifecycle.admission import AdmissionView
from hermitcrab.containers.lifecycle.breakers import BreakerView
from hermitcrab.containers.lifecycle.restarting import Restart
from hermitcrab.containers.lifecycle.slot import SessionView, WakeOutcome
from hermitcrab.conversation.archivist import Archivist
from hermitcrab.errors import HermitcrabError
from hermitcrab.groups.images import GroupImages
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import AgentGroupId, InstallationId, SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import Settings
from hermitcrab.store.database import Store


class Containers(Protocol):
    """Who wakes and ends the containers of sessions."""

    def views(self) -> list[SessionView]: ...

    def reconsider(self, group_id: AgentGroupId) -> None: ...

    def admission(self) -> AdmissionView: ...

    def breakers(self) -> list[BreakerView]: ...

    async def wake(self, session: Session) -> WakeOutcome: ...

    async def kill(self, session_id: SessionId, cause: str = "stopped") -> bool: ...

    def request(self, session: Session) -> None: ...

    async def restart(self, session: Session, *, message: str | None = None, wake: bool = False) -> Restart: ...

    async def restart_group(
        self, group_id: AgentGroupId, *, message: str | None = None, wake: bool = False
    ) -> list[Restart | HermitcrabError]: ...

    def interrupt(self, session_id: SessionId) -> bool: ...

    def reconnect(self, session_id: SessionId) -> bool: ...

    async def ask(
        self, session_id: SessionId, subject: str, arguments: dict[str, Any], *, timeout_s: float
    ) -> dict[str, Any]: ...

    async def logs(self, session: Session, *, lines: int) -> list[str]: ...

    async def certificates(self, session: Session) -> list[dict[str, Any]]: ...

    def timings(self, session_id: SessionId) -> Mapping[str, float]: ...


class Desk(Protocol):
    """Who makes the folders of agent groups."""

    def initialise(self, group: AgentGroup, memory: str = "") -> None: ...


class Deliveries(Protocol):
    """Who brings what was said to its channels."""

    def notify(self, session: Session) -> None: ...

    def paused(self) -> Mapping[str, float]: ...

    def under_way(self) -> Mapping[SessionId, list[str]]: ...


class Doors(Protocol):
    """Who lets containers out."""

    def reopen(self) -> int: ...


class ControlledHost(Protocol):
    @property
    def home(self) -> Home: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def desk(self) -> Desk: ...

    @property
    def installation(self) -> InstallationId: ...

    @property
    def store(self) -> Store: ...

    @property
    def mailboxes(self) -> Mailboxes: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def explainer(self) -> Explainer: ...

    @property
    def runner(self) -> Containers: ...

    @property
    def archivist(self) -> Archivist: ...

    @property
    def images(self) -> GroupImages: ...

    @property
    def deliverer(self) -> Deliveries: ...

    @property
    def gateway(self) -> Doors: ...

    @property
    def terminal(self) -> TerminalChannel: ...

    @property
    def stop_requested(self) -> anyio.Event: ...
