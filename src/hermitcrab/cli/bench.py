"""`crab bench`: the benchmarks of the `bench/` folder, each on a scratch home of its own."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter, validators

from hermitcrab.cli.output import Json, print_fields, print_json

Engine = Annotated[str, Parameter(help="bubblewrap, docker or podman.")]

_COUNTED = validators.Number(gte=1, lte=100_000_000)
Messages = Annotated[int, Parameter(help="How many messages are timed.", validator=_COUNTED)]
Sessions = Annotated[int, Parameter(help="How many sessions there are.", validator=_COUNTED)]
MessagesEach = Annotated[int, Parameter(help="How many messages each session gets.", validator=_COUNTED)]
Runs = Annotated[int, Parameter(help="How often it is done.", validator=_COUNTED)]
Count = Annotated[int, Parameter(validator=_COUNTED)]


async def roundtrip(
    *, engine: Engine = "bubblewrap", messages: Messages = 300, sessions: Sessions = 1, json: Json = False
) -> None:
    """From a message on disk to the channel called with the answer, on a live link, with the echo provider."""
    from hermitcrab_bench import roundtrip as benchmark  # noqa: PLC0415

    _become_a_host()
    _show(await benchmark.run(engine=engine, messages=messages, sessions=sessions), json=json)


async def wake(*, engine: Engine = "bubblewrap", runs: Runs = 15, json: Json = False) -> None:
    """From a message to the runner's hello, cold, interleaved with the engine's own create and start."""
    from hermitcrab_bench import wake as benchmark  # noqa: PLC0415

    _become_a_host()
    _show(await benchmark.run(engine=engine, runs=runs), json=json)


async def idle(*, engine: Engine = "bubblewrap", sessions: Sessions = 1000, json: Json = False) -> None:
    """What idle sessions cost a real host process: CPU, and memory over an empty one."""
    from hermitcrab_bench import idle as benchmark  # noqa: PLC0415

    _become_a_host()
    _show(await benchmark.run(engine=engine, sessions=sessions), json=json)


async def thaw(*, engine: Engine = "bubblewrap", runs: Runs = 30, sessions: Sessions = 10, json: Json = False) -> None:
    """From a message to a frozen session until its thawed runner was handed it."""
    from hermitcrab_bench import thaw as benchmark  # noqa: PLC0415

    _become_a_host()
    _show(await benchmark.run(engine=engine, runs=runs, sessions=sessions), json=json)


async def adopt(*, engine: Engine = "bubblewrap", sessions: Sessions = 300, json: Json = False) -> None:
    """Kill a host with live containers; time until the next one has them all. 300 sandboxes take some 6 GB."""
    from hermitcrab_bench import adopt as benchmark  # noqa: PLC0415

    _become_a_host()
    _show(await benchmark.run(engine=engine, sessions=sessions), json=json)


async def storm(
    *, engine: Engine = "bubblewrap", wakes: Count = 200, sessions: Sessions = 200, json: Json = False
) -> None:
    """Wakes of one session at once from two hosts, then of many: duplicates, and how late the event loop gets."""
    from hermitcrab_bench import storm as benchmark  # noqa: PLC0415

    _become_a_host()
    _show(await benchmark.run(engine=engine, wakes=wakes, sessions=sessions), json=json)


async def stop(*, engine: Engine = "bubblewrap", sessions: Sessions = 300, json: Json = False) -> None:
    """End many live containers together: time over the grace that each of them has. 300 sandboxes take some 6 GB."""
    from hermitcrab_bench import stop as benchmark  # noqa: PLC0415

    _become_a_host()
    _show(await benchmark.run(engine=engine, sessions=sessions), json=json)


async def throughput(
    *, engine: Engine = "bubblewrap", sessions: Sessions = 100, messages: MessagesEach = 50, json: Json = False
) -> None:
    """Messages a second through live sessions that all talk at once, and how evenly they are served."""
    from hermitcrab_bench import throughput as benchmark  # noqa: PLC0415

    _become_a_host()
    _show(await benchmark.run(engine=engine, sessions=sessions, messages=messages), json=json)


async def history(
    *, engine: Engine = "bubblewrap", past: Count = 100_000, messages: Messages = 200, json: Json = False
) -> None:
    """Round trips in a session with many past messages, next to one with none."""
    from hermitcrab_bench import history as benchmark  # noqa: PLC0415

    _become_a_host()
    _show(await benchmark.run(engine=engine, past=past, messages=messages), json=json)


async def isolation(*, sessions: Sessions = 1000, rounds: Runs = 3, json: Json = False) -> None:
    """What a damaged, a locked and a busy session cost many others. Containers are stand-ins; all else is real."""
    from hermitcrab_bench import isolation as benchmark  # noqa: PLC0415

    _become_a_host()
    _show(await benchmark.run(sessions=sessions, rounds=rounds), json=json)


async def fuzz(
    *,
    engine: Engine = "bubblewrap",
    frames: Count = 1_000_000,
    seed: int = 1,
    messages: Messages = 200,
    json: Json = False,
) -> None:
    """Mutated frames on one session's link: crashes, leaks, and what another session notices of it."""
    from hermitcrab_bench import fuzz as benchmark  # noqa: PLC0415

    _become_a_host()
    _show(await benchmark.run(engine=engine, frames=frames, seed=seed, messages=messages), json=json)


def _become_a_host() -> None:
    """What `crab up` does before it opens the host that most benchmarks have in this process."""
    from hermitcrab.observe.logs import configure_logs  # noqa: PLC0415
    from hermitcrab.observe.pauses import forget_imports  # noqa: PLC0415

    configure_logs(level="warning")
    forget_imports()


def _show(result: dict[str, Any], *, json: bool) -> None:
    if json:
        print_json(result)
    else:
        print_fields(list(result.items()))
