"""What Docker and Podman answer, read into our own words. Foreign JSON in, model values out, nothing asked of anyone.

Fields that are missing or odd never raise: an engine of another version must not take a host down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.call_numbers import CALLS
from hermitcrab.model.container import (
    LABEL_GENERATION,
    LABEL_INSTALLATION,
    LABEL_SESSION,
    LABEL_SPEC_HASH,
    Capabilities,
    ContainerStats,
    ContainerStatus,
    ContainerView,
    ExitRecord,
    Finding,
)
from hermitcrab.model.ids import Generation, SessionId

Json = Mapping[str, Any]

_FAULTS: tuple[tuple[str, Failure, str], ...] = (
    # What an engine says (lower case, anywhere in its message), what that means, and what helps.
    ("no such image", Failure.IMAGE_UNAVAILABLE, ""),
    ("image not known", Failure.IMAGE_UNAVAILABLE, ""),
    ("pull access denied", Failure.IMAGE_UNAVAILABLE, ""),
    ("is already in use", Failure.NAME_IN_USE, ""),
    ("setting rlimit", Failure.RUNTIME_UNAVAILABLE, "Give the engine CAP_SYS_RESOURCE, or raise its own limits."),
    ("executable file not found", Failure.SPEC_INVALID, "The image lacks the program; build the agent image again."),
    ("no such file or directory", Failure.SPEC_INVALID, ""),
    ("bind source path does not exist", Failure.SPEC_INVALID, ""),
    ("invalid mount config", Failure.SPEC_INVALID, ""),
    ("not a directory", Failure.SPEC_INVALID, ""),
    ("no space left on device", Failure.RESOURCES_EXHAUSTED, "The disk is full."),
    ("cannot allocate memory", Failure.RESOURCES_EXHAUSTED, "The machine has no memory left."),
    ("resource temporarily unavailable", Failure.RESOURCES_EXHAUSTED, "The machine has no processes left."),
    ("too many open files", Failure.RESOURCES_EXHAUSTED, "Raise the engine's own limit of open files."),
)
_STATUS_FAULTS = {400: Failure.SPEC_INVALID, 409: Failure.UNKNOWN, 507: Failure.RESOURCES_EXHAUSTED}

_WORDS_AT_MOST = 300
_PODMAN_TELLS_OOM = (5, 0)
"""Older ones look for the record of it where it is not written (containers/podman pull request 21523)."""
_FRAME_HEADER_BYTES = 8


def fault(status: int, message: str, *, doing: str) -> EngineError:
    """The typed error for an engine's answer of 400 and above. `doing` completes "could not ..."."""
    words = " ".join(message.split())[:_WORDS_AT_MOST]
    lowered = message.lower()
    for pattern, failure, hint in _FAULTS:
        if pattern in lowered:
            return EngineError(failure, f"The engine could not {doing}: {words}", hint=hint)
    failure = _STATUS_FAULTS.get(status, Failure.UNKNOWN)
    return EngineError(failure, f"The engine could not {doing} (status {status}): {words}")


def container_is_missing(status: int, message: str) -> bool:
    """Whether the engine says that this container does not exist. Any other 404 (a wrong address) is an error.

    Podman finds a container by its name and then looks it up by its id; one that is removed in between is a 500 to it.
    """
    words = message.lower()
    if status == 500:
        return "does not exist in database: no such container" in words
    return status == 404 and "no such container" in words


def labels_of(answer: Json) -> Json:
    config = answer.get("Config")
    labels = config.get("Labels") if isinstance(config, Mapping) else None
    return labels if isinstance(labels, Mapping) else {}


def name_of(answer: Json) -> str:
    return str(answer.get("Name", "")).removeprefix("/")


def installation_of(answer: Json) -> str | None:
    value = labels_of(answer).get(LABEL_INSTALLATION)
    return value if isinstance(value, str) else None


def volumes_of(answer: Json) -> tuple[str, ...]:
    """Folders that an image wants to have as volumes, from the answer of `GET /images/NAME/json`."""
    return tuple(str(each) for each in _part(_part(answer, "Config"), "Volumes"))


def view(answer: Json) -> ContainerView:
    """A container from the answer of `GET /containers/ID/json`."""
    labels = labels_of(answer)
    state = answer.get("State")
    state = state if isinstance(state, Mapping) else {}
    status = _status(state)
    pid = _integer(state.get("Pid"))
    generation = str(labels.get(LABEL_GENERATION, ""))
    return ContainerView(
        name=name_of(answer),
        id=str(answer.get("Id", "")),
        session=SessionId(str(labels.get(LABEL_SESSION, ""))),
        generation=Generation(int(generation) if generation.isdecimal() else 0),
        spec_hash=str(labels.get(LABEL_SPEC_HASH, "")),
        status=status,
        pid=pid if pid and status in {ContainerStatus.RUNNING, ContainerStatus.FROZEN} else None,
        exit=_exit_record(state) if status is ContainerStatus.EXITED else None,
        created_at=str(answer["Created"]) if answer.get("Created") else None,
    )


def _status(state: Json) -> ContainerStatus:
    if state.get("Paused") is True:
        return ContainerStatus.FROZEN
    if state.get("Running") is True or state.get("Status") in {"running", "stopping", "restarting"}:
        return ContainerStatus.RUNNING
    if state.get("Status") in {"created", "configured", "initialized"}:
        return ContainerStatus.CREATED
    return ContainerStatus.EXITED


def _exit_record(state: Json) -> ExitRecord:
    finished = state.get("FinishedAt")
    known = isinstance(finished, str) and not finished.startswith("0001-")
    code = _integer(state.get("ExitCode"))
    return ExitRecord(
        # A container that was lost (a restart of the machine) has a code of nought or less but never finished.
        exit_code=code if known and code is not None and code >= 0 else None,
        oom_killed=state.get("OOMKilled") is True,
        finished_at=str(finished) if known else None,
    )


def stats(answer: Json) -> ContainerStats:
    """From the answer of `GET /containers/ID/stats`. What the kernel could drop at once is not counted as used."""
    memory = _part(answer, "memory_stats")
    usage = _integer(memory.get("usage"))
    details = _part(memory, "stats")
    inactive = _integer(details.get("inactive_file")) or _integer(details.get("total_inactive_file")) or 0
    nanoseconds = _integer(_part(_part(answer, "cpu_stats"), "cpu_usage").get("total_usage"))
    return ContainerStats(
        memory_bytes=max(usage - inactive, 0) if usage else None,
        cpu_s=nanoseconds / 1e9 if nanoseconds is not None else None,
        pids=_integer(_part(answer, "pids_stats").get("current")) or None,
    )


def log_lines(content: bytes, lines: int) -> list[str]:
    """The last lines of a log: frames of (stream, length, bytes), a line of one stream never mixed with the other's."""
    told: list[bytes] = []
    unfinished: dict[int, bytes] = {}
    position = 0
    while position + _FRAME_HEADER_BYTES <= len(content):
        stream = content[position]
        length = int.from_bytes(content[position + 4 : position + _FRAME_HEADER_BYTES], "big")
        position += _FRAME_HEADER_BYTES
        *whole, rest = (unfinished.get(stream, b"") + content[position : position + length]).split(b"\n")
        told += whole
        unfinished[stream] = rest
        position += length
    told += [rest for rest in unfinished.values() if rest]
    return [line.decode(errors="replace").rstrip("\r") for line in told[-lines:]] if lines > 0 else []


def whole_log_lines(content: bytes) -> tuple[list[str], bytes]:
    """The lines of the frames that are whole, and what is left for when more has come."""
    position = 0
    while position + _FRAME_HEADER_BYTES <= len(content):
        length = int.from_bytes(content[position + 4 : position + _FRAME_HEADER_BYTES], "big")
        if position + _FRAME_HEADER_BYTES + length > len(content):
            break
        position += _FRAME_HEADER_BYTES + length
    return log_lines(content[:position], position), content[position:]


def is_rootless(info: Json) -> bool:
    return info.get("Rootless") is True or any("name=rootless" in each for each in _options(info))


def machine(info: Json) -> str:
    """The machine that the engine runs on, as `uname -m` calls it. Podman says `amd64` for `x86_64`."""
    said = str(info.get("Architecture", ""))
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(said, said)


def no_filter(info: Json) -> str | None:
    """Why the engine cannot be given a filter of system calls of ours. None: it can."""
    options = [each for each in _options(info) if "name=seccomp" in each]
    if not options:
        return "the engine runs without seccomp"
    if machine(info) in CALLS:
        return None
    own = "it runs without its own" if any("unconfined" in each for each in options) else "its own is in force"
    return f"there is no filter for the engine's machine {machine(info) or '(which it does not tell)'}; {own}"


def runtime_paths(info: Json) -> dict[str, str]:
    """The engine's runtimes by name. Podman also lists ones that are not installed: look at the path."""
    runtimes = _part(info, "Runtimes")
    return {name: str(_part(runtimes, name).get("path", "")) for name in runtimes}


def capabilities(
    engine: Literal["docker", "podman"], info: Json, *, strict: Mapping[str, str] | None = None
) -> Capabilities:
    """What the engine's own `info` says that it cannot keep of a spec. `strict`: of hardening `strict`, on top."""
    unrealized: dict[str, str] = {}
    version = str(info.get("ServerVersion", ""))
    for key, promise in (("MemoryLimit", "memory"), ("PidsLimit", "pids"), ("CpuCfsQuota", "cpus")):
        if info.get(key) is False:
            unrealized[promise] = f"the engine has no {promise} control group here"
    if "memory" not in unrealized and info.get("SwapLimit") is False:
        unrealized["memory"] = "memory is limited, but not what is swapped out"
    if (why := no_filter(info)) is not None:
        unrealized["seccomp"] = why
    if is_rootless(info) and str(info.get("CgroupVersion", "")) == "1":
        for promise in ("memory", "pids", "cpus", "freeze"):
            unrealized[promise] = "a rootless engine cannot use control groups of version 1"
    if engine == "podman" and is_rootless(info):
        for promise in ("open-files", "file-size"):
            unrealized[promise] = "rootless Podman passes no such limit on; default_ulimits in containers.conf holds"
    if engine == "podman" and dotted(version) < _PODMAN_TELLS_OOM:
        unrealized["oom-report"] = "Podman before 5.0 does not tell a lack of memory from a kill (exit code 137)"
    return Capabilities(engine=engine, version=version, unrealized=unrealized, strict_unrealized=dict(strict or {}))


def dotted(version: str) -> tuple[int, ...]:
    """`1.41` as (1, 41); what is no number ends it."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def runc_version(version: Json) -> tuple[int, int, int] | None:
    """The version of runc that the engine's `version` reports, if it uses runc."""
    components = version.get("Components")
    for component in components if isinstance(components, list) else []:
        if isinstance(component, Mapping) and "runc" in str(component.get("Name", "")).lower():
            found = re.search(r"(\d+)\.(\d+)\.(\d+)", str(component.get("Version", "")))
            if found is not None:
                return int(found[1]), int(found[2]), int(found[3])
    return None


def runc_finding(found: tuple[int, int, int] | None) -> Finding | None:
    """What is known against this runc. A warning, for distributions mend old versions without a new number."""
    if found is None:
        return None
    words = ".".join(str(part) for part in found)
    flaws = []
    if found < (1, 1, 12):
        flaws.append("CVE-2024-21626")
    if found < (1, 2, 8) or (1, 3, 0) <= found < (1, 3, 3):
        flaws.append("CVE-2025-31133, CVE-2025-52565, CVE-2025-52881")
    if not flaws:
        return Finding(subject="runc", level="ok", text=f"runc {words}")
    return Finding(
        subject="runc",
        level="warning",
        text=f"runc {words} is older than the fixes of {', '.join(flaws)} (container escapes)",
        fix="Update runc to 1.2.8, 1.3.3 or newer, or look up whether your distribution's package has the fixes.",
    )


def _options(info: Json) -> list[str]:
    options = info.get("SecurityOptions")
    return [str(each) for each in options] if isinstance(options, list) else []


def _part(answer: Json, key: str) -> Json:
    value = answer.get(key)
    return value if isinstance(value, Mapping) else {}


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
