"""`crab bench`: the benchmarks of the `bench/` folder, each on a scratch home of its own."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from hermitcrab.cli.output import Json, print_fields, print_json

Engine = Annotated[str, Parameter(help="bubblewrap, docker or podman.")]


async def roundtrip(
    *, engine: Engine = "bubblewrap", messages: int = 300, sessions: int = 1, json: Json = False
) -> None:
    """From a message on disk to the channel called with the answer, on a live link, with the echo provider."""
    from hermitcrab_bench import roundtrip as benchmark  # noqa: PLC0415

    _configure_logs()
    _show(await benchmark.run(engine=engine, messages=messages, sessions=sessions), json=json)


async def wake(*, engine: Engine = "bubblewrap", runs: int = 15, json: Json = False) -> None:
    """From a message to the runner's hello, cold, interleaved with the engine's own create and start."""
    from hermitcrab_bench import wake as benchmark  # noqa: PLC0415

    _configure_logs()
    _show(await benchmark.run(engine=engine, runs=runs), json=json)


async def idle(*, engine: Engine = "bubblewrap", sessions: int = 1000, json: Json = False) -> None:
    """What idle sessions cost a real host process: CPU, and memory over an empty one."""
    from hermitcrab_bench import idle as benchmark  # noqa: PLC0415

    _configure_logs()
    _show(await benchmark.run(engine=engine, sessions=sessions), json=json)


def _configure_logs() -> None:
    from hermitcrab.observe.logs import configure_logs  # noqa: PLC0415

    configure_logs(level="warning")


def _show(result: dict[str, Any], *, json: bool) -> None:
    if json:
        print_json(result)
    else:
        print_fields(list(result.items()))
