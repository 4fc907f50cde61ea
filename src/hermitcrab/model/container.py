"""What an engine is told to make, and what it says of what it made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

from hermitcrab.model.ids import Generation, InstallationId, SessionId

Hardening = Literal["standard", "strict"]
"""The hardening profiles; `logic/hardening.py` says what each of them means."""

LABEL_INSTALLATION = "hermitcrab.installation"
LABEL_SESSION = "hermitcrab.session"
LABEL_GENERATION = "hermitcrab.generation"
LABEL_SPEC_HASH = "hermitcrab.spec-hash"


class MountClass(StrEnum):
    """Why a path is visible to a container; the class decides what else must hold for it."""

    WORK = "work"
    """The session's or the group's own read-write folders."""
    HOST_WRITTEN = "host-written"
    """Materials that only the host writes; always read-only."""
    LINK = "link"
    """The folder with the session's sockets; always read-only."""
    INSTALL_SURFACE = "install-surface"
    """Runner, skills, interpreter; always read-only."""
    EXTRA = "extra"
    """Allow-listed by the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    source: str
    """Absolute path on the host, free of symbolic links."""
    target: str
    """Absolute path in the container."""
    writable: bool = False
    mount_class: MountClass = MountClass.HOST_WRITTEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one container may use. None of them is ever absent; an engine that cannot keep one says `unrealized`."""

    memory_bytes: int = 1024 * 1024 * 1024
    pids: int = 256
    cpus: float = 1.0
    open_files: int = 4096
    file_bytes: int = 8 * 1024 * 1024 * 1024
    """No file may be made larger, wherever it lies."""
    tmp_bytes: int = 256 * 1024 * 1024
    log_bytes: int = 4 * 1024 * 1024
    """In all files together."""
    log_files: int = 2
    """Docker's log goes round in so many files. Podman and bubblewrap keep one, of the same size in all."""


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """Everything that makes a container what it is. Engines add nothing to it and leave nothing out unsaid."""

    name: str
    """Deterministic for the session, so that the engine itself refuses a duplicate."""
    installation: InstallationId
    session: SessionId
    generation: Generation
    image: str | None
    """None: the host's own /usr, read-only (bubblewrap)."""
    argv: tuple[str, ...]
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    limits: Limits = field(default_factory=Limits)
    uid: int
    """Host uid that owns what the container writes; also the uid in the container, except under bubblewrap as an
    ordinary user, where it appears as 1000."""
    gid: int
    workdir: str = "/workspace/agent"
    tmpfs: tuple[str, ...] = ("/tmp", "/home/agent")  # noqa: S108  # paths in the container
    """Empty writable folders in memory, each at most `limits.tmp_bytes`, owned by the container's user."""
    hardening: Hardening = "standard"
    system_calls: str = ""
    """Which filter of system calls: another one after an update is another container."""

    @cached_property
    def spec_hash(self) -> str:
        """12 hex digits that change when anything but the generation changes."""
        values = _values_of(self)
        del values["generation"]
        values |= {
            "env": dict(self.env),
            "limits": _values_of(self.limits),
            "mounts": [_values_of(mount) for mount in self.mounts],
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def labels(self) -> dict[str, str]:
        return {
            LABEL_INSTALLATION: self.installation,
            LABEL_SESSION: self.session,
            LABEL_GENERATION: str(self.generation),
            LABEL_SPEC_HASH: self.spec_hash,
        }


def _values_of(of: ContainerSpec | Mount | Limits) -> dict[str, Any]:
    """Its fields by name. Not `asdict`, which copies every value: a host that comes back hashes hundreds of specs."""
    return {name: getattr(of, name) for name in of.__dataclass_fields__}


class ContainerStatus(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    FROZEN = "frozen"
    EXITED = "exited"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """How a container's main process ended, as the engine tells it."""

    exit_code: int | None
    """None: the engine lost it (for one, the machine was restarted). 128+N: ended by signal N."""
    oom_killed: bool = False
    finished_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    """One container as its engine sees it now. Only ones with our installation's label are ever shown."""

    name: str
    id: str
    session: SessionId
    generation: Generation
    spec_hash: str
    status: ContainerStatus
    pid: int | None = None
    """Of the main process, on the host; None when it does not run."""
    exit: ExitRecord | None = None
    created_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStats:
    memory_bytes: int | None
    cpu_s: float | None
    pids: int | None


PROMISES = frozenset(
    {
        *(
            "memory",
            "pids",
            "cpus",
            "open-files",
            "file-size",
            "tmp-size",
            "log-size",
            "freeze",
            "seccomp",
            "read-only-root",
        ),
        *("network-none", "oom-report"),
    }
)
"""What every engine keeps of every spec, or says that it does not."""

STRICT_PROMISES = frozenset({"noexec-tmp", "gvisor"})
"""What hardening `strict` adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can do on this machine. `unrealized` maps a promise of the spec to why it is not kept."""

    engine: str
    version: str
    unrealized: Mapping[str, str] = field(default_factory=dict)
    """Keys are of `PROMISES`."""
    strict_unrealized: Mapping[str, str] = field(default_factory=dict)
    """What hardening `strict` promises on top, and this engine does not keep here. Keys are of `STRICT_PROMISES`."""

    def unrealized_for(self, hardening: Hardening) -> dict[str, str]:
        """Everything that a container with that hardening is not given here."""
        return {**self.unrealized, **(self.strict_unrealized if hardening == "strict" else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of `crab doctor`."""

    subject: str
    level: Literal["ok", "warning", "error"]
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEvent:
    """A hint that something changed; whoever gets it asks the engine for the truth."""

    kind: Literal["ended", "resync"]
    """`ended`: that container's main process ended. `resync`: events may have been missed, list everything."""
    name: str | None = None
