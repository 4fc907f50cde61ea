"""`crab groups config edit`, with an editor that is a program of the test's own."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hermitcrab.errors import BadInputError, ConflictError, NotAgreedError
from hermitcrab.model.container_config import ContainerConfig

from .test_group_config import on_stage

Editor = Callable[[str], None]


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Editor:
    """Sets the editor to a program that has the file's `path` and its `text`, and drafts to a folder of their own."""
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(drafts))
    monkeypatch.delenv("VISUAL", raising=False)

    def become(program: str) -> None:
        file = tmp_path / "editor.py"
        file.write_text(f"import sys, pathlib\npath = pathlib.Path(sys.argv[1])\ntext = path.read_text()\n{program}\n")
        monkeypatch.setenv("EDITOR", f"{shlex.quote(sys.executable)} {shlex.quote(str(file))}")

    return become


def drafts(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "drafts").iterdir())


SET_EFFORT = """path.write_text(text.replace("# effort =", 'effort = "low" #'))"""
INSTALL = """path.write_text(text.replace("# apt = []", 'apt = ["jq"]'))"""


async def test_what_is_written_in_the_editor_is_shown_and_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], editor: Editor
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        await scene.crab("set", "main", "limits.pids", "64")
        editor(SET_EFFORT)
        told = await scene.crab("edit", "main")
        assert 'effort: (the installation\'s) -> "low"' in told
        config = await scene.config()
        assert (config.effort, config.limits.pids) == ("low", 64)
        assert drafts(tmp_path) == []


async def test_an_editor_that_changes_nothing_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], editor: Editor
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        await scene.crab("set", "main", "mcp_servers.files", '{"command": "python3", "env": {"A": "b"}}', "--yes")
        before = await scene.config()
        editor("assert path.stat().st_mode & 0o077 == 0")
        assert "Nothing was changed" in await scene.crab("edit", "main")
        assert await scene.config() == before
        assert drafts(tmp_path) == []


@pytest.mark.parametrize(
    "program",
    [
        'path.write_text(text + "nonsense")',
        'path.write_text(text.replace("# pids =", "pids = 1 #"))',
        'path.write_text(text + "\\nmodle = 1")',
        'path.write_bytes(b"model = \\xff")',
        "path.write_text(text + '# a thought'); sys.exit(3)",
        'path.write_text("x = \'" + "y" * 300_000 + "\'")',
    ],
)
async def test_what_cannot_be_used_is_kept_where_the_message_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], editor: Editor, program: str
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        editor(program)
        with pytest.raises(BadInputError) as caught:
            await scene.crab("edit", "main")
        (draft,) = drafts(tmp_path)
        assert str(draft) in caught.value.hint
        assert await scene.config() == ContainerConfig()


async def test_on_a_terminal_it_may_be_edited_again_and_begins_where_it_was_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        editor("path.write_text('effort = low' if 'low' not in text else 'effort = \"low\"')")
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
        monkeypatch.setattr("builtins.input", lambda _: "")
        await scene.crab("edit", "main")
        assert await scene.config() == ContainerConfig(effort="low")
        assert drafts(tmp_path) == []


async def test_what_gives_agents_more_needs_a_yes_and_is_kept_until_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        editor(INSTALL)
        with pytest.raises(NotAgreedError) as caught:
            await scene.crab("edit", "main")
        assert str(drafts(tmp_path)[0]) in caught.value.hint
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
        monkeypatch.setattr("builtins.input", lambda _: "n")
        assert "What you wrote is in" in await scene.crab("edit", "main")
        assert await scene.config() == ContainerConfig()
        await scene.crab("edit", "main", "--yes")
        assert (await scene.config()).packages.apt == ("jq",)


async def test_somebody_elses_change_meanwhile_is_not_undone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        editor('path.write_text("effort = low")')

        async def meanwhile(*_: object, **__: object) -> bool:
            await scene.crab("set", "main", "model", "opus")
            editor(SET_EFFORT.replace("# effort =", "effort = low").replace('low" #', 'low"'))
            return True

        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
        monkeypatch.setattr("hermitcrab.cli.group_config_edit.ask", meanwhile)
        with pytest.raises(ConflictError, match="meanwhile") as caught:
            await scene.crab("edit", "main")
        assert str(drafts(tmp_path)[0]) in caught.value.hint
        assert await scene.config() == ContainerConfig(model="opus")


async def test_an_editor_that_fails_before_anything_is_written_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], editor: Editor
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        for program in ("sys.exit(3)", "path.unlink(); sys.exit(3)"):
            editor(program)
            with pytest.raises(BadInputError, match="ended with 3") as caught:
                await scene.crab("edit", "main")
            assert "What you wrote" not in caught.value.hint
            assert drafts(tmp_path) == []


async def test_an_editor_that_there_is_not_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", "no-such-editor")
    async with on_stage(tmp_path, capsys) as scene:
        with pytest.raises(BadInputError, match="no-such-editor"):
            await scene.crab("edit", "main")
