"""`crab explain`: everything that an agent can read, write, reach and run, from the spec of its next container."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import Parameter

from hermitcrab.channels.terminal.render import one_line
from hermitcrab.cli.output import GivenHome, Json, print_fields, print_json, print_line, print_table
from hermitcrab.control.client import ControlClient


async def explain(
    group: Annotated[str, Parameter(help="An agent group's folder name.")],
    /,
    *,
    json: Json = False,
    home: GivenHome,
) -> None:
    """Everything that GROUP's agent can read, write, reach and run, and why. Nothing is made or started for it."""
    async with ControlClient.connect(home) as client:
        found = await client.call("groups.explain", folder=group)
    if json:
        print_json(found)
        return
    _runs(found["runs"], found)
    for name in found["runs"]["missing_skills"]:
        print_line(f"The skill {one_line(name)} is chosen and not there, so that it is passed over.", "warning")
    if found["not_installed"]:
        print_line(f"{one_line(found['not_installed'])}: crab image build --group {found['group']}", "warning")
    _heading("FILES")
    print_table(
        ("CONTAINER", "MODE", "CLASS", "HOST", "WHY"),
        [(each["container"], each["mode"], each["class"], each["host"], each["why"]) for each in found["mounts"]]
        + [(each["container"], "read-write", "memory", "-", _size(each["bytes"])) for each in found["memory"]],
        empty="",
    )
    if found["refused_mounts"]:
        _heading("NOT MOUNTED")
        print_table(
            ("HOST", "ASKED FOR", "BECAUSE"),
            [(each["host"], each["asked_for"], each["reason"]) for each in found["refused_mounts"]],
            empty="",
        )
    _reaches(found["reaches"])
    _heading("BOUNDS")
    print_fields([*((name.replace("_", " "), _bound(name, value)) for name, value in found["limits"].items())])
    print_fields([("workspace", found["workspace"])])
    print_fields([(f"hardening: {name}", value) for name, value in found["hardening"].items()])
    if found["unrealized"] is None:
        print_line("The engine does not answer: what it keeps of this is not known.", "warning")
    for promise, why in (found["unrealized"] or {}).items():
        print_line(f"not kept here: {promise}: {why}", "warning")


def _runs(runs: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    print_fields(
        [
            ("group", found["group"]),
            ("session", found["session"] or "(none yet)"),
            ("engine", runs["engine"]),
            ("image", runs["image"] or "the host's own programs, read-only"),
            ("command", " ".join(runs["command"])),
            ("user", f"uid {runs['uid']}, gid {runs['gid']}"),
            ("skills", runs["skills"]),
            ("tool servers", [f"{name}: {what}" for name, what in runs["mcp_servers"].items()]),
            ("packages", [f"{kind}: {' '.join(names)}" for kind, names in runs["packages"].items()]),
            ("environment", found["environment"]),
        ]
    )


def _reaches(reaches: Mapping[str, Any]) -> None:
    _heading("REACHES")
    print_fields([("network", reaches["network"]), ("host commands", reaches["host_commands"])])
    print_table(
        ("GATEWAY", "LEADS TO"), [(each["path"], each["leads_to"]) for each in reaches["gateway"]], empty="Nowhere."
    )
    print_table(
        ("MAY SEND TO", "TYPE"),
        [(each["name"], each["type"]) for each in reaches["destinations"]],
        empty="It may send nowhere but where it was spoken to.",
    )


def _heading(text: str) -> None:
    print_line("")
    print_line(text)


def _bound(name: str, value: float) -> str:
    return _size(value) if name.endswith("_bytes") else f"{value:g}"


def _size(value: float) -> str:
    return f"{value / (1 << 20):g} MiB"
