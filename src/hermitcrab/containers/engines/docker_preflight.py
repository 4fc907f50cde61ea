"""What must hold before Docker or Podman can be used, each thing with its fix. Used by the Docker engine."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from pathlib import Path

import anyio
import anyio.to_thread

from hermitcrab.containers.engines.docker_api import EngineApi
from hermitcrab.errors import EngineError
from hermitcrab.logic import docker_answers, preconditions
from hermitcrab.model.container import Finding

OLDEST_API = (1, 41)
"""Of Docker 20.10 and Podman 4: one-shot statistics, private control-group namespaces."""

_FIXES = {
    "memory": "Boot with control groups of version 2, and delegate cpu, memory and pids to the engine's user.",
    "seccomp": "Run an engine that was built with seccomp, on x86_64 or aarch64.",
    "open-files": 'Set default_ulimits = ["nofile=4096:4096"] in containers.conf.',
    "file-size": 'Set default_ulimits = ["fsize=8589934592:8589934592"] in containers.conf.',
    "oom-report": "Update Podman to 5.0 or newer.",
}


async def preflight(api: EngineApi) -> list[Finding]:
    findings = [*_socket_findings(api), *await anyio.to_thread.run_sync(_rootless_findings, api.engine)]
    try:
        version = await api.request("GET", "/version", doing="say its version")
        info = await api.request("GET", "/info", doing="describe itself")
    except EngineError as error:
        return [*findings, Finding(subject=api.engine, level="error", text=error.message, fix=error.hint)]
    version, info = version or {}, info or {}
    spoken = str(version.get("ApiVersion", ""))
    findings.append(
        Finding(
            subject=api.engine, level="ok", text=f"{api.engine} {version.get('Version', '?')} answers on {api.socket}"
        )
        if docker_answers.dotted(spoken) >= OLDEST_API
        else Finding(
            subject=api.engine,
            level="error",
            text=f"{api.engine} speaks only version {spoken or '?'} of the API",
            fix="Docker 20.10 or Podman 4.0 is the oldest that serves.",
        )
    )
    runc = docker_answers.runc_finding(docker_answers.runc_version(version))
    if runc is not None:
        findings.append(runc)
    findings += [
        Finding(
            subject=f"{api.engine} {promise}",
            level="warning",
            text=f"{promise} is not kept: {reason}",
            fix=_FIXES.get(promise, _FIXES["memory"]),
        )
        for promise, reason in docker_answers.capabilities(api.engine, info).unrealized.items()
    ]
    return findings


def _rootless_findings(engine: str) -> list[Finding]:
    """An ordinary user's own Podman needs ids to give to containers; a machine-wide engine has its own."""
    if engine != "podman" or os.geteuid() == 0:
        return []
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    return [
        preconditions.rootless(
            user,
            os.geteuid(),
            subuid=_text("/etc/subuid"),
            subgid=_text("/etc/subgid"),
            programs=all(shutil.which(name) for name in ("newuidmap", "newgidmap")),
        )
    ]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _socket_findings(api: EngineApi) -> list[Finding]:
    try:
        mode = Path(api.socket).stat().st_mode
    except OSError:
        return []  # the first request says it better
    if mode & stat.S_IWOTH:
        return [
            Finding(
                subject=f"{api.engine} socket",
                level="error",
                text=f"Everybody on this machine can use {api.socket}, and so become root",
                fix=f"chmod o-rwx {api.socket}",
            )
        ]
    return []
