"""Who has the say where a session, its agent group and the installation may each name something."""

from __future__ import annotations

from dataclasses import replace

from hermitcrab.logic.workspace import MEBIBYTE, Allowance
from hermitcrab.model.container import Limits
from hermitcrab.model.container_config import GroupLimits


def provider_name(session: str | None, group: str | None, installation: str) -> str:
    """The session's before the group's before the installation's, in lower case. Empty counts as not said."""
    return (session or group or installation).lower()


def limits(group: GroupLimits, installation: Limits) -> Limits:
    """What the group's config says, and the installation's for the rest."""
    return replace(
        installation,
        memory_bytes=installation.memory_bytes if group.memory_mb is None else group.memory_mb * 1024 * 1024,
        pids=installation.pids if group.pids is None else group.pids,
        cpus=installation.cpus if group.cpus is None else group.cpus,
        file_bytes=installation.file_bytes if not group.workspace_mb else group.workspace_mb * MEBIBYTE,
    )


def allowance(group: GroupLimits, installation: Allowance) -> Allowance:
    """What each session of the group may keep on disk."""
    return Allowance(
        bytes=installation.bytes if group.workspace_mb is None else group.workspace_mb * MEBIBYTE,
        files=installation.files if group.workspace_files is None else group.workspace_files,
    )
