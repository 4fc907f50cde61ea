"""Everything that an agent can read, write, reach and run, told from the very spec that its container is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hermitcrab.logic.hardening import PROFILES, promises
from hermitcrab.logic.mounts import Decision
from hermitcrab.logic.skills import missing
from hermitcrab.logic.workspace import Allowance
from hermitcrab.model.container import Capabilities, ContainerSpec, Mount, MountClass
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.groups import Destination

_WHY = {
    MountClass.WORK: "the agent's own files",
    MountClass.HOST_WRITTEN: "written by the host; in place of what the agent could put there",
    MountClass.LINK: "sockets: the link to the host, and the gateway",
    MountClass.INSTALL_SURFACE: "a part of this installation that runs or is read there",
    MountClass.EXTRA: "asked for in the group's config",
}

NO_IMAGE = "the machine's own, as there is no image"
MEASURED = "measured while it works; what is written between two looks is not held back"


def explain(
    spec: ContainerSpec,
    *,
    decisions: Sequence[Decision],
    capabilities: Capabilities | None,
    config: ContainerConfig,
    allowance: Allowance,
    routes: Mapping[str, str],
    host_programs: Iterable[tuple[str, str]],
    destinations: Iterable[Destination],
    skills: Iterable[str],
) -> dict[str, Any]:
    """As a JSON object.

    `capabilities` None: the engine could not be asked. `routes`: where the gateway leads, by path.
    `host_programs`: what of the host's it sees in place of an image, by where it is inside.
    """
    has = set(skills)
    granted = {each.mount.target: each for each in decisions if each.mount is not None}
    return {
        "runs": {
            "engine": capabilities.engine if capabilities else None,
            "image": spec.image,
            "command": list(spec.argv),
            "workdir": spec.workdir,
            "uid": spec.uid,
            "gid": spec.gid,
            "packages": {kind: list(names) for kind, names in asdict(config.packages).items() if names},
            "skills": sorted(has),
            "missing_skills": list(missing(config.skills, has)),
            "mcp_servers": {
                name: server.url or " ".join((server.command or "", *server.args))
                for name, server in sorted(config.mcp_servers.items())
            },
        },
        "mounts": [
            *(_mount(each, granted.get(each.target)) for each in sorted(spec.mounts, key=lambda each: each.target)),
            *(
                {"container": inside, "host": outside, "mode": "read-only", "class": "host-programs", "why": NO_IMAGE}
                for inside, outside in host_programs
            ),
        ],
        "memory": [{"container": path, "bytes": spec.limits.tmp_bytes} for path in spec.tmpfs],
        "refused_mounts": [
            {
                "host": each.request.path,
                "asked_for": "read-write" if each.request.write else "read-only",
                "reason": each.reason,
                "steps": [asdict(step) for step in each.steps],
            }
            for each in decisions
            if not each.allowed
        ],
        "reaches": {
            "network": "none; the gateway's socket is the only way out",
            "gateway": [{"path": path, "leads_to": upstream} for path, upstream in sorted(routes.items())],
            "destinations": [asdict(each) for each in destinations],
            "host_commands": config.cli_scope,
        },
        "limits": asdict(spec.limits) | {"workspace_bytes": allowance.bytes, "workspace_files": allowance.files},
        "workspace": MEASURED if allowance else "not limited",
        "hardening": {"profile": spec.hardening, **promises(PROFILES[spec.hardening])},
        "unrealized": None if capabilities is None else capabilities.unrealized_for(spec.hardening),
        "environment": sorted(spec.env),
        "spec_hash": spec.spec_hash,
    }


def _target(mount: Mount) -> str:
    return mount.target


def _mount(mount: Mount, decision: Decision | None) -> dict[str, Any]:
    why = _WHY[mount.mount_class]
    if decision is not None:
        why += "".join(f"; {step.saw}" for step in decision.steps if step.rule in {"root", "mode"})
    return {
        "container": mount.target,
        "host": mount.source,
        "mode": "read-write" if mount.writable else "read-only",
        "class": mount.mount_class.value,
        "why": why,
    }
