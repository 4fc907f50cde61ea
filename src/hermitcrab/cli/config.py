"""`crab config show`: every setting and where its value comes from. Needs no host."""

from __future__ import annotations

from dataclasses import asdict

from hermitcrab.cli.output import GivenHome, Json, print_fields, print_json, print_table
from hermitcrab.settings.load import explain


def show(*, json: Json = False, home: GivenHome) -> None:
    """Every setting, and where its value comes from. Secrets are never settings, only where to find them."""
    found = explain(home.path)
    if json:
        print_json([asdict(each) for each in found])
        return
    is_there = "" if home.settings_file.exists() else " (not there)"
    print_fields([("home", home.path), ("settings file", f"{home.settings_file}{is_there}")])
    print()
    print_table(("SETTING", "VALUE", "FROM"), [(each.key, each.value, each.origin) for each in found], empty="")
