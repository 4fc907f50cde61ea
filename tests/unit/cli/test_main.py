from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hermitcrab import __version__
from hermitcrab.cli import main
from hermitcrab.cli.main import COMMANDS, build_app, overview, run
from hermitcrab.errors import NotFoundError


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ([], ["--help"], ["-h"], ["help"]):
        assert run(line) == 0
        assert capsys.readouterr().out == overview() + "\n"
    assert all(each.name in overview() and each.help in overview() for each in COMMANDS)


def test_the_overview_loads_no_parser_no_settings_and_no_host() -> None:
    code = (
        "import sys; from hermitcrab.cli.main import run; assert run(['--help']) == 0;"
        "heavy = {'cyclopts', 'rich', 'pydantic', 'anyio', 'asyncio', 'sqlite3', 'httpx2', 'structlog'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_commands_load_only_what_they_need() -> None:
    code = (
        "import sys; from hermitcrab.cli.main import build_app;"
        "build_app().parse_args(['status', '--json']);"
        "heavy = {'hermitcrab.app', 'sqlite3', 'httpx2', 'prompt_toolkit', 'rich.table'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_host_without_options_waits_for_no_parser() -> None:
    code = (
        "import sys; from hermitcrab.cli.main import run; assert run(['--home', '/dev/null/home', 'up']) == 1;"
        "assert 'hermitcrab.app' in sys.modules; heavy = {'cyclopts', 'attr', 'rich', 'httpx2'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "/dev/null/home" in told.stderr


def test_a_host_is_told_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(tmp_path / "home"), "up", "--provider", "nobody"]) != 0
    assert "There is no provider 'nobody'" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"crab {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_every_command_can_be_loaded_and_explains_itself(
    command: main.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, function = command.target.partition(":")
    assert callable(getattr(importlib.import_module(f"hermitcrab.cli.{module}"), function))
    assert run([*command.name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: crab {command.name}" in out
    assert command.help.split(":")[0] in " ".join(out.split())
    assert "--home" not in out.replace("HOME", "")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["status", "--jsn"], "--jsn"),
        (["statsu"], "statsu"),
        (["status", "surplus"], "surplus"),
        (["logs"], "SESSION"),
        (["logs", "s-1", "--lines", "many"], "many"),
        (["groups", "remove"], "remove"),
        (["chat", "--bogus"], "--bogus"),
        (["chat", "--timeout", "-1", "x"], "--timeout"),
        (["--home"], "--home"),
    ],
)
def test_a_wrong_line_is_one_sentence_with_a_hint_and_code_2(
    line: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, hint = err.splitlines()
    assert first.startswith("crab: ")
    assert words.lower() in first.lower()
    assert hint.strip().startswith("crab ")


def test_the_home_may_stand_anywhere_before_two_dashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = str(tmp_path / "somewhere")
    for line in (["--home", where, "status"], ["status", f"--home={where}"], ["status", "--json", "--home", where]):
        assert run(line) == 2
        assert capsys.readouterr().err.startswith(f"crab: No host runs on {where}.\n      Start it with: crab up")


def test_a_home_after_two_dashes_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(tmp_path), "chat", "--", "--home"]) == 2
    assert capsys.readouterr().err.startswith(f"crab: No host runs on {tmp_path}.")


def test_a_lone_dash_reads_the_message_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (["chat", "-"], ["chat", "-", "--json"], ["chat", "--json", "--", "-"], ["chat"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\0b")))
        assert run(["--home", str(tmp_path), *line]) == 2
        assert "NUL" in capsys.readouterr().err


def test_control_characters_in_a_message_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "\x1b[31mred"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_settings_and_their_origins_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hermitcrab.toml").write_text("[containers]\nmemory_mb = 2048\n")
    monkeypatch.setenv("HERMITCRAB__LOGS__LEVEL", "debug")
    assert run(["--home", str(tmp_path), "config", "show", "--json"]) == 0
    shown = {each["key"]: each for each in json.loads(capsys.readouterr().out)}
    assert shown["containers.memory_mb"]["value"] == 2048
    assert "hermitcrab.toml" in shown["containers.memory_mb"]["origin"]
    assert "HERMITCRAB__LOGS__LEVEL" in shown["logs.level"]["origin"]
    assert shown["agents.timezone"]["origin"] == "default"
    assert run(["--home", str(tmp_path), "config", "show"]) == 0
    assert "containers.memory_mb" in capsys.readouterr().out


def test_an_unknown_setting_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hermitcrab.toml").write_text("[containers]\nengin = 'docker'\n")
    assert run(["--home", str(tmp_path), "config", "show"]) == 2
    assert "engin" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (ZeroDivisionError("a fault"), 1)])
def test_an_interruption_and_a_fault_show_no_traceback(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_words: list[str], _home: str | None, *, is_process: bool) -> int:
        raise BaseExceptionGroup("of a task group", [error])

    monkeypatch.delenv("HERMITCRAB_DEBUG", raising=False)
    monkeypatch.setattr(main, "_dispatch", fail)
    assert run(["status"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_of_several_failures_at_once_the_foreseen_one_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_words: list[str], _home: str | None, *, is_process: bool) -> int:
        inner = ExceptionGroup("inner", [NotFoundError("There is no such thing.", hint="crab look"), ValueError("y")])
        raise ExceptionGroup("outer", [ZeroDivisionError("x"), inner])

    monkeypatch.delenv("HERMITCRAB_DEBUG", raising=False)
    monkeypatch.setattr(main, "_dispatch", fail)
    assert run(["status"]) == 1
    assert capsys.readouterr().err == "crab: There is no such thing.\n      crab look\n"


def test_debugging_shows_where_it_failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HERMITCRAB_DEBUG", "1")
    assert run(["status", "--jsn"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_building_the_parser_imports_no_command() -> None:
    before = {name for name in sys.modules if name.startswith("hermitcrab.cli.")}
    build_app()
    assert {name for name in sys.modules if name.startswith("hermitcrab.cli.")} == before


@pytest.mark.parametrize("words", [("wake", "--runs", "0"), ("idle", "--sessions", "-1"), ("fuzz", "--frames", "0")])
def test_nothing_is_measured_of_nothing(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *words]) == 2
    assert f"for {words[1]}" in capsys.readouterr().err


def test_the_settings_are_shown_with_where_they_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hermitcrab.toml").write_text("[containers]\npids = 300\n")
    assert run(["--home", str(tmp_path), "config", "show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["home", str(tmp_path)],
        ["settings", "file", f"{tmp_path}/hermitcrab.toml"],
    ]
    (pids,) = [line.split() for line in lines if line.startswith("containers.pids")]
    assert pids[1:] == ["300", f"{tmp_path}/hermitcrab.toml,", "line", "2"]


def test_a_warning_is_no_part_of_the_answer(tmp_path: Path) -> None:
    (tmp_path / "skills/No Skill").mkdir(parents=True)
    command = [sys.executable, "-m", "hermitcrab.cli.main", "--home", str(tmp_path), "skills", "list", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "memory" in [each["skill"] for each in json.loads(done.stdout)]
    assert "No Skill" in done.stderr


def test_a_reader_that_leaves_early_is_no_failure(tmp_path: Path) -> None:
    command = f"{sys.executable} -m hermitcrab.cli.main --home {tmp_path} config show | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
