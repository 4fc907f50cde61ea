"""Documents cannot lie about what a machine can check: reference pages, commands, links, the length of files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_reference_pages_are_what_the_code_says() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "docs/reference/generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_documents_exist(path: Path) -> None:
    known = re.findall(r"^## crab (.+)$", (ROOT / "docs/reference/commands.md").read_text(), re.MULTILINE)
    families = {command.rpartition(" ")[0] for command in known} | {command.split()[0] for command in known}
    for shown in re.findall(r"`(?:\.venv/bin/)?crab ([a-z]+(?: [a-z]+){0,2})", path.read_text()):
        words = shown.split()
        found = any(" ".join(words[:count]) in known for count in (1, 2, 3)) or shown in families
        assert found, f"{path.name} names `crab {shown}`, which is no command"


def test_files_stay_readable_in_one_go() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("src", "packages", "bench")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 540
    }
    assert long == {}, "each of these is perhaps two nouns"
