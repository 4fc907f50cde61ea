"""What Docker's and Podman's HTTP API is asked to make of a container spec, as a pure function.

The engines are told everything explicitly: whatever an image says about user, command, health checks, volumes or
working folder must not decide anything. Called by the Docker engine's `create`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from hermitcrab.logic.hardening import PROFILES, Profile
from hermitcrab.logic.spec_check import check
from hermitcrab.model.container import ContainerSpec, Hardening, Limits, Mount

IMAGE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.:/@-]{0,255}", re.ASCII)
"""Names of images, with registry, tag or digest. `..` must be looked for apart."""

SHARED_MEMORY_BYTES = 64 * 1024 * 1024
"""How much memory programs may share by name. It counts against the memory limit too."""

_PODMAN_SCRATCH = ("/run", "/var/tmp")  # noqa: S108  # paths in the container
"""Podman's API always adds writable folders in memory here to a read-only root; naming them is the only way to
keep them from being writable and without a size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one engine differs from the other where both claim the same API."""

    engine: Literal["docker", "podman"] = "docker"
    rootless: bool = False
    """The engine's daemon is an ordinary user's, so that uids in the container are mapped."""
    processes: int = 32768
    """How many processes one user may have on this machine; Podman asks for more than it may, unless told."""
    sandbox_runtime: str | None = None
    """The runtime for `hardening = "strict"` (gVisor), where the machine has it."""
    filters: Mapping[Hardening, str] = field(default_factory=dict)
    """The system-call filter of each profile, as this engine takes one. Without any, the engine's own is in force."""


def create_body(
    spec: ContainerSpec, *, image: str, dialect: Dialect, image_volumes: Iterable[str] = ()
) -> dict[str, Any]:
    """The body of `POST /containers/create`. Raises EngineError `spec-invalid` or `denied-by-policy`."""
    check(spec)
    profile = PROFILES[spec.hardening]
    limits = spec.limits
    host: dict[str, Any] = {
        "AutoRemove": False,
        "CapDrop": ["ALL"],
        "CapAdd": [],
        "CgroupnsMode": "private",
        "Devices": [],
        "Init": False,  # the runner is process 1 and does its duties
        "IpcMode": "private",
        "LogConfig": _log_config(limits, dialect),
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,  # equal: no swap on top
        "Mounts": [_bind(mount) for mount in in_mount_order(spec.mounts)],
        "NanoCpus": round(limits.cpus * 1_000_000_000),
        "NetworkMode": "none",
        "PidsLimit": limits.pids,
        "Privileged": False,
        "PublishAllPorts": False,
        "ReadonlyRootfs": True,
        "RestartPolicy": {"Name": "no"},
        "SecurityOpt": security(dialect.filters.get(spec.hardening)),
        "ShmSize": min(SHARED_MEMORY_BYTES, limits.memory_bytes),
        "Tmpfs": _tmpfs(spec, profile, dialect, image_volumes),
        "Ulimits": _ulimits(spec, dialect),
    }
    if profile.wants_gvisor and dialect.sandbox_runtime is not None:
        host["Runtime"] = dialect.sandbox_runtime
    if dialect.engine == "podman" and dialect.rootless:
        host["UsernsMode"] = "keep-id"  # what the container writes then belongs to the user who runs the host
    return {
        "AttachStderr": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "Cmd": [],
        "Entrypoint": list(spec.argv),
        "Env": [f"{name}={value}" for name, value in sorted(spec.env.items())],
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
        "Hostname": "hermitcrab",
        "Image": image,
        "Labels": spec.labels,
        "NetworkDisabled": True,
        "OpenStdin": False,
        "StopSignal": "SIGTERM",
        "StopTimeout": 10,
        "Tty": False,
        "User": f"{spec.uid}:{spec.gid}",
        "Volumes": {},
        "WorkingDir": spec.workdir,
    }


def security(system_calls: str | None) -> list[str]:
    """`SecurityOpt` of every container, with a filter as the engine takes one."""
    return ["no-new-privileges", *([] if system_calls is None else [f"seccomp={system_calls}"])]


def in_mount_order(mounts: Iterable[Mount]) -> list[Mount]:
    """Parents before what is mounted inside them, so that nothing is hidden."""
    return sorted(mounts, key=lambda mount: len(PurePosixPath(mount.target).parts))


def mountpoint_in_source(mount: Mount, spec: ContainerSpec) -> str | None:
    """Where on the host the folder or file lies that `mount` covers, when its target is inside another mount.

    The engine would make a missing one there, as root, through a folder that an agent may write.
    """
    target = PurePosixPath(mount.target)
    sources: dict[PurePosixPath, str | None] = {PurePosixPath(each): None for each in spec.tmpfs}
    sources |= {PurePosixPath(each.target): each.source for each in spec.mounts}
    around = [each for each in sources if each in target.parents]
    if not around:
        return None
    nearest = max(around, key=lambda each: len(each.parts))
    source = sources[nearest]
    return None if source is None else str(PurePosixPath(source) / target.relative_to(nearest))


def _bind(mount: Mount) -> dict[str, Any]:
    # `Mounts` refuses a source that is missing; the older `Binds` would make it, as root.
    return {
        "Type": "bind",
        "Source": mount.source,
        "Target": mount.target,
        "ReadOnly": not mount.writable,
        # Not recursive: other mounts below the source would come along, and writable, whatever ReadOnly says.
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
    }


def _tmpfs(spec: ContainerSpec, profile: Profile, dialect: Dialect, image_volumes: Iterable[str]) -> dict[str, str]:
    execute = "exec" if profile.runs_programs_in_memory else "noexec"
    owned = f"rw,{execute},nosuid,nodev,size={spec.limits.tmp_bytes}"
    if dialect.engine == "docker":
        owned += f",mode=0700,uid={spec.uid},gid={spec.gid}"
    else:
        owned += ",mode=0700,notmpcopyup,U"  # U: owned by the container's user; and empty, whatever the image has
    folders = dict.fromkeys(spec.tmpfs, owned)
    taken = {PurePosixPath(mount.target) for mount in spec.mounts} | {PurePosixPath(each) for each in spec.tmpfs}
    closed = list(image_volumes) + (list(_PODMAN_SCRATCH) if dialect.engine == "podman" else [])
    for each in closed:
        if PurePosixPath(each) not in taken:
            folders[each] = "ro,noexec,nosuid,nodev,size=65536,mode=0755"
    return folders


def _ulimits(spec: ContainerSpec, dialect: Dialect) -> list[dict[str, Any]]:
    values = {"nofile": spec.limits.open_files, "fsize": spec.limits.file_bytes, "core": 0}
    if dialect.engine == "podman":
        # Not our limit on processes (that is `PidsLimit`): this one counts all of a user's on the machine.
        values["nproc"] = dialect.processes
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in values.items()]


def _log_config(limits: Limits, dialect: Dialect) -> dict[str, Any]:
    if dialect.engine == "podman":
        return {"Type": "k8s-file", "Config": {"max-size": str(limits.log_bytes)}}
    # With one file, Docker throws the whole log away whenever it is full.
    size = max(limits.log_bytes // limits.log_files, 1)
    return {"Type": "json-file", "Config": {"max-size": str(size), "max-file": str(limits.log_files)}}
