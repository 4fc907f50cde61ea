"""Which real engines this machine has for tests, and why not where it has none. `.ci/engines` makes them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hermitcrab.containers.engines.docker_api import usual_sockets
from hermitcrab.containers.images import default_tag


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
    """`docker` and `podman`: the socket to use, or the reason why there is none."""
    return {"docker": _availability("docker"), "podman": _availability("podman")}


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
