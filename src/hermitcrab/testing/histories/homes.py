"""The home that every history begins on: made once, and put back to that state for each."""

from __future__ import annotations

import functools
import random
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Connection
from typing import Any, TypeVar
from unittest.mock import patch

from hermitcrab.groups.creation import create_group
from hermitcrab.logic.routing import EVERYTHING
from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.groups import AgentGroup, MessagingGroup, Wiring
from hermitcrab.model.ids import InstallationId, MessagingGroupId, SessionId, WiringId
from hermitcrab.model.messages import Address
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.settings.load import load
from hermitcrab.settings.model import Settings
from hermitcrab.store import destinations, installation, messaging_groups, sessions, wirings
from hermitcrab.store.database import Store

T = TypeVar("T")

CHATS = (("one", "keys", None), ("two", "plain", None), ("three", "keys", "thread-1"))
"""Name, platform and thread."""

_CONTAINERS = {
    "engine": "bubblewrap",
    "quiet_before_freeze_s": 20.0,
    "quiet_before_stop_s": 60.0,
    "hello_deadline_s": 10.0,
    "drain_within_s": 2.0,
    "stop_grace_s": 2.0,
    "create_deadline_s": 15.0,
    "start_deadline_s": 15.0,
}


@dataclass(eq=False)
class Template:
    """Of one folder. Not for two histories at a time."""

    folder: Path
    installation: InstallationId = InstallationId("")
    chats: list[tuple[str, str, Address]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home = Home(self.folder / "home")
        self.files = self.folder / "files"
        self._database = self.folder / "database"
        self._mailboxes = self.folder / "mailboxes"
        self.settings: list[Settings] = []
        """One of them for each history: there is room for all containers, or there is not."""
        self._known: dict[object, Any] = {}

    async def make(self) -> None:
        """The same each time, so that a history is the same in every process."""
        dice = random.Random(0)
        with patch.object(secrets, "token_hex", lambda count=32: dice.randbytes(count).hex()):
            await self._make()

    async def _make(self) -> None:
        self.home.prepare()
        self.files.mkdir()
        for budget_mb in (2 * 256, 3 * 256, 3 * 256):
            values = {**_CONTAINERS, "memory_budget_mb": budget_mb}
            self.settings.append(
                load(
                    self.home.path,
                    {"agents.provider": "echo", **{f"containers.{key}": value for key, value in values.items()}},
                )
            )
        async with Store.open(self.home.database) as store:
            self.installation = await store.write(installation.get_or_create)
            groups = [await create_group(store, folder=name) for name, _, thread in CHATS if thread is None]

            def insert(connection: Connection) -> None:
                # Nobody sits at a terminal in a history, and what was to be shown there would wait for ever.
                connection.execute("DELETE FROM destinations")
                key = MessagingGroupId("mg-desk")
                desk = MessagingGroup(id=key, channel_type="desk", platform_id="desk", name="desk")
                messaging_groups.insert(connection, desk)
                for group in groups:
                    destinations.insert(connection, group.id, "desk", "channel", desk.id)
                for name, type_, thread in CHATS:
                    chat = MessagingGroup(
                        id=MessagingGroupId(f"mg-{name}"),
                        channel_type=type_,
                        platform_id=name,
                        name=name,
                        is_group=thread is not None,
                    )
                    messaging_groups.insert(connection, chat)
                    wiring = Wiring(
                        id=WiringId(f"mga-{name}"),
                        messaging_group_id=chat.id,
                        agent_group_id=groups[1 if name == "two" else 0].id,
                        engage_mode="pattern",
                        engage_pattern=EVERYTHING,
                        session_mode="shared" if thread is None else "per-thread",
                    )
                    wirings.insert(connection, wiring)
                    address = Address(channel_type=type_, platform_id=name, thread_id=thread)
                    self.chats.append((name, type_, address))

            await store.write(insert)
            for session in self._sessions(groups):
                await store.write(functools.partial(sessions.insert, session=session))
        shutil.copy(self.home.database, self._database)
        for session in self._sessions(groups):
            Mailbox.open(self._mailboxes / session.agent_group_id / session.id / "mailbox").close()

    def _sessions(self, groups: list[AgentGroup]) -> list[Session]:
        """Chats in which something was said before. In the last one nothing was."""
        return [
            Session(
                id=SessionId(f"sess-{name}"),
                agent_group_id=groups[number].id,
                messaging_group_id=MessagingGroupId(f"mg-{name}"),
            )
            for number, (name, _, thread) in enumerate(CHATS)
            if thread is None
        ]

    def once(self, function: Callable[..., T], *, by: int = 0) -> Callable[..., T]:
        """`function`, which is asked once for each value of its argument number `by`."""

        def known(*arguments: Any) -> T:
            key = function, repr(arguments[by])
            if key not in self._known:
                self._known[key] = function(*arguments)
            found: T = self._known[key]
            return found

        return known

    def restore(self) -> None:
        """As it was when it was made, apart from what is generated for containers and never changes."""
        for each in (self.home.sessions, self.home.trash, self.files):
            shutil.rmtree(each, ignore_errors=True)
        shutil.copytree(self._mailboxes, self.home.sessions)
        for each in (self.home.trash, self.files):
            each.mkdir(mode=0o700)
        for path in self.home.database.parent.glob(f"{self.home.database.name}-*"):
            path.unlink()
        shutil.copyfile(self._database, self.home.database)
