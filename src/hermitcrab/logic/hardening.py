"""The hardening profiles: what each of them means, in one table.

What both have needs no table: no capability, no new privileges, no network, a read-only root, a user that is not the
superuser, a system-call filter, and limits on everything. The engines, `crab doctor` and `crab explain` read from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from hermitcrab.logic import system_calls
from hermitcrab.model.container import Capabilities, Finding, Hardening, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    name: Hardening
    runs_programs_in_memory: bool
    """Whether programs may be run from the folders in memory (/tmp, the home folder)."""
    debuggers_work: bool
    """Whether a process may look into another one of the same container, and use the kernel's older message queues."""
    extra_mounts_are_writable: bool
    """Whether an additional mount may be read-write where the allow-list lets it."""
    wants_gvisor: bool
    """Whether gVisor's kernel stands between the container and the machine's, where the engine has it."""
    limits_at_most: Mapping[str, float]
    """By name in `Limits`: no container of this profile gets more, whatever was set."""

    def bounded(self, limits: Limits) -> Limits:
        """These limits, none of them above the profile's own."""
        return replace(
            limits,
            pids=int(min(limits.pids, self.limits_at_most.get("pids", limits.pids))),
            cpus=float(min(limits.cpus, self.limits_at_most.get("cpus", limits.cpus))),
            open_files=int(min(limits.open_files, self.limits_at_most.get("open_files", limits.open_files))),
            tmp_bytes=int(min(limits.tmp_bytes, self.limits_at_most.get("tmp_bytes", limits.tmp_bytes))),
            log_bytes=int(min(limits.log_bytes, self.limits_at_most.get("log_bytes", limits.log_bytes))),
        )


PROFILES: Mapping[Hardening, Profile] = MappingProxyType(
    {
        "standard": Profile(
            name="standard",
            runs_programs_in_memory=True,
            debuggers_work=True,
            extra_mounts_are_writable=True,
            wants_gvisor=False,
            limits_at_most=MappingProxyType({}),
        ),
        "strict": Profile(
            name="strict",
            runs_programs_in_memory=False,
            debuggers_work=False,
            extra_mounts_are_writable=False,
            wants_gvisor=True,
            limits_at_most=MappingProxyType(
                {"pids": 128, "cpus": 1.0, "open_files": 1024, "tmp_bytes": 64 << 20, "log_bytes": 1 << 20}
            ),
        ),
    }
)

NOEXEC, GVISOR = "noexec-tmp", "gvisor"
"""Promises of `strict` that an engine may not be able to keep; keys of `Capabilities.strict_unrealized`."""


def findings(capabilities: Capabilities) -> list[Finding]:
    """One line of `crab doctor` for each profile: what it means, and what of it this engine does not keep here."""
    found = []
    for name, profile in PROFILES.items():
        lacking = [*capabilities.unrealized_for(name)]
        kept = f"; not kept here: {', '.join(lacking)}" if lacking else ""
        means = "; ".join(f"{subject}: {words}" for subject, words in promises(profile).items())
        found.append(Finding(subject=f"hardening {name}", level="ok", text=f"{means}{kept}"))
    return found


def promises(profile: Profile) -> dict[str, str]:
    """What the profile means, by subject, in words for people."""
    limits = ", ".join(_limit(name, value) for name, value in profile.limits_at_most.items())
    return {
        "system calls": f"{len(system_calls.allowed(profile.name))} by name and no others, the same on every engine",
        "programs in memory": "run" if profile.runs_programs_in_memory else "do not run",
        "debuggers and old message queues": "work" if profile.debuggers_work else "are refused",
        "additional mounts": "as the allow-list says" if profile.extra_mounts_are_writable else "are read-only",
        "kernel": "gVisor's where the engine has it" if profile.wants_gvisor else "the machine's",
        "limits": f"at most {limits}" if limits else "as set",
    }


def _limit(name: str, value: float) -> str:
    match name:
        case "tmp_bytes" | "log_bytes":
            return f"{value / (1 << 20):g} MiB of {name.removesuffix('_bytes')}"
        case "cpus":
            return f"{value:g} CPUs"
        case "pids":
            return f"{value:g} processes"
        case _:
            return f"{value:g} {name.replace('_', ' ')}"
