"""`crab selftest`: try the installation out on a scratch home, with faults if wanted."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from hermitcrab.cli.output import Json, print_fields, print_json, print_line
from hermitcrab.errors import BadInputError

SESSIONS = 5
CHAOS_SESSIONS = 50


async def selftest(
    *,
    chaos: Annotated[bool, Parameter(negative="", help="Kill, stall, cut and fill meanwhile.")] = False,
    minutes: Annotated[float, Parameter(help="With --chaos: for so long.")] = 10.0,
    seed: Annotated[int | None, Parameter(help="With --chaos: the same faults in the same order again.")] = None,
    sessions: Annotated[int | None, Parameter(help="Conversations (default: 5, with --chaos 50).")] = None,
    fault_every: Annotated[float, Parameter(help="With --chaos: seconds between faults, on average.")] = 2.0,
    engine: Annotated[str, Parameter(help="bubblewrap, docker or podman.")] = "bubblewrap",
    log: Annotated[Path | None, Parameter(help="Keep the hosts' log in this file.")] = None,
    json: Json = False,
) -> int:
    """Numbered messages through many sessions on a scratch home: none may be lost, doubled, out of order or left over.

    Exit code 0: all is as it must be. With --chaos, the seed that is printed makes the same run again.
    """
    from hermitcrab.selftest.run import Plan, run  # noqa: PLC0415  # heavy

    count = sessions if sessions is not None else (CHAOS_SESSIONS if chaos else SESSIONS)
    if not 1 <= count <= 500 or not 0 < minutes <= 24 * 60 or not 0.1 <= fault_every <= 3600:
        raise BadInputError(
            "--sessions goes from 1 to 500, --minutes up to 1440, --fault-every from 0.1 to 3600 seconds."
        )
    if log is not None:
        log.touch()
    plan = Plan(
        engine=engine,
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
        seconds=minutes * 60 if chaos else 0.0,
        sessions=count,
        fault_every_s=fault_every,
        pause_s=2.0 if chaos else 0.2,
    )
    if chaos:
        print_line(f"Seed {plan.seed}: {count} sessions on {engine} for {minutes:g} minutes", stderr=True)
    outcome = await run(plan, progress=lambda text: print_line(text, "quiet", stderr=True), keep_log=log)
    found = outcome.to_json()
    if json:
        print_json(found)
    else:
        _show(found)
    return 0 if outcome.is_good else 1


def _show(found: dict[str, Any]) -> None:
    details = found.pop("details")
    faults = found.pop("faults")
    print_fields([*found.items(), *((f"fault {name}", count) for name, count in faults.items())])
    for each in details:
        print_line(each, "bad")
    if found["ok"]:
        print_line("Nothing was lost, doubled, out of order or left over.", "good")
    else:
        print_line(f"It did not hold. The same again: --chaos --seed {found['seed']}", "bad")
