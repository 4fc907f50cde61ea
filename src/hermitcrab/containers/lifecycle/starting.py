"""One start of a container, stage by stage: claim, prepare, create, start, hello. `runner.py` decides when."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import structlog
from anyio import to_thread

from hermitcrab.containers.disk.workspaces import Workspaces
from hermitcrab.containers.engine import Engine
from hermitcrab.containers.lifecycle import breakers
from hermitcrab.containers.lifecycle.background import Background
from hermitcrab.containers.lifecycle.deadline import Deadline
from hermitcrab.containers.lifecycle.slot import AskPython, Door, Slot, Surveyor
from hermitcrab.containers.link.exchange import Exchange, Outward
from hermitcrab.containers.link.server import listening
from hermitcrab.containers.materials.desk import MaterialsDesk, interpreter_env, session_folders
from hermitcrab.containers.materials.extra_mounts import decide_for
from hermitcrab.containers.materials.mounts import verify_after_create
from hermitcrab.errors import EngineError, Failure, HermitcrabError, NotFoundError
from hermitcrab.logic.lifecycle import Signal
from hermitcrab.logic.precedence import limits
from hermitcrab.logic.spec import Materials, build_spec
from hermitcrab.logic.workspace import Allowance
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.container import ContainerSpec, ContainerView, Limits
from hermitcrab.model.documents import Document
from hermitcrab.model.ids import AgentGroupId, Generation, InstallationId, SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import Settings
from hermitcrab.store import sessions
from hermitcrab.store.database import Store
from hermitcrab_wire import faults

CAREFUL_AFTER = 2
"""Ends in a row after which a runner is handed one row to answer after the other."""

RemoveOlder = Callable[[ContainerView], Awaitable[None]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """What a container is to be made from, as far as the group and the settings say."""

    provider: str
    image: str | None
    documents: Mapping[str, Document]
    """What the container reads, by path."""


class Starter:
    def __init__(
        self,
        *,
        home: Home,
        settings: Settings,
        installation: InstallationId,
        store: Store,
        mailboxes: Mailboxes,
        engine: Engine,
        desk: MaterialsDesk,
        surveyor: Surveyor,
        door: Door,
        background: Background,
        uid: int,
        gid: int,
        runner_env: Mapping[str, str],
        workspaces: Workspaces,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: by which it is judged whether runners live."""
        self._home, self._settings, self._installation = home, settings, installation
        self._store, self._mailboxes, self._engine = store, mailboxes, engine
        self._desk, self._surveyor, self._door = desk, surveyor, door
        self._background = background
        self.uid, self.gid = uid, gid
        self._runner_env, self._workspaces, self._clock = dict(runner_env), workspaces, clock

    async def start(self, slot: Slot, outward: Outward, began: float, remove_older: RemoveOlder) -> None:
        """From claim to hello. Raises EngineError with the stage that failed; the caller clears up."""
        deadlines = self._settings.containers
        expected = slot.session.generation
        generation = await self._store.write(lambda connection: sessions.claim(connection, slot.session.id, expected))
        faults.point("wake.claimed")
        slot.session = await self.reread(slot.session.id)
        if not slot.take(Signal.CLAIMED, generation):
            raise EngineError(Failure.UNKNOWN, f"session {slot.session.id} cannot start while {slot.life.phase}")
        slot.hello, slot.ended = anyio.Event(), anyio.Event()
        slot.wanted_end = slot.end_text = slot.farewell = slot.refusal = None
        slot.engine_was_away = False
        slot.offences = slot.stuck_tries = 0
        slot.timings = {}
        slot.take(Signal.PREPARE)
        spec = await self.prepare(slot, generation)
        await self._workspaces.begin(slot)
        _clock(slot, "materials", began)
        await self._mailboxes.run(slot.session, lambda mailbox: mailbox.release_claims(generation))
        await self.open_sockets(slot, generation, outward, began=began)
        _clock(slot, "prepared", began)
        faults.point("wake.prepared")
        with Deadline(deadlines.create_deadline_s, "create", slot.name):
            await self._create(spec, remove_older)
            if slot.decisions:
                await to_thread.run_sync(verify_after_create, slot.decisions)
        slot.take(Signal.CREATED)
        _clock(slot, "created", began)
        faults.point("wake.created")
        with Deadline(deadlines.start_deadline_s, "start", slot.name):
            await self._engine.start(slot.name)
        slot.take(Signal.STARTED)
        slot.started_at = slot.active_at = anyio.current_time()
        _clock(slot, "started", began)
        faults.point("wake.started")
        await self.await_hello(slot)
        slot.take(Signal.HELLO)
        _clock(slot, "wake", began)
        slot.troubled, slot.text = False, ""
        log.info("container.ready", session=slot.session.id, generation=generation, ms=round(slot.timings["wake"]))

    async def _create(self, spec: ContainerSpec, remove_older: RemoveOlder) -> None:
        try:
            await self._engine.create(spec)
        except EngineError as error:
            if error.failure is not Failure.NAME_IN_USE:
                raise
            # Only an older generation of the same session can have the name; a foreign one refuses to be removed.
            view = await self._engine.inspect(spec.name)
            if view is not None and view.generation >= spec.generation:
                raise
            if view is not None:
                await remove_older(view)
            await self._engine.create(spec)

    def needs(self, slot: Slot) -> tuple[str, ...]:
        """What a start of it depends on. Images and packages are a group's own."""
        return (breakers.ENGINE, breakers.STORE, breakers.GATEWAY, f"{breakers.IMAGE} of {slot.group.folder}")

    async def survey(self, slot: Slot) -> None:
        """Look up what a start of it will need, so that it can be admitted for that."""
        slot.config = await self._surveyor.config(slot.group)

    def allowance(self, slot: Slot) -> Allowance:
        """What the session may keep on disk, as its group's config was last looked up."""
        return self._workspaces.allowed(slot)

    async def check_room(self, slot: Slot) -> None:
        """Raises EngineError for a session that was surveyed and keeps more on disk than it may."""
        await self._workspaces.check_room(slot)

    async def prepare(self, slot: Slot, generation: Generation) -> ContainerSpec:
        """Make everything that one generation needs on disk, and the spec that says so. Idempotent."""
        recipe, packages = await self._stocked(slot)
        _record(slot)
        materials = await to_thread.run_sync(
            functools.partial(
                self._desk.prepare,
                slot.session,
                slot.group,
                generation,
                documents=recipe.documents,
                packages=packages,
                host_interpreter=recipe.image is None,
                extra=slot.decisions,
                is_foreign=slot.config.runner == "foreign",
            )
        )
        slot.spec = self._spec(slot, generation, recipe, materials)
        return slot.spec

    async def plan(self, slot: Slot, generation: Generation) -> tuple[ContainerSpec, Mapping[str, Document]]:
        """The spec that `prepare` would give, and what the container reads, with nothing made."""
        recipe = await self._recipe(slot)
        packages = None
        if slot.config.runner == "own":
            packages = await self._surveyor.packages_folder(recipe.provider, self._python_in(recipe))
        generated = await to_thread.run_sync(self._desk.place, slot.group, recipe.documents)
        (spec,) = await to_thread.run_sync(self._planned, [(slot, generation)], recipe, packages, generated)
        return spec, recipe.documents

    async def foresee(self, slots: Sequence[tuple[Slot, Generation]]) -> dict[SessionId, ContainerSpec]:
        """The specs that `prepare` would give for containers that run already, each group's share looked up once.

        Only the group's documents are made, and told to be in use. Those that it cannot be told of are left out. What
        their runners are greeted with is looked up as well.
        """
        await self._mailboxes.foresee(slot.session for slot, _ in slots)
        together: dict[tuple[AgentGroupId, str | None], list[tuple[Slot, Generation]]] = {}
        for slot, generation in slots:
            together.setdefault((slot.group.id, slot.session.provider), []).append((slot, generation))
        found: dict[SessionId, ContainerSpec] = {}
        for members in together.values():
            with suppress(HermitcrabError, OSError):  # `prepare` comes to the same, and says so of each.
                specs = await self._foresee_alike(members)
                found |= {spec.session: spec for spec in specs}
        return found

    async def _foresee_alike(self, members: Sequence[tuple[Slot, Generation]]) -> list[ContainerSpec]:
        first = members[0][0]
        recipe, packages = await self._stocked(first)
        generated = await to_thread.run_sync(self._desk.publish, first.group, recipe.documents)
        for slot, _ in members:
            slot.config, slot.decisions = first.config, first.decisions
        await self._surveyor.foresee([slot.session for slot, _ in members], first.group, first.config)
        return await to_thread.run_sync(self._planned, members, recipe, packages, generated)

    def _planned(
        self, members: Sequence[tuple[Slot, Generation]], recipe: _Recipe, packages: Path | None, generated: Path
    ) -> list[ContainerSpec]:
        return [
            self._spec(
                slot,
                generation,
                recipe,
                self._desk.plan(
                    slot.session,
                    slot.group,
                    generation,
                    generated=generated,
                    packages=packages,
                    host_interpreter=recipe.image is None,
                    extra=slot.decisions,
                ),
            )
            for slot, generation in members
        ]

    async def _stocked(self, slot: Slot) -> tuple[_Recipe, Path | None]:
        """The recipe, with its image and the provider's packages at hand."""
        recipe = await self._recipe(slot)
        with Deadline(self._settings.containers.create_deadline_s, "looking for the image", slot.name):
            await self._engine.ensure_image(recipe.image)
        # A foreign runner brings its own provider, whatever its name.
        is_own = slot.config.runner == "own"
        packages = await self._surveyor.packages(recipe.provider, self._python_in(recipe)) if is_own else None
        return recipe, packages

    def _python_in(self, recipe: _Recipe) -> AskPython:
        """Packages are compiled for one version of Python, and an image may have another than this host."""
        return functools.partial(self._engine.python, recipe.image)

    async def _recipe(self, slot: Slot) -> _Recipe:
        """The config, and the decisions on the mounts that it asks for, are the slot's from now on."""
        await self.survey(slot)
        config = slot.config
        around = await self._surveyor.surroundings(slot.session, slot.group, config)
        slot.decisions = ()
        if config.additional_mounts:
            slot.decisions = await to_thread.run_sync(decide_for, self._home, slot.group.folder, config)
        return _Recipe(
            provider=self._surveyor.provider_of(slot.session, config),
            image=await self._surveyor.image(slot.group, config),
            documents=await self._surveyor.documents(slot.group, config, around.config),
        )

    def _spec(self, slot: Slot, generation: Generation, recipe: _Recipe, materials: Materials) -> ContainerSpec:
        containers = self._settings.containers
        return build_spec(
            installation=self._installation,
            session=slot.session,
            generation=generation,
            image=recipe.image,
            provider=recipe.provider,
            materials=materials,
            limits=limits(
                slot.config.limits,
                Limits(
                    memory_bytes=containers.memory_mb * 1024 * 1024,
                    pids=containers.pids,
                    cpus=containers.cpus,
                    file_bytes=containers.workspace_mb * 1024 * 1024 or Limits().file_bytes,
                    log_bytes=containers.log_bytes,
                    log_files=containers.log_files,
                ),
            ),
            hardening=slot.config.hardening,
            foreign_command=slot.config.foreign_command,
            uid=self.uid,
            gid=self.gid,
            timezone=self._settings.agents.timezone,
            extra_env={**(interpreter_env() if recipe.image is None else {}), **self._runner_env},
        )

    async def open_sockets(
        self, slot: Slot, generation: Generation, outward: Outward, *, began: float | None = None
    ) -> None:
        """Open the session's sockets for one generation."""
        await slot.close_resources()
        folders = session_folders(self._home, slot.session)
        folder = folders.run(generation)
        exchange = Exchange(
            slot.session,
            generation,
            mailboxes=self._mailboxes,
            outbox=folders.outbox,
            surroundings=lambda: self._surveyor.surroundings(slot.session, slot.group, slot.config),
            outward=outward,
            clock=self._clock,
            careful=slot.failures >= CAREFUL_AFTER,
        )
        stack = AsyncExitStack()
        async with AsyncExitStack() as building:
            await building.enter_async_context(listening(folder, exchange, self._background.spawn))
            if began is not None:
                _clock(slot, "sockets", began)
            try:
                await self._door.open(slot.session.id, generation, folder)
            except (HermitcrabError, OSError) as error:
                raise EngineError(
                    Failure.GATEWAY_UNAVAILABLE,
                    f"the gateway did not open a door for {slot.session.id}: {error}",
                    hint="Without the gateway no container starts; crab logs of the host says more.",
                ) from error
            building.push_async_callback(self._door.revoke, slot.session.id, generation)
            stack = building.pop_all()
        slot.exchange, slot.resources = exchange, stack

    async def await_hello(self, slot: Slot) -> None:
        """Until the runner greets. Raises when it ends first or says nothing in time."""
        deadline_s = self._settings.containers.hello_deadline_s
        async with anyio.create_task_group() as waiting:

            async def ended() -> None:
                await slot.ended.wait()
                waiting.cancel_scope.cancel()

            waiting.start_soon(ended)
            with anyio.move_on_after(deadline_s):
                await slot.hello.wait()
            waiting.cancel_scope.cancel()
        if slot.refusal is not None:
            raise slot.refusal
        if not slot.hello.is_set():
            died = slot.ended.is_set()
            raise EngineError(
                Failure.STARTED_THEN_DIED,
                f"the container of {slot.session.id} " + ("ended before" if died else "ran, without") + " its hello",
                hint=f"crab logs {slot.session.id} shows its last words.",
            )

    async def reread(self, session_id: SessionId) -> Session:
        """The session as the store has it now."""
        session = await self._store.read(lambda connection: sessions.by_id(connection, session_id))
        if session is None:
            raise NotFoundError(f"there is no session {session_id}")
        return session


def _record(slot: Slot) -> None:
    for each in slot.decisions:
        told = log.info if each.allowed else log.warning
        told(
            "mount.decided",
            session=slot.session.id,
            path=each.request.path,
            allowed=each.allowed,
            why=each.steps[-1].saw if each.allowed else each.reason,
        )


def _clock(slot: Slot, stage: str, began: float) -> None:
    slot.timings[stage] = (anyio.current_time() - began) * 1000
