"""Precedence, origins, and refusals that name the place and never the value."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import SettingsError
from hermitcrab.settings.load import explain, load

NOTHING: dict[str, str] = {}
FAKE_KEY = "sk-ant-api03-" + "not-a-real-key-" * 3


def write(home: Path, text: str) -> None:
    (home / "hermitcrab.toml").write_text(text)


def refusal(home: Path, overrides: dict[str, object] | None = None, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load(home, overrides, environment=environment or NOTHING)
    assert caught.value.hint
    return str(caught.value)


def test_without_a_file_everything_has_its_default(tmp_path: Path) -> None:
    settings = load(tmp_path, environment=NOTHING)
    assert settings.containers.engine == "bubblewrap"
    assert settings.gateway.anthropic_key == "env:ANTHROPIC_API_KEY"
    assert {each.origin for each in explain(tmp_path, environment=NOTHING)} == {"default"}


def test_the_command_line_wins_over_the_environment_over_the_file(tmp_path: Path) -> None:
    write(tmp_path, "[containers]\nmemory_mb = 100\npids = 100\n\nmax_running = 7\n")
    environment = {"HERMITCRAB__CONTAINERS__MEMORY_MB": "200", "HERMITCRAB__CONTAINERS__PIDS": "200"}
    overrides = {"containers.memory_mb": 300, "agents": {"provider": "echo"}, "containers.engine": None}
    settings = load(tmp_path, overrides, environment=environment)
    found = settings.containers
    assert (found.memory_mb, found.pids, found.max_running, found.cpus) == (300, 200, 7, 1.0)
    origins = {each.key: each.origin for each in explain(tmp_path, overrides, environment=environment)}
    assert origins["containers.memory_mb"] == "command line"
    assert origins["agents.provider"] == "command line"
    assert origins["containers.pids"] == "environment HERMITCRAB__CONTAINERS__PIDS"
    assert origins["containers.max_running"] == f"{tmp_path}/hermitcrab.toml, line 5"
    assert origins["containers.engine"] == "default"


def test_other_variables_of_ours_are_no_settings(tmp_path: Path) -> None:
    environment = {"HERMITCRAB_HOME": "/x", "HERMITCRAB_FAULT": "a:b", "ANTHROPIC_API_KEY": FAKE_KEY}
    assert load(tmp_path, environment=environment) == load(tmp_path, environment=NOTHING)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[containers]\nengin = 'docker'\n",
            "line 2: there is no setting 'containers.engin'; did you mean containers.engine?",
        ),
        ("[container]\nengine = 'docker'\n", "did you mean containers.engine?"),
        ("[contianers]\n", "'contianers'; did you mean containers?"),
        ("engine = 'docker'\n", "line 1: there is no setting 'engine'; did you mean containers.engine?"),
        ("containers = 3\n", "line 1: containers is a section"),
        ("[containers.engine]\nname = 'x'\n", "'containers.engine.name'; did you mean containers.engine?"),
        ("\n\n[logs\n", "line 3"),
        ("[logs]\nlevel = \n", "line 2, column 9: is not valid TOML"),
        ("[logs]\nlevel = 'loud'\n", "line 2: logs.level"),
        ("[containers]\nmemory_mb = 'much'\n", "line 2: containers.memory_mb"),
        ("[containers]\nmemory_mb = 3\n", "greater than or equal to 64"),
        ("[containers]\ncpus = nan\n", "finite number"),
        ("[containers]\nstart_deadline_s = 0\n", "greater than 0"),
        ("[agents]\ntimezone = 'Mars/Olympus'\n", "IANA time zone"),
        ("[agents]\ntimezone = '../../etc/passwd'\n", "IANA time zone"),
        ("[gateway]\nanthropic_upstream = 'http://example.com'\n", "must be https"),
        ("[gateway]\nanthropic_upstream = 'https://user:pw@example.com'\n", "no user name or password"),
        ("[gateway]\nanthropic_upstream = 'ftp://example.com'\n", "must be a URL"),
        ("[gateway]\nanthropic_key = 'file:relative'\n", "file:/absolute/path"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    write(tmp_path, text)
    said = refusal(tmp_path)
    assert str(tmp_path / "hermitcrab.toml") in said
    assert expected in said


def test_unknown_variables_and_flags_are_named_too(tmp_path: Path) -> None:
    said = refusal(tmp_path, {"agents.modle": "x"}, {"HERMITCRAB__CONTAINERS__ENGINES": "docker", "HERMITCRAB__X": "1"})
    assert "environment HERMITCRAB__CONTAINERS__ENGINES: there is no setting 'containers.engines'" in said
    assert "environment HERMITCRAB__X" in said
    assert "command line: there is no setting 'agents.modle'; did you mean agents.model?" in said


@pytest.mark.parametrize(
    "text",
    [
        f"[gateway]\nanthropic_key = '{FAKE_KEY}'\n",
        f"[gateway]\nanthropic_upstream = '{FAKE_KEY}'\n",
        f"[containers]\nmemory_mb = '{FAKE_KEY}'\n",
        f"[logs]\nlevel = '{FAKE_KEY}'\n",
        f"[gateway]\nanthropic_keys = '{FAKE_KEY}'\n",
        f"[gateway]\nanthropic_key = {FAKE_KEY}\n",
    ],
)
def test_a_key_that_was_pasted_into_the_file_is_never_repeated(tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, environment=NOTHING)
    error: BaseException | None = caught.value
    while error is not None:
        assert FAKE_KEY not in str(error)
        error = error.__cause__ or error.__context__


def test_secret_references_are_shown_as_references(tmp_path: Path) -> None:
    shown = explain(tmp_path, {"gateway.anthropic_key": "file:/run/keys/anthropic"}, environment=NOTHING)
    assert [each.value for each in shown if each.key == "gateway.anthropic_key"] == ["file:/run/keys/anthropic"]


def test_http_is_for_this_machine_only(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:8080/", "http://localhost:1/x", "http://[::1]:9"):
        settings = load(tmp_path, {"gateway.anthropic_upstream": url}, environment=NOTHING)
        assert settings.gateway.anthropic_upstream == url.rstrip("/")


def test_an_empty_variable_means_nothing_where_nothing_is_allowed(tmp_path: Path) -> None:
    settings = load(tmp_path, environment={"HERMITCRAB__CONTAINERS__IMAGE": ""})
    assert settings.containers.image is None


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "hermitcrab.toml").mkdir()
    assert f"{tmp_path}/hermitcrab.toml cannot be read" in refusal(tmp_path)


def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "hermitcrab.toml").write_bytes(b"[logs]\n# caf\xe9\n")
    assert "line 2: is not UTF-8" in refusal(tmp_path)


def test_settings_do_not_change_afterwards(tmp_path: Path) -> None:
    settings = load(tmp_path, environment=NOTHING)
    with pytest.raises(ValueError, match="frozen"):
        settings.containers.pids = 9999


@given(st.text(max_size=200))
def test_no_text_is_more_than_a_settings_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    home = tmp_path_factory.mktemp("home")
    (home / "hermitcrab.toml").write_text(text, encoding="utf-8")
    said = str(home)
    try:
        load(home, environment=NOTHING)
    except SettingsError as error:
        said = str(error)
    assert str(home) in said
