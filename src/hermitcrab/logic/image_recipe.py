"""What makes an image what it is, and what an engine is told to make it: pure.

An image is a container that ran the installer on its parent and was kept. No build file is ever written, so that
nothing in a name can become an instruction, nothing of the parent (ONBUILD, ENTRYPOINT, WORKDIR) takes part in the
build, and a build has the limits that every container has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hermitcrab.logic.docker_body import security
from hermitcrab.logic.image_packages import PackageList

LABEL_KIND = "hermitcrab.image"
LABEL_RECIPE = "hermitcrab.recipe"
LABEL_PARENT = "hermitcrab.parent"
LABEL_OWNER = "hermitcrab.image-owner"
"""The home whose agent group an image was made for, or that a build belongs to."""
LABEL_BUILD = "hermitcrab.build"
"""On the container of a build: its recipe. Without the installation's label: the host would take it for a session's."""

CONTEXT = "/mnt"
"""Where the installer finds what it installs: a folder that every Debian has and no package uses."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID"]
"""What dpkg needs to unpack files of other users and to make such users. Nothing of these reaches an agent."""

Kind = Literal["agent", "group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildLimits:
    """Bounds of one build. Crossing one ends it."""

    seconds: float = 900.0
    memory_bytes: int = 2 * 1024**3
    disk_bytes: int = 6 * 1024**3
    """What the build may add to its parent."""
    pids: int = 1024
    cpus: float = 2.0
    log_bytes: int = 8 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The same recipe makes the same image, so that one that is there already is not made again."""

    kind: Kind
    parent: str
    """Id of the image to start from: a tag may mean another image tomorrow."""
    packages: PackageList = PackageList()
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file that the host puts in (wheels, the runner's source) by its name."""
    installer: str
    """SHA-256 of the program that installs."""

    @property
    def digest(self) -> str:
        """16 hex digits that change with anything that could change the image."""
        told = [self.kind, self.parent, self.packages.texts, dict(sorted(self.files.items())), self.installer]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def labels(recipe: Recipe, *, owner: str) -> dict[str, str]:
    return {
        LABEL_KIND: recipe.kind,
        LABEL_RECIPE: recipe.digest,
        LABEL_PARENT: recipe.parent,
        LABEL_OWNER: owner,
    }


def build_name(recipe: Recipe, *, owner: str) -> str:
    """The one name that a build can have: two of the same never run at once."""
    return f"{build_prefix(owner)}{recipe.digest}"


def build_prefix(owner: str) -> str:
    """How the names of a home's builds begin, and of nothing else."""
    return f"crab-build-{owner[:12]}-"


def export_name(owner: str) -> str:
    """Of the container that an image is read from: a home reads one at a time."""
    return f"crab-export-{owner[:12]}"


def build_body(
    recipe: Recipe,
    *,
    context: str,
    owner: str,
    limits: BuildLimits,
    processes: int,
    engine: Literal["docker", "podman"],
    system_calls: str | None,
) -> dict[str, Any]:
    """The body of `POST /containers/create` for the container that becomes the image.

    `system_calls`: the filter of an agent's container, as the engine takes one.
    """
    ulimits = {"core": 0, "nofile": 4096, "fsize": limits.disk_bytes}
    if engine == "podman":
        ulimits["nproc"] = processes  # it asks for more than the machine may give, unless it is told
    return {
        "Image": recipe.parent,
        "Entrypoint": ["/bin/sh", f"{CONTEXT}/install.sh"],
        "Cmd": [],
        "Env": [f"PATH={_PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"],
        "User": "0:0",
        "WorkingDir": "/",
        "Hostname": "build",
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {LABEL_BUILD: recipe.digest, LABEL_OWNER: owner},
        "NetworkDisabled": True,
        "Volumes": {},
        "HostConfig": {
            "AutoRemove": False,
            "CapDrop": ["ALL"],
            "CapAdd": _CAPABILITIES,
            "CgroupnsMode": "private",
            "IpcMode": "private",
            "LogConfig": _log_config(limits.log_bytes, engine),
            "Memory": limits.memory_bytes,
            "MemorySwap": limits.memory_bytes,
            "Mounts": [
                {
                    "Type": "bind",
                    "Source": context,
                    "Target": CONTEXT,
                    "ReadOnly": True,
                    "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
                }
            ],
            "NanoCpus": round(limits.cpus * 1_000_000_000),
            "NetworkMode": "none",
            "PidsLimit": limits.pids,
            "Privileged": False,
            "RestartPolicy": {"Name": "no"},
            "SecurityOpt": security(system_calls),
            "Ulimits": [{"Name": name, "Soft": value, "Hard": value} for name, value in ulimits.items()],
        },
    }


def commit_changes(recipe: Recipe, *, owner: str) -> list[str]:
    """What the kept image says of itself: nothing of its parent's orders. The values are ours, never a stranger's."""
    told = [f'LABEL {name}="{value}"' for name, value in labels(recipe, owner=owner).items()]
    return [
        *told,
        "USER 1000:1000",
        "WORKDIR /workspace",
        'ENTRYPOINT ["/usr/bin/env"]',
        'CMD ["python3", "--version"]',
        f"ENV PATH={_PATH}",
    ]


def _log_config(log_bytes: int, engine: Literal["docker", "podman"]) -> dict[str, Any]:
    if engine == "podman":
        return {"Type": "k8s-file", "Config": {"max-size": str(log_bytes)}}
    return {"Type": "json-file", "Config": {"max-size": str(log_bytes // 2), "max-file": "2"}}
