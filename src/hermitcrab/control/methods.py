"""Every method of the control socket, over a running host. `crab up` hands the registry to `server.serving`."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from anyio import to_thread

from hermitcrab import __version__
from hermitcrab.containers.lifecycle.slot import SessionView
from hermitcrab.control.archive_methods import ArchiveMethods
from hermitcrab.control.chat_methods import ChatMethods
from hermitcrab.control.config_methods import ConfigMethods
from hermitcrab.control.group_methods import GroupMethods
from hermitcrab.control.host import ControlledHost
from hermitcrab.control.image_methods import ImageMethods
from hermitcrab.control.message_methods import MessageMethods
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import Emit, Method
from hermitcrab.control.session_methods import SessionMethods
from hermitcrab.errors import EngineError
from hermitcrab.gateway.vault import KeyProblem, KeySource
from hermitcrab.model.container import Finding
from hermitcrab.model.ids import SessionId
from hermitcrab.store import agent_groups, sessions


def methods(host: ControlledHost) -> Mapping[str, Method]:
    own, groups, session, chat = HostMethods(host), GroupMethods(host), SessionMethods(host), ChatMethods(host)
    config = ConfigMethods(host)
    archive = ArchiveMethods(host)
    images = ImageMethods(host)
    messages = MessageMethods(host)
    return {
        "status": own.status,
        "doctor": own.doctor,
        "stop": own.stop,
        "gateway.reopen": own.reopen_gateway,
        "groups.list": groups.list,
        "groups.create": groups.create,
        "groups.show": groups.show,
        "groups.restart": groups.restart,
        "groups.explain": groups.explain,
        "groups.config.show": config.show,
        "groups.config.change": config.change,
        "groups.config.propose": config.propose,
        "images.build": images.build,
        "images.list": images.list,
        "images.prune": images.prune,
        "sessions.list": session.list,
        "sessions.show": session.show,
        "sessions.wake": session.wake,
        "sessions.stop": session.stop,
        "sessions.restart": session.restart,
        "sessions.interrupt": session.interrupt,
        "messages.release": session.release_message,
        "sessions.reconnect": session.reconnect,
        "sessions.export": archive.export,
        "sessions.import": archive.import_,
        "sessions.hold": archive.hold,
        "sessions.release": archive.release,
        "sessions.delete": archive.delete,
        "sessions.check": archive.check,
        "session.ask": session.ask,
        "messages.list": messages.list,
        "messages.show": messages.show,
        "messages.retry": messages.retry,
        "delivery.doctor": messages.doctor,
        "logs": session.logs,
        "deaths": session.deaths,
        "chat.attach": chat.attach,
        "chat.ack": chat.ack,
        "chat.upload": chat.upload,
        "chat.send": chat.send,
        "chat.answers": chat.answers,
    }


TROUBLED = frozenset({"stuck", "unknown", "quarantined"})
"""Phases in which a session waits for somebody to mend something."""


def troubled_container(view: SessionView) -> Finding:
    fixes = {
        "stuck": f"Look at container {view.container} with the engine's own tools; it is tried again by itself.",
        "unknown": "Bring the engine back; what became of the container is found out by itself.",
        "quarantined": f"Mend what it says, then: crab sessions restart {view.session_id} --wake",
    }
    return Finding(
        subject=f"session {view.session_id}",
        level="warning",
        text=f"its container is {view.phase}: {view.text}",
        fix=fixes[view.phase],
    )


def damaged_session(session: SessionId, why: str) -> Finding:
    return Finding(
        subject=f"session {session}",
        level="warning",
        text=f"its messages cannot be read: {why}",
        fix=f"Move its database away and put a backup in its place. Then: crab sessions check {session}",
    )


class HostMethods:
    def __init__(self, host: ControlledHost) -> None:
        self._host = host
        self._began = time.monotonic()

    async def status(self, params: Params, _emit: Emit) -> Json:
        params.done()
        host = self._host
        groups, total = await host.store.read(
            lambda connection: (len(agent_groups.all_groups(connection)), sessions.count(connection))
        )
        views = host.runner.views()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "home": str(host.home.path),
            "installation": host.installation,
            "tasks": len(asyncio.all_tasks()),
            "uptime_s": round(time.monotonic() - self._began, 1),
            "engine": await self._engine(),
            "provider": host.settings.agents.provider,
            "groups": groups,
            "sessions": total,
            "damaged": dict(sorted(host.mailboxes.set_aside.items())),
            "admission": asdict(host.runner.admission()),
            "breakers": [asdict(each) for each in host.runner.breakers()],
            "phases": dict(sorted(Counter(view.phase for view in views).items())),
            # Not `asdict`, which takes every value apart: there may be hundreds of them.
            "containers": [{name: getattr(view, name) for name in SessionView.__slots__} for view in views],
        }

    async def doctor(self, params: Params, _emit: Emit) -> Json:
        """What only the running host knows: what it was started with, and how its engine is."""
        params.done()
        host = self._host
        key = await to_thread.run_sync(KeySource.parse(host.settings.gateway.anthropic_key).read)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "engine": host.engine.name,
            "provider": host.settings.agents.provider,
            "key_source": host.settings.gateway.anthropic_key,
            "key_problem": asdict(key) if isinstance(key, KeyProblem) else None,
            "findings": [
                *(asdict(finding) for finding in await host.engine.preflight()),
                *(asdict(troubled_container(view)) for view in host.runner.views() if view.phase in TROUBLED),
                *(asdict(damaged_session(key, why)) for key, why in sorted(host.mailboxes.set_aside.items())),
            ],
        }

    async def stop(self, params: Params, _emit: Emit) -> Json:
        """The host leaves in good order after this answer."""
        params.done()
        self._host.stop_requested.set()
        return {"pid": os.getpid()}

    async def reopen_gateway(self, params: Params, _emit: Emit) -> Json:
        """Cut what containers have open through the gateway, and listen anew, as if it had died and come back."""
        params.done()
        return {"reopened": self._host.gateway.reopen()}

    async def _engine(self) -> Json:
        name = self._host.engine.name
        try:
            found = await self._host.engine.capabilities()
        except EngineError as error:
            # An engine that cannot be asked is shown as that, not as one that has nothing (law 1).
            return {"name": name, "available": False, "problem": error.message, "hint": error.hint}
        return {
            "name": name,
            "available": True,
            "version": found.version,
            "unrealized": dict(found.unrealized),
            "strict_unrealized": dict(found.strict_unrealized),
        }
