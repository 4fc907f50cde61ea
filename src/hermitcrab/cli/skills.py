"""`crab skills list`: what agents can be taught, and where it lies. Needs no host."""

from __future__ import annotations

import re
from typing import Annotated

from cyclopts import Parameter

from hermitcrab.cli.output import GivenHome, Json, print_json, print_line, print_table
from hermitcrab.errors import BadInputError
from hermitcrab.groups.skills import SkillShelf
from hermitcrab.logic.skills import SKILL_FILE
from hermitcrab.model.ids import FOLDER_NAME

_DESCRIPTION = re.compile(r"^description:[ \t]*(.+)$", re.MULTILINE)


def list_skills(
    *,
    group: Annotated[str | None, Parameter(help="With this agent group's own skills.")] = None,
    json: Json = False,
    home: GivenHome,
) -> None:
    """Every skill that agent groups can have: shipped, the installation's own, and with --group that group's own."""
    if group is not None and FOLDER_NAME.fullmatch(group) is None:
        raise BadInputError(f"{group[:80]!r} is no group's name", hint="crab groups list shows all of them.")
    own = home.group_skills(group) if group is not None else None
    rows = []
    for name, folder in sorted(SkillShelf(home).folders(group).items()):
        origin = {home.skills: "installation", own: "group"}.get(folder.parent, "shipped")
        with (folder / SKILL_FILE).open(encoding="utf-8", errors="replace") as file:
            found = _DESCRIPTION.search(file.read(8192))
        rows.append(
            {"skill": name, "from": origin, "folder": str(folder), "description": found[1].strip() if found else ""}
        )
    if json:
        print_json(rows)
        return
    print_table(
        ("SKILL", "FROM", "DESCRIPTION"),
        [(each["skill"], each["from"], each["description"]) for each in rows],
        empty="There is no skill.",
    )
    print_line(f"More go into {home.skills}/NAME, one group's own into {home.group_skills(group or 'GROUP')}/NAME.")
