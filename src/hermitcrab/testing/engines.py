"""Which real engines this machine has for tests, and why not where it has none. `.ci/engines` makes them."""

from __future__ import annotations

import functools
import os
import secrets
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anyio

from hermitcrab.containers.engine import EngineOptions
from hermitcrab.containers.engines.bubblewrap import BubblewrapEngine
from hermitcrab.containers.engines.docker_api import usual_sockets
from hermitcrab.containers.images.desk import default_tag
from hermitcrab.model.container import Finding
from hermitcrab.model.ids import InstallationId


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAvailability:
    socket: str | None = None
    """Path of the API's socket."""
    image: str = ""
    """An image with Python and a shell, made beforehand."""
    why_not: str = ""
    """Why tests cannot use it; empty when they can."""

    @property
    def usable(self) -> bool:
        return not self.why_not


def available_engines() -> dict[str, EngineAvailability]:
    """For each engine of our own: the socket to use where it has one, or the reason why tests cannot use it."""
    return {"bubblewrap": _bubblewrap(), "docker": _availability("docker"), "podman": _availability("podman")}


@functools.cache
def _bubblewrap() -> EngineAvailability:
    """By its own preflight, which ends with a trial of a real sandbox."""
    # Of its own in each process: whoever leaves first tidies the installation's control groups away.
    installation = InstallationId(f"trial-{secrets.token_hex(4)}")
    with tempfile.TemporaryDirectory(prefix="crab-trial-") as folder:
        engine = BubblewrapEngine(EngineOptions(installation=installation, folder=Path(folder) / "engine"))

        async def look() -> list[Finding]:
            try:
                return await engine.preflight()
            finally:
                await engine.aclose()

        faults = [finding.text for finding in anyio.run(look) if finding.level == "error"]
    return EngineAvailability(why_not="; ".join(faults))


def _availability(engine: Literal["docker", "podman"]) -> EngineAvailability:
    told = os.environ.get(f"HERMITCRAB_TEST_{engine.upper()}_SOCKET")
    places = [told] if told else usual_sockets(engine, os.environ)
    image = os.environ.get("HERMITCRAB_TEST_IMAGE") or default_tag()
    for place in places:
        if Path(place).is_socket() and _answers(place):
            return EngineAvailability(socket=place, image=image)
    return EngineAvailability(
        image=image, why_not=f"no {engine} answers on {' or '.join(places)} (sudo bash .ci/engines starts one)"
    )


def _answers(place: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        try:
            connection.connect(place)
        except OSError:
            return False
    return True
