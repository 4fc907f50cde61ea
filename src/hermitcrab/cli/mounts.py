"""`crab mounts explain` and `crab mounts list`: what the allow-list lets into containers, and why. Needs no host."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from hermitcrab.cli.output import GivenHome, Json, print_fields, print_json, print_line, print_table
from hermitcrab.containers.materials.mounts import forbidden_places, gather
from hermitcrab.logic.mounts import REFUSED_NAMES, Decision, MountRequest, decide
from hermitcrab.settings.allowlist import read

REFUSED = 1


def explain(
    path: Annotated[str, Parameter(help="A folder or file of this machine.")],
    *,
    container_path: Annotated[
        str | None, Parameter(help="Its name below /workspace/extra (default: the last part of PATH).")
    ] = None,
    write: Annotated[bool, Parameter(negative="", help="Ask for writing too.")] = False,
    group: Annotated[str | None, Parameter(help="For this agent group (default: one that no root names).")] = None,
    json: Json = False,
    home: GivenHome,
) -> int:
    """Whether PATH may be mounted: each rule, what it saw, and the mode that would be in effect."""
    allowlist = read(home.mounts_file)
    request = MountRequest(path=_absolute(path), name=container_path, write=write, group=group)
    decision = decide(request, allowlist, gather(request, allowlist, forbidden=forbidden_places(home)))
    if json:
        print_json(
            {
                "path": request.path,
                "allowed": decision.allowed,
                "mode": _mode(decision),
                "container_path": decision.mount.target if decision.mount else None,
                "reason": decision.reason,
                "steps": [asdict(step) for step in decision.steps],
                "allowlist": str(home.mounts_file),
            }
        )
    else:
        print_table(
            ("RULE", "ANSWER", "SAW"),
            [(step.rule, "pass" if step.passed else "refuse", step.saw) for step in decision.steps],
            empty="",
        )
        if decision.mount:
            print_line(f"Allowed, {_mode(decision)}, as {decision.mount.target}", "good")
        else:
            print_line("Refused.", "bad")
            if allowlist is None:
                print_line(f"The allow-list would be {home.mounts_file} (mode 0600), with [[roots]] in it.")
    return 0 if decision.allowed else REFUSED


def list_mounts(*, json: Json = False, home: GivenHome) -> None:
    """The roots of the allow-list, and the names that are refused wherever they lie."""
    allowlist = read(home.mounts_file)
    roots = allowlist.roots if allowlist else ()
    own_names = allowlist.refused_names if allowlist else ()
    if json:
        print_json(
            {
                "allowlist": str(home.mounts_file),
                "exists": allowlist is not None,
                "roots": [asdict(root) for root in roots],
                "refused_names": [*REFUSED_NAMES, *own_names],
            }
        )
        return
    print_fields(
        (
            ("allow-list", f"{home.mounts_file}{'' if allowlist else ' (not there: nothing may be mounted)'}"),
            ("refused names", [*REFUSED_NAMES, *own_names]),
        )
    )
    print_table(
        ("ROOT", "MODE", "GROUPS", "DESCRIPTION"),
        [(root.path, "read-write" if root.write else "read-only", root.groups, root.description) for root in roots],
        empty="No roots.",
    )


def _absolute(path: str) -> str:
    """As it was meant, but nothing resolved: what `..` or a link leads to is for the rules to see."""
    path = os.path.expanduser(path)  # noqa: PTH111  # pathlib would drop what the rules are to see
    if not path.startswith("/"):
        path = f"{os.getcwd()}/{path}"  # noqa: PTH109
    return "/" + "/".join(part for part in path.split("/") if part not in {"", "."})


def _mode(decision: Decision) -> str | None:
    if decision.mount is None:
        return None
    return "read-write" if decision.mount.writable else "read-only"
