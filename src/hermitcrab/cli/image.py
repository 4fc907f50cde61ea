"""`crab image build`: the image that Docker's and Podman's containers are made from."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from hermitcrab.cli.output import GivenHome, Json, print_json
from hermitcrab.containers.engines.docker_api import usual_sockets
from hermitcrab.containers.images import build_agent_image, default_tag
from hermitcrab.errors import EngineError, Failure
from hermitcrab.settings.load import load


async def build(
    *,
    engine: Annotated[Literal["docker", "podman"], Parameter(help="docker or podman.")] = "docker",
    base: Annotated[str | None, Parameter(help="The image to start from (default: an official slim Python).")] = None,
    tag: Annotated[str | None, Parameter(help="The image's name (default: the one that containers use).")] = None,
    json: Json = False,
    home: GivenHome,
) -> None:
    """Build the agent image. The build's log goes to stderr; the build itself has no network."""
    containers = load(home.path, {}).containers
    told = containers.docker_socket if engine == "docker" else containers.podman_socket
    places = [told] if told else usual_sockets(engine, os.environ)
    socket = _first_socket(places)
    if socket is None:
        raise EngineError(
            Failure.RUNTIME_UNAVAILABLE,
            f"No {engine} answers on {' or '.join(places)}.",
            hint=f"Start it, or name its socket in containers.{engine}_socket. crab doctor says more.",
        )
    name = tag or default_tag()
    image = await build_agent_image(
        socket, base=base, tag=name, progress=lambda line: print(line, file=sys.stderr), engine=engine
    )
    if json:
        print_json({"image": name, "id": image, "engine": engine})
    else:
        print(f"{name} is ready ({image}).")


def _first_socket(places: list[str]) -> str | None:
    return next((place for place in places if Path(place).is_socket()), None)
