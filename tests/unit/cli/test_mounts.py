"""`crab mounts`: the decision chain and the allow-list, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hermitcrab.cli.main import run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    base = tmp_path.resolve()
    (base / "projects/code").mkdir(parents=True)
    (base / "home").mkdir(mode=0o700)
    return base


def allow(base: Path, text: str) -> None:
    file = base / "home/mounts.toml"
    file.write_text(text)
    file.chmod(0o600)


def crab(base: Path, *words: str) -> int:
    return run(["--home", str(base / "home"), "mounts", *words])


def test_an_allowed_path_is_explained_rule_by_rule(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allow(base, f'[[roots]]\npath = "{base}/projects"\nwrite = true\n')
    assert crab(base, "explain", str(base / "projects/code"), "--write", "--container-path", "src") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["RULE", "ANSWER", "SAW"]
    assert lines[-1] == "Allowed, read-write, as /workspace/extra/src"
    assert all(" pass " in line for line in lines[1:-1])
    rules = ["allow-list", "path", "container path", "target free", "found", "kind", "names", "forbidden places"]
    assert [line.split("  ")[0] for line in lines[1:-1]] == [*rules, "inner mounts", "root", "mode"]


def test_the_effective_mode_is_told_when_it_is_less_than_was_asked_for(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allow(base, f'[[roots]]\npath = "{base}/projects"\n')
    assert crab(base, "explain", str(base / "projects/code"), "--write", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["allowed"], told["mode"]) == (True, "read-only")
    assert told["container_path"] == "/workspace/extra/code"
    assert told["steps"][-1]["saw"].startswith("read-only: writing was asked for, but")


def test_a_refusal_names_its_rule_and_fails(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allow(base, f'[[roots]]\npath = "{base}"\n')
    assert crab(base, "explain", str(base), "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["allowed"], told["mode"], told["container_path"]) == (False, None, None)
    assert "Hermitcrab's home" in told["reason"]
    assert crab(base, "explain", str(base)) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "Refused."


def test_a_relative_path_is_meant_from_here(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(base, f'[[roots]]\npath = "{base}/projects"\n')
    monkeypatch.chdir(base / "projects")
    assert crab(base, "explain", "./code", "--json") == 0
    assert json.loads(capsys.readouterr().out)["path"] == f"{base}/projects/code"
    assert crab(base, "explain", "../projects/code") == 1
    assert "write where it leads" in capsys.readouterr().out


def test_groups_are_heeded(base: Path) -> None:
    allow(base, f'[[roots]]\npath = "{base}/projects"\ngroups = ["family"]\n')
    assert crab(base, "explain", str(base / "projects/code"), "--group", "family") == 0
    assert crab(base, "explain", str(base / "projects/code"), "--group", "work") == 1
    assert crab(base, "explain", str(base / "projects/code")) == 1


def test_without_an_allow_list_both_commands_say_where_it_would_be(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crab(base, "explain", str(base / "projects/code")) == 1
    assert f"The allow-list would be {base}/home/mounts.toml" in capsys.readouterr().out
    assert crab(base, "list") == 0
    out = capsys.readouterr().out
    assert "not there: nothing may be mounted" in out
    assert out.splitlines()[-1] == "No roots."
    assert crab(base, "list", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["exists"], told["roots"]) == (False, [])


def test_the_list_shows_roots_and_refused_names(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allow(
        base,
        '[[roots]]\npath = "/srv/a"\nwrite = true\ndescription = "data"\ngroups = ["g"]\n[refused]\nnames = ["x.*"]\n',
    )
    assert crab(base, "list") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].split() == ["/srv/a", "read-write", "g", "data"]
    assert "x.*" in out
    assert crab(base, "list", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["roots"] == [{"path": "/srv/a", "write": True, "description": "data", "groups": ["g"]}]
    assert {"x.*", ".ssh"} <= set(told["refused_names"])


@pytest.mark.parametrize("words", [["list"], ["explain", "/srv"]])
def test_a_mistake_in_the_allow_list_is_told_by_name(
    base: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    allow(base, '[[roots]]\npath = "/srv"\nreadonly = true\n')
    assert crab(base, *words) == 2
    assert "there is no key 'readonly'" in capsys.readouterr().err
