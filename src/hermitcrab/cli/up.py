"""`crab up`: its options. Without any, `main` runs the host at once and this module is not loaded."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from hermitcrab.cli.hosting import run_host
from hermitcrab.cli.output import GivenHome


async def up(
    *,
    engine: Annotated[str | None, Parameter(help="bubblewrap, docker or podman (containers.engine).")] = None,
    provider: Annotated[str | None, Parameter(help="claude or echo (agents.provider).")] = None,
    keep_containers: Annotated[
        bool, Parameter(negative="", help="Leave containers running at the end; the next host adopts them.")
    ] = False,
    home: GivenHome,
) -> int:
    """Run the host in the foreground until it gets SIGTERM or SIGINT. A second signal ends it at once."""
    return await run_host(home, engine=engine, provider=provider, keep_containers=keep_containers)
