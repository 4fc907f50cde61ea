"""Our filters of system calls as Docker and Podman take them. Used by the engine and by whoever makes images."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hermitcrab.containers.engines.docker_api import EngineName
from hermitcrab.logic import docker_answers, seccomp_profile, system_calls
from hermitcrab.logic.hardening import PROFILES
from hermitcrab.model.container import Hardening


def filters(engine: EngineName, info: Mapping[str, Any], folder: Path) -> dict[Hardening, str]:
    """The filter of each profile as the engine takes it: Docker its text, Podman the path of a file, made in `folder`.

    `info` is what the engine says of itself. Empty where it takes no filter, or there is none for its machine.
    """
    if docker_answers.no_filter(info) is not None:
        return {}
    found: dict[Hardening, str] = {}
    for name in PROFILES:
        text = json.dumps(seccomp_profile.profile(docker_answers.machine(info), name), separators=(",", ":"))
        found[name] = text if engine == "docker" else str(_file(folder, name, text))
    return found


def _file(folder: Path, name: Hardening, text: str) -> Path:
    file = folder / f"seccomp-{name}-{system_calls.fingerprint(name)}.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, new = tempfile.mkstemp(dir=folder)
        with os.fdopen(descriptor, "w") as made:
            made.write(text)
        Path(new).rename(file)  # whole, whoever else makes it now
    return file
