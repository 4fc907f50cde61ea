"""Whether a container that says hello may be given messages: it can write wherever it was promised that it can."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import ContainerSpec, Mount, MountClass

_FULL = frozenset({"ENOSPC", "EDQUOT"})


def writable_places(mounts: Collection[Mount], tmpfs: Collection[str]) -> tuple[str, ...]:
    """Where a container must prove that it can write, by path inside."""
    return (*(mount.target for mount in mounts if mount.writable), *tmpfs)


def unproven(spec: ContainerSpec, writable: Collection[str], errors: Mapping[str, str]) -> EngineError | None:
    """What is wrong when the container has not proven that it can write everywhere; None when it has.

    `writable` and `errors` (the error's name by path) are its runner's own words, spoken before any agent's.
    """
    for place in writable_places(spec.mounts, spec.tmpfs):
        if place not in writable:
            return _refusal(spec, place, errors.get(place, "not tried"))
    return None


def _refusal(spec: ContainerSpec, place: str, error: str) -> EngineError:
    mount = next((each for each in spec.mounts if each.target == place), None)
    failure = Failure.RESOURCES_EXHAUSTED if error in _FULL else Failure.SPEC_INVALID
    if mount is None:
        return EngineError(failure, f"its container cannot write to {place} in memory ({error}); raise its limits")
    return EngineError(
        failure,
        f"its container cannot write to {place} ({error}), which is {mount.source} on the host; "
        f"{_fix(spec, mount, error)}",
    )


def _fix(spec: ContainerSpec, mount: Mount, error: str) -> str:
    instead = ", or make the mount read-only" if mount.mount_class is MountClass.EXTRA else ""
    match error:
        case "EACCES" | "EPERM":
            return f"let the container's user write there: chown {spec.uid}:{spec.gid} {mount.source}{instead}"
        case "EROFS":
            return f"its file system is mounted read-only there: mount it read-write{instead}"
        case _ if error in _FULL:
            return "its disk is full: make room"
        case _:
            return f"look whether that is there and in order{instead}"
