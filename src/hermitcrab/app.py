"""The only place where everything is wired to everything else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path

import anyio
import structlog

from hermitcrab.channels.base import Channel
from hermitcrab.channels.terminal.runtime import TerminalChannel
from hermitcrab.containers import machine
from hermitcrab.containers.disk.workspaces import Workspaces
from hermitcrab.containers.engine import Engine, EngineOptions
from hermitcrab.containers.explaining import Explainer
from hermitcrab.containers.images.desk import default_tag
from hermitcrab.containers.lifecycle.background import Background
from hermitcrab.containers.lifecycle.ending import Ender
from hermitcrab.containers.lifecycle.slot import Told
from hermitcrab.containers.lifecycle.starting import Starter
from hermitcrab.containers.materials.desk import MaterialsDesk, session_folders
from hermitcrab.containers.memory import memory_budget_mb
from hermitcrab.containers.reconcile import Reconciled, Reconciler
from hermitcrab.containers.runner import ContainerRunner
from hermitcrab.conversation.actions import Actions
from hermitcrab.conversation.archivist import Archivist
from hermitcrab.conversation.delivery import Deliverer
from hermitcrab.conversation.notices import Notices
from hermitcrab.conversation.router import Router
from hermitcrab.errors import BadInputError
from hermitcrab.gateway.listener import Gateway
from hermitcrab.gateway.route import Route
from hermitcrab.gateway.vault import KeySource
from hermitcrab.groups.creation import ensure_first_group
from hermitcrab.groups.images import GroupImages
from hermitcrab.groups.skills import SkillShelf
from hermitcrab.groups.surroundings import PROVIDERS, GroupSurveyor
from hermitcrab.logic.liveness import AttentiveClock
from hermitcrab.mailbox.mailbox import THIS_PROCESS
from hermitcrab.mailbox.mailboxes import Mailboxes
from hermitcrab.model.ids import InstallationId
from hermitcrab.model.messages import Address, OutboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.observe.supervision import isolated
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import Settings
from hermitcrab.store import installation
from hermitcrab.store.database import Store
from hermitcrab_wire import faults

ENGINE_GROUP = "hermitcrab.engines"
RUNNER_FAULT = "HERMITCRAB_RUNNER_FAULT"
"""For tests: handed to runners as their HERMITCRAB_FAULT; the token's path is one in the container."""

CACHE = "HERMITCRAB_CACHE"
"""Names the folder for what can be fetched again."""

FIRST_CONTAINER_UID = 600_000
"""Uids of containers when the host is root: above those of people, services and the usual sub-uid ranges."""

CONTAINER_UIDS = 60_000

DELIVERED_WITHIN_S = 5.0
"""How long a host that leaves waits for channels. What it cuts off may have arrived or not."""

SETTLED_WITHIN_S = 5.0
"""How long a host that leaves may take to note that nothing waits. What it does not come to, the next one looks at."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A running host. Everything in it lives as long as `open_host`'s context."""

    home: Home
    settings: Settings
    installation: InstallationId
    store: Store
    mailboxes: Mailboxes
    engine: Engine
    explainer: Explainer
    runner: ContainerRunner
    starter: Starter
    desk: MaterialsDesk
    router: Router
    deliverer: Deliverer
    images: GroupImages
    archivist: Archivist
    terminal: TerminalChannel
    gateway: Gateway
    reconciled: Reconciled
    reconciler: Reconciler
    stop_requested: anyio.Event = field(default_factory=anyio.Event)
    """Set to ask whoever opened the host to leave."""


def engine_names() -> list[str]:
    """Every engine that this installation knows, third parties' included."""
    return sorted(each.name for each in entry_points(group=ENGINE_GROUP))


def open_engine(home: Home, settings: Settings, install: InstallationId) -> Engine:
    """The engine that the settings name. Raises BadInputError for an unknown one."""
    name = settings.containers.engine
    found = [each for each in entry_points(group=ENGINE_GROUP) if each.name == name]
    if not found:
        raise BadInputError(
            f"There is no engine {name!r}.", hint=f"Known engines: {', '.join(engine_names())} (containers.engine)."
        )
    sockets = {"docker": settings.containers.docker_socket, "podman": settings.containers.podman_socket}
    engine: Engine = found[0].load()(
        EngineOptions(installation=install, folder=home.engine_folder(name), socket=sockets.get(name))
    )
    return engine


def check_provider(settings: Settings) -> None:
    """Raises BadInputError for a provider that no runner has."""
    if settings.agents.provider not in PROVIDERS:
        raise BadInputError(
            f"There is no provider {settings.agents.provider!r}.",
            hint=f"Known providers: {', '.join(PROVIDERS)} (agents.provider).",
        )


def gateway_routes(settings: Settings) -> list[Route]:
    """Where containers get to through the gateway."""
    gateway = settings.gateway
    return [Route(prefix="/anthropic", upstream=gateway.anthropic_upstream, key=KeySource.parse(gateway.anthropic_key))]


def package_cache() -> Path:
    """Where providers' packages are kept: shared by all homes of a user, as they are large and never change."""
    if (named := os.environ.get(CACHE)) is not None:
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hermitcrab"


def container_ids(install: InstallationId) -> tuple[int, int]:
    """Host uid and gid of what containers write: our own, or as root one that nobody else has."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    number = int(hashlib.sha256(install.encode()).hexdigest(), 16) % CONTAINER_UIDS
    return FIRST_CONTAINER_UID + number, FIRST_CONTAINER_UID + number


@asynccontextmanager
async def open_host(
    home: Home,
    settings: Settings,
    *,
    extra_channels: Mapping[str, Channel] | None = None,
    keep_containers: bool = False,
    engine: Engine | None = None,
    process: str = THIS_PROCESS,
) -> AsyncIterator[Host]:
    """A host on a prepared and locked home. Leaving it ends the containers, unless `keep_containers`.

    `engine`: one that is open already, in place of the one that the settings name. `process`: what this host is called
    in ledgers; another one after it finds there what this one did not finish.
    """
    check_provider(settings)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store.open(home.database))
        install = await store.write(installation.get_or_create)
        engine = engine or open_engine(home, settings, install)
        stack.push_async_callback(engine.aclose)
        mailboxes = await stack.enter_async_context(
            Mailboxes(
                lambda session: session_folders(home, session).mailbox,
                whole_for=_whole_for(settings),
                process=process,
            )
        )
        terminal = TerminalChannel()
        channels: dict[str, Channel] = {terminal.type: terminal, **(extra_channels or {})}

        def ended(session: Session, row: OutboundRow) -> None:
            runner.report(session, row)

        def at_rest(session: Session) -> None:
            runner.settle_soon(session)

        deliverer = Deliverer(
            store,
            mailboxes,
            channels,
            settings.delivery,
            outbox_of=lambda session: session_folders(home, session).outbox,
            at_rest=at_rest,
            ended=ended,
        )
        actions = Actions(store, mailboxes, lambda: runner)
        notices = Notices(store, mailboxes, deliverer, channels)
        gateway = await stack.enter_async_context(Gateway(gateway_routes(settings), notify=notices.finding))
        uid, gid = container_ids(install)
        clock = AttentiveClock(anyio.current_time, settings.containers.silent_before_kill_s / 3)
        is_bubblewrap = settings.containers.engine == "bubblewrap"
        images = GroupImages(
            store,
            home,
            settings,
            engine=settings.containers.engine,
            default=settings.containers.image or (None if is_bubblewrap else default_tag()),
        )
        desk = MaterialsDesk(home, uid=uid, gid=gid)
        workspaces = Workspaces(home, settings.containers, engine)
        background = Background()
        starter = Starter(
            home=home,
            settings=settings,
            installation=install,
            store=store,
            mailboxes=mailboxes,
            engine=engine,
            desk=desk,
            surveyor=GroupSurveyor(store, settings, SkillShelf(home), images=images, package_cache=package_cache()),
            door=gateway,
            background=background,
            uid=uid,
            gid=gid,
            runner_env=_runner_fault(),
            workspaces=workspaces,
            clock=clock,
        )
        ender = Ender(
            home=home,
            store=store,
            mailboxes=mailboxes,
            engine=engine,
            desk=desk,
            same_way_at_most=settings.containers.quarantine_after,
            machine_restarted=machine.was_restarted(home.machine_file),
        )
        runner = ContainerRunner(
            home=home,
            settings=settings,
            installation=install,
            store=store,
            mailboxes=mailboxes,
            engine=engine,
            starter=starter,
            ender=ender,
            background=background,
            workspaces=workspaces,
            clock=clock,
            budget_mb=settings.containers.memory_budget_mb or memory_budget_mb(),
            told=Told(
                said=deliverer.notify,
                working=notices.working,
                resting=notices.resting,
                trouble=notices.trouble,
                asked=actions.take,
            ),
        )
        archivist = Archivist(home=home, store=store, mailboxes=mailboxes, containers=runner, uid=uid, gid=gid)
        router = Router(
            store,
            mailboxes,
            runner,
            message_bytes_at_most=settings.limits.message_bytes,
            failed_later=deliverer.failed_later,
            inbox_of=lambda session: session_folders(home, session).inbox,
            said=deliverer.notify,
        )

        def attached(platform_id: str) -> None:
            deliverer.notify_waiting(lambda address: _is_terminal(address, terminal, platform_id))

        terminal.connect(router, on_attached=attached)
        await ensure_first_group(store)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        await tasks.start(deliverer.run)
        await tasks.start(notices.run)
        await tasks.start(runner.run)
        await archivist.open()
        reconciler = Reconciler(
            runner=runner, engine=engine, store=store, mailboxes=mailboxes, deliver=deliverer.notify
        )
        reconciled = await reconciler.reconcile()
        machine.remember(home.machine_file)
        tasks.start_soon(reconciler.run)
        tasks.start_soon(isolated, images.clear_leftovers)
        try:
            yield Host(
                home=home,
                settings=settings,
                installation=install,
                store=store,
                mailboxes=mailboxes,
                engine=engine,
                explainer=Explainer(
                    installation=install,
                    starter=starter,
                    engine=engine,
                    routes={prefix: route.upstream for prefix, route in gateway.routes.items()},
                ),
                runner=runner,
                starter=starter,
                desk=desk,
                router=router,
                deliverer=deliverer,
                archivist=archivist,
                images=images,
                terminal=terminal,
                gateway=gateway,
                reconciled=reconciled,
                reconciler=reconciler,
            )
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_leaving_s(settings)):
                await runner.close(keep_containers=keep_containers)
            with anyio.CancelScope(shield=True):
                await deliverer.close(within_s=DELIVERED_WITHIN_S)
            with anyio.CancelScope(shield=True), anyio.move_on_after(SETTLED_WITHIN_S):
                await runner.settle_all()
            tasks.cancel_scope.cancel()


def _leaving_s(settings: Settings) -> float:
    """Within which every container has ended, or will not."""
    return settings.containers.drain_within_s + settings.containers.stop_grace_s + 10


def _is_terminal(address: Address, terminal: TerminalChannel, platform_id: str) -> bool:
    return address.channel_type == terminal.type and address.platform_id == platform_id


def _whole_for(settings: Settings) -> timedelta | None:
    days = settings.limits.whole_messages_days
    return timedelta(days=days) if days else None


def _runner_fault() -> dict[str, str]:
    fault = os.environ.get(RUNNER_FAULT)
    return {faults.VARIABLE: fault} if fault else {}
