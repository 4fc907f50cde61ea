"""The spec of a session's container: one pure function of what was prepared for it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

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
    extra_env: Mapping[str, str] | None = None,
) -> ContainerSpec:
    """Everything about the container of `session` in `generation`. The mount table is the design's section 5.

    Raises EngineError, as `spec_check` does, for what no engine may see.
    """
    mounts = _mounts(materials)
    env = {
        "HOME": HOME,
        "USER": "agent",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TZ": timezone,
        "TMPDIR": "/tmp",  # noqa: S108  # in the container, a private tmpfs
        "PYTHONPATH": RUNNER_SOURCE,
        # The container's root is read-only and its interpreter is the host's.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HERMITCRAB_LINK": f"{RUN}/link.sock",
        "HERMITCRAB_GATEWAY": f"{RUN}/gateway.sock",
        "HERMITCRAB_GENERATION": str(generation),
        "HERMITCRAB_PROVIDER": provider,
        "HERMITCRAB_PACKAGES": PACKAGES,
        "HERMITCRAB_WRITABLE": ":".join(writable_places(mounts, TMPFS)),
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
        argv=(materials.python, "-P", "-S", "-m", "hermitcrab_runner"),
        env=env,
        mounts=mounts,
        tmpfs=TMPFS,
        limits=profile.bounded(limits),
        uid=uid,
        gid=gid,
        hardening=hardening,
    )
    check(spec)
    return spec


def _mounts(materials: Materials) -> tuple[Mount, ...]:
    mounts = [
        Mount(source=materials.work, target="/workspace", writable=True, mount_class=MountClass.WORK),
        *(Mount(source=path, target=f"/workspace/{name}") for name, path in sorted(materials.work_overlays.items())),
        Mount(source=materials.inbox, target="/workspace/inbox"),
        Mount(source=materials.extra_points, target=EXTRA),
        *materials.extra,
        Mount(source=materials.run, target=RUN, mount_class=MountClass.LINK),
        Mount(source=materials.group_folder, target="/workspace/agent", writable=True, mount_class=MountClass.WORK),
        *(Mount(source=path, target=f"/workspace/agent/{name}") for name, path in sorted(materials.generated.items())),
        Mount(source=materials.state, target=f"{HOME}/.claude", writable=True, mount_class=MountClass.WORK),
        *(
            Mount(source=path, target=f"{HOME}/.claude/{name}")
            for name, path in sorted(materials.state_overlays.items())
        ),
        *(
            Mount(source=path, target=target, mount_class=MountClass.INSTALL_SURFACE)
            for target, path in sorted(materials.app.items())
        ),
    ]
    if materials.global_memory is not None:
        mounts.append(Mount(source=materials.global_memory, target="/workspace/global"))
    return tuple(mounts)
