"""`crab status` and `crab stop`."""

from __future__ import annotations

from typing import Any

from hermitcrab.cli.output import GivenHome, Json, print_fields, print_json, print_line, print_table
from hermitcrab.control.client import ControlClient


async def status(*, json: Json = False, home: GivenHome) -> None:
    """What the host and its sessions are doing."""
    async with ControlClient.connect(home) as client:
        found = await client.call("status")
    if json:
        print_json(found)
        return
    engine: dict[str, Any] = found["engine"]
    print_fields(
        [
            ("host", f"running as process {found['pid']} for {_duration(found['uptime_s'])}"),
            ("home", found["home"]),
            ("version", found["version"]),
            ("engine", f"{engine['name']} {engine.get('version', '')}".strip()),
            ("provider", found["provider"]),
            ("groups", found["groups"]),
            ("sessions", f"{found['sessions']} ({_phases(found['phases'])})"),
            ("containers", _room(found["admission"])),
        ]
    )
    if not engine["available"]:
        print_line(f"The engine does not answer: {engine['problem']}", "bad")
        print_line(f"  {engine['hint']}")
    for promise, reason in engine.get("unrealized", {}).items():
        print_line(f"not kept by this engine: {promise}: {reason}", "warning")
    for promise, reason in engine.get("strict_unrealized", {}).items():
        print_line(f"not kept by this engine for hardening strict: {promise}: {reason}", "warning")
    for session, why in found["damaged"].items():
        print_line(f"session {session} is damaged: {why}", "bad")
    for each in found["breakers"]:
        print_line(
            f"starts wait for the {each['dependency']} ({each['state']}, {each['failures']} sessions failed,"
            f" tried again in {each['retry_in_s']:.0f} s): {each['text']}",
            "warning",
        )
    if found["containers"]:
        print()
        print_table(
            ("SESSION", "PHASE", "GENERATION", "ACTIVITY", "MEMORY", "NOTE"),
            [
                (
                    each["session_id"],
                    each["phase"],
                    each["generation"],
                    " ".join(part for part in (each["activity"], each["detail"]) if part),
                    megabytes(each["memory_bytes"]),
                    each["text"] or "-",
                )
                for each in found["containers"]
            ],
            empty="",
        )


async def stop(*, home: GivenHome) -> None:
    """Ask the running host to leave in good order."""
    async with ControlClient.connect(home) as client:
        answer = await client.call("stop")
    print(f"The host (process {answer['pid']}) is leaving.")


def megabytes(count: int | None) -> str | None:
    return None if count is None else f"{count / 1024 / 1024:.0f} MB"


def _room(admission: dict[str, Any]) -> str:
    budget = admission["budget_mb"]
    memory = f", {admission['reserved_mb']} of {budget} MB reserved" if budget is not None else ""
    queued = f", {admission['queued']} queued" if admission["queued"] else ""
    return f"{admission['running']} of {admission['running_at_most']}{memory}{queued}"


def _phases(phases: dict[str, int]) -> str:
    return ", ".join(f"{count} {phase}" for phase, count in phases.items()) or "none has a container"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    shown = [f"{number} {unit}" for number, unit in parts if number][:2]
    return " ".join(shown) or "0 s"
