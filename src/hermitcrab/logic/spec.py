"""The spec of a session's container: one pure function of what was prepared for it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from hermitcrab.logic import system_calls
from hermitcrab.logic.admittance import writable_places
from hermitcrab.logic.hardening import PROFILES
from hermitcrab.logic.mounts import EXTRA
from hermitcrab.logic.spec_check import check
from hermitcrab.model.container import ContainerSpec, Hardening, Limits, Mount, MountClass
from hermitcrab.model.ids import Generation, InstallationId, SessionId
from hermitcrab.model.sessions import Session

HOME = "/home/agent"
RUN = "/run/hermitcrab"
RUNNER_SOURCE = "/app/src"
SKILLS = "/app/skills"
PACKAGES = "/opt/hermitcrab/packages"
INTERPRETER = "/opt/hermitcrab/python"
TMPFS = ("/tmp", HOME)  # noqa: S108  # in the container

FOREIGN_HOME = "/home/node"
"""Where a runner of the earlier system has its home, as its image says."""
FOREIGN_RUNNER_SOURCE = "/opt/hermitcrab/runner"
"""Our own runner's, beside a foreign one: that one's source is at /app/src, in its image."""
FOREIGN_SETTINGS = "/opt/hermitcrab/claude-settings.json"
"""A foreign runner adds hooks of its own to its harness's settings when it starts: it gets a copy of these."""
_SETTINGS = "settings.json"
_FOREIGN_PATH = "/pnpm:"

_NAME_CHARACTERS_AT_MOST = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Materials:
    """What lies ready on the host for one container. Every path is absolute and free of symbolic links."""

    work: str
    inbox: str
    run: str
    """The folder with this generation's sockets."""
    state: str
    group_folder: str
    generated: Mapping[str, str]
    """Host-written files and folders by their name in the group's folder: container.json, CLAUDE.md, ..."""
    app: Mapping[str, str]
    """Read-only parts of the installation by their path in the container."""
    work_overlays: Mapping[str, str] = field(default_factory=dict)
    """Host-written files and folders on top of the work folder, by name."""
    state_overlays: Mapping[str, str] = field(default_factory=dict)
    """Host-written files on top of the state folder, by name."""
    global_memory: str | None = None
    extra_points: str
    """Host-written folder with a place for each additional mount, and nothing else."""
    extra: tuple[Mount, ...] = ()
    """Additional mounts, as the allow-list decided on them."""
    python: str
    """The interpreter's path in the container."""


def container_name(installation: InstallationId, session: SessionId) -> str:
    """The one name that the session's container can have: readable, bounded, and distinct for distinct sessions."""
    digest = hashlib.sha256(session.encode()).hexdigest()[:10]
    readable = re.sub(r"[^a-z0-9-]+", "-", session.lower()).strip("-")
    return f"crab-{installation}-{readable}"[: _NAME_CHARACTERS_AT_MOST - 11].rstrip("-") + f"-{digest}"


def build_spec(
    *,
    installation: InstallationId,
    session: Session,
    generation: Generation,
    image: str | None,
    provider: str,
    materials: Materials,
    limits: Limits,
    uid: int,
    gid: int,
    timezone: str,
    hardening: Hardening = "standard",
    foreign_command: tuple[str, ...] = (),
    extra_env: Mapping[str, str] | None = None,
) -> ContainerSpec:
    """Everything about the container of `session` in `generation`. The mount table is the design's section 5.

    With a `foreign_command`, our runner serves that one, which finds the container as it was in the earlier system.

    Raises EngineError, as `spec_check` does, for what no engine may see.
    """
    home = FOREIGN_HOME if foreign_command else HOME
    source = FOREIGN_RUNNER_SOURCE if foreign_command else RUNNER_SOURCE
    tmpfs = tuple(home if path == HOME else path for path in TMPFS)
    mounts = _mounts(materials, home=home, source=source, is_foreign=bool(foreign_command))
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    env = {
        "HOME": home,
        "USER": "agent",
        "LANG": "C.UTF-8",
        "PATH": _FOREIGN_PATH + path if foreign_command else path,
        "TZ": timezone,
        "TMPDIR": "/tmp",  # noqa: S108  # in the container, a private tmpfs
        "PYTHONPATH": source,
        # The container's root is read-only and its interpreter is the host's.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HERMITCRAB_LINK": f"{RUN}/link.sock",
        "HERMITCRAB_GATEWAY": f"{RUN}/gateway.sock",
        "HERMITCRAB_GENERATION": str(generation),
        "HERMITCRAB_PROVIDER": provider,
        "HERMITCRAB_PACKAGES": PACKAGES,
        "HERMITCRAB_WRITABLE": ":".join(writable_places(mounts, tmpfs)),
        **({"HERMITCRAB_HARNESS_SETTINGS": FOREIGN_SETTINGS} if foreign_command else {}),
        **(extra_env or {}),
    }
    profile = PROFILES[hardening]
    spec = ContainerSpec(
        name=container_name(installation, session.id),
        installation=installation,
        session=session.id,
        generation=generation,
        image=image,
        # -P and -S: neither the agent's folder nor site-packages is on the import path of pid 1.
        argv=(
            *(materials.python, "-P", "-S", "-m", "hermitcrab_runner"),
            *(("shim", "--", *foreign_command) if foreign_command else ()),
        ),
        env=env,
        mounts=mounts,
        tmpfs=tmpfs,
        limits=profile.bounded(limits),
        uid=uid,
        gid=gid,
        hardening=hardening,
        system_calls=system_calls.fingerprint(hardening),
    )
    check(spec)
    return spec


def _mounts(materials: Materials, *, home: str, source: str, is_foreign: bool) -> tuple[Mount, ...]:
    app = {source if target == RUNNER_SOURCE else target: path for target, path in materials.app.items()}
    moved = {_SETTINGS: FOREIGN_SETTINGS} if is_foreign else {}
    mounts = [
        Mount(source=materials.work, target="/workspace", writable=True, mount_class=MountClass.WORK),
        *(Mount(source=path, target=f"/workspace/{name}") for name, path in sorted(materials.work_overlays.items())),
        Mount(source=materials.inbox, target="/workspace/inbox"),
        Mount(source=materials.extra_points, target=EXTRA),
        *materials.extra,
        Mount(source=materials.run, target=RUN, mount_class=MountClass.LINK),
        Mount(source=materials.group_folder, target="/workspace/agent", writable=True, mount_class=MountClass.WORK),
        *(Mount(source=path, target=f"/workspace/agent/{name}") for name, path in sorted(materials.generated.items())),
        Mount(source=materials.state, target=f"{home}/.claude", writable=True, mount_class=MountClass.WORK),
        *(
            Mount(source=path, target=moved.get(name, f"{home}/.claude/{name}"))
            for name, path in sorted(materials.state_overlays.items())
        ),
        *(
            Mount(source=path, target=target, mount_class=MountClass.INSTALL_SURFACE)
            for target, path in sorted(app.items())
        ),
    ]
    if materials.global_memory is not None:
        mounts.append(Mount(source=materials.global_memory, target="/workspace/global"))
    return tuple(mounts)
