"""`crab selftest`: try the installation out on a scratch home, with faults if wanted."""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
from cyclopts import Parameter

from hermitcrab.cli.leaving import leave_on_sigterm
from hermitcrab.cli.output import Json, console, print_json, print_line, print_table
from hermitcrab.errors import BadInputError, sole

if TYPE_CHECKING:
    from hermitcrab.selftest.outcome import Outcome, Plan, Progress

SESSIONS = 5
CHAOS_SESSIONS, CHAOS_MINUTES, FAULT_EVERY_S = 50, 10.0, 2.0

TOLD_EVERY_S = 15.0
"""Where there is no terminal on which a line could be written anew."""

_PHASES = {
    "preparing": "Making a scratch home and starting a host",
    "talking": "Talking",
    "faults": "Talking under faults",
    "last answers": "Waiting for the last answers",
    "comparing": "Comparing what the host holds with what it held before",
    "leaving": "Asking the host to leave",
    "looking around": "Looking at what was left",
}


async def selftest(
    *,
    chaos: Annotated[bool, Parameter(negative="", help="Kill, stall, cut and fill meanwhile.")] = False,
    minutes: Annotated[float | None, Parameter(help="With --chaos: for so long (default: 10).")] = None,
    seed: Annotated[int | None, Parameter(help="With --chaos: the same faults in the same order again.")] = None,
    sessions: Annotated[int | None, Parameter(help="Conversations (default: 5, with --chaos 50).")] = None,
    fault_every: Annotated[
        float | None, Parameter(help="With --chaos: seconds between faults, on average (default: 2).")
    ] = None,
    engine: Annotated[str, Parameter(help="bubblewrap, docker or podman.")] = "bubblewrap",
    log: Annotated[Path | None, Parameter(help="Keep the hosts' log in this file.")] = None,
    json: Json = False,
) -> int:
    """Numbered messages through many sessions on a scratch home: none may be lost, doubled, out of order or left over.

    Exit code 0: all is as it must be. With --chaos, the seed that is printed makes the same run again.
    """
    from hermitcrab.selftest.outcome import Plan  # noqa: PLC0415  # heavy
    from hermitcrab.selftest.run import run  # noqa: PLC0415

    if not chaos and (minutes, seed, fault_every) != (None, None, None):
        raise BadInputError("--minutes, --seed and --fault-every are of no use without --chaos.")
    minutes = CHAOS_MINUTES if minutes is None else minutes
    fault_every = FAULT_EVERY_S if fault_every is None else fault_every
    count = sessions if sessions is not None else (CHAOS_SESSIONS if chaos else SESSIONS)
    if not 1 <= count <= 500 or not 0 < minutes <= 24 * 60 or not 0.1 <= fault_every <= 3600:
        raise BadInputError(
            "--sessions goes from 1 to 500, --minutes up to 1440, --fault-every from 0.1 to 3600 seconds."
        )
    if log is not None:
        _begin(log)
    plan = Plan(
        engine=engine,
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
        seconds=minutes * 60 if chaos else 0.0,
        sessions=count,
        fault_every_s=fault_every,
        pause_s=2.0 if chaos else 0.2,
    )
    print_line(_what(plan), stderr=True)
    outcome: Outcome | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave_on_sigterm, tasks.cancel_scope)
            with _progress(plan) as tell:
                outcome = await run(plan, tell=tell, keep_log=log)
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise sole(group) from None
    if outcome is None:
        return 128 + signal.SIGTERM
    if json:
        print_json(outcome.to_json())
    else:
        _show(outcome)
    return 0 if outcome.is_good else 1


def _begin(log: Path) -> None:
    """What an earlier test wrote there would be taken for this one's."""
    try:
        log.write_bytes(b"")
    except OSError as error:
        raise BadInputError(f"--log {log}: {error.strerror}", hint="Name a file in a folder that exists.") from error


def _what(plan: Plan) -> str:
    if not plan.has_faults:
        return f"Self-test: {plan.sessions} sessions on {plan.engine}"
    return (
        f"Self-test: {plan.sessions} sessions on {plan.engine}, {plan.seconds / 60:g} minutes with a fault every"
        f" {plan.fault_every_s:g} s, seed {plan.seed}"
    )


@contextmanager
def _progress(plan: Plan) -> Iterator[Callable[[Progress], None]]:
    """One line that changes, on a terminal; elsewhere a line now and then."""
    if sys.stderr.isatty():
        with console(stderr=True).status("") as status:
            yield lambda progress: status.update(_line(plan, progress))
        return
    told: dict[str, float] = {}

    def tell(progress: Progress) -> None:
        if progress.since_s >= told.get(progress.phase, 0.0):
            told[progress.phase] = progress.since_s + TOLD_EVERY_S
            print_line(_line(plan, progress), "quiet", stderr=True)

    yield tell


def _line(plan: Plan, progress: Progress) -> str:
    text = _PHASES[progress.phase]
    if progress.said:
        text += f": {progress.said} messages, {progress.heard} answers"
    if progress.phase == "faults":
        text += f", {progress.faults} faults"
        text += f" (the last: {progress.last_fault})" if progress.last_fault else ""
        text += f", {_clock(progress.since_s)} of {_clock(plan.seconds)}"
    return text


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _show(outcome: Outcome) -> None:
    if outcome.faults:
        rows = [
            (name, count, outcome.passed_over.get(name, 0) or "-")
            for name, count in sorted(outcome.faults.items() | {(name, 0) for name in _only_passed_over(outcome)})
        ]
        print_table(("FAULT", "DONE", "NOTHING TO DO IT TO"), rows, empty="")
        if outcome.impossible:
            print_line(f"Not possible here: {', '.join(outcome.impossible)}", "warning")
        print()
    said = f"{outcome.messages} messages through {outcome.plan.sessions} sessions"
    _verdict(f"{said}: each was answered", outcome.lost, "lost")
    _verdict("Each was answered once", outcome.doubled, "doubled")
    _verdict("The answers came in order", outcome.out_of_order, "out of order")
    _verdict(
        "No container, process, socket, folder or claim was left, and each end is certified", outcome.orphans, "left"
    )
    _verdict("Each container got to the gateway to the end", outcome.cut_off, "cut off")
    _verdict(f"The host holds no more than before ({_grown(outcome)})", outcome.grown, "grown")
    if outcome.exit_code:
        print_line(f"✗ The host ended with code {outcome.exit_code} when it was asked to leave", "bad")
    print()
    if outcome.is_good:
        print_line(f"All is as it must be, after {outcome.took_s:.0f} s.", "good")
    else:
        again = f" The same again: crab selftest --chaos --seed {outcome.plan.seed}" if outcome.plan.has_faults else ""
        print_line(f"It did not hold.{again} How to report it: docs/how-to/self-test.md", "bad")


def _only_passed_over(outcome: Outcome) -> set[str]:
    return outcome.passed_over.keys() - outcome.faults.keys()


def _grown(outcome: Outcome) -> str:
    growth = outcome.growth
    return f"{growth['memory_mib']:+g} MiB, {growth['fds']:+g} descriptors, {growth['files']:+g} files"


def _verdict(text: str, wrong: list[str], word: str) -> None:
    if not wrong:
        print_line(f"✓ {text}", "good")
        return
    print_line(f"✗ {len(wrong)} {word}:", "bad")
    for each in wrong[:20]:
        print_line(f"    {each}", "bad")
    if len(wrong) > 20:
        print_line(f"    and {len(wrong) - 20} more (--json has up to a hundred)", "bad")
