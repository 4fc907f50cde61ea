"""Writes the reference pages from the code: `python docs/reference/generate.py`. `--check` only compares."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import itertools
import os
import sys
import tempfile
from pathlib import Path

from hermitcrab.cli.main import COMMANDS, run
from hermitcrab.settings import model
from hermitcrab.settings.load import explain
from hermitcrab_wire import faults

HERE = Path(__file__).resolve().parent


def said_of_settings() -> dict[str, str]:
    """What stands below each setting in the source, by its key."""
    classes = {each.name: each for each in ast.parse(inspect.getsource(model)).body if isinstance(each, ast.ClassDef)}
    said: dict[str, str] = {}
    for section, field in model.Settings.model_fields.items():
        body = classes[str(getattr(field.annotation, "__name__", ""))].body
        for setting, below in itertools.pairwise(body):
            match setting, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    said[f"{section}.{name}"] = " ".join(text.split())
    return said


def settings_page() -> str:
    """Every setting with its default, and what it is."""
    said = said_of_settings()
    with tempfile.TemporaryDirectory() as folder:
        rows = explain(Path(folder), environment={})
    lines = [
        "# Settings",
        "",
        "Written by `docs/reference/generate.py`. They are read from `hermitcrab.toml` in the home folder, or from",
        "the environment as `HERMITCRAB__SECTION__KEY`; the environment wins. `crab config show` prints what is in",
        "force and where it came from. An unknown key is refused by name.",
        "",
        "| setting | default | what it is |",
        "|---|---|---|",
        *(f"| `{row.key}` | {'' if row.value is None else f'`{row.value}`'} | {said[row.key]} |" for row in rows),
        "",
    ]
    return "\n".join(lines)


def commands_page() -> str:
    """Every command's own help."""
    # In this process: one for each command would take a minute.
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    lines = ["# Commands", "", "Written by `docs/reference/generate.py` from each command's `--help`.", ""]
    for command in (each.name for each in COMMANDS):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            run([*command.split(), "--help"])
        body = "\n".join(line.rstrip() for line in shown.getvalue().strip().splitlines())
        lines += [f"## crab {command}", "", "```", body, "```", ""]
    return "\n".join(lines)


def fault_points_page() -> str:
    """The fault points, in the order of the road."""
    lines = [
        "# Fault points",
        "",
        "Written by `docs/reference/generate.py`. `HERMITCRAB_FAULT=NAME:TOKEN` kills a process with SIGKILL at that",
        "step, once, while the file TOKEN is there. For tests; see `tests/chaos`.",
        "",
        *(f"- `{point}`" for point in faults.POINTS),
        "",
    ]
    return "\n".join(lines)


PAGES = {"settings.md": settings_page, "commands.md": commands_page, "fault-points.md": fault_points_page}


def main() -> int:
    stale = []
    for name, page in PAGES.items():
        path, text = HERE / name, page()
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(name)
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run: python docs/reference/generate.py\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
