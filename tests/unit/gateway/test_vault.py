"""Where keys may come from, what makes one unusable, and that it is never shown."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from hermitcrab.errors import SettingsError
from hermitcrab.gateway.vault import KeyProblem, KeySource, Secret

CANARY = "sk-ant-CANARY-not-a-real-key"  # made up; opens nothing


def key_file(tmp_path: Path, text: str = CANARY + "\n", mode: int = 0o600) -> KeySource:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    return KeySource.parse(f"file:{path}")


def value_of(source: KeySource) -> str:
    found = source.read()
    assert isinstance(found, Secret), found
    return found.reveal()


def problem_of(source: KeySource) -> KeyProblem:
    found = source.read()
    assert isinstance(found, KeyProblem)
    assert found.fix
    assert CANARY not in repr(found)
    return found


def test_a_key_comes_from_the_environment_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    source = KeySource.parse("env:CRAB_TEST_KEY")
    monkeypatch.setenv("CRAB_TEST_KEY", CANARY)
    assert value_of(source) == CANARY
    monkeypatch.setenv("CRAB_TEST_KEY", "another-key")
    assert value_of(source) == "another-key"
    monkeypatch.delenv("CRAB_TEST_KEY")
    assert "CRAB_TEST_KEY is not set" in problem_of(source).text


def test_a_key_comes_from_a_file_of_ours(tmp_path: Path) -> None:
    assert value_of(key_file(tmp_path)) == CANARY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_can_touch_is_not_used(tmp_path: Path, mode: int) -> None:
    assert "open to others" in problem_of(key_file(tmp_path, mode=mode)).text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    source = key_file(tmp_path)
    os.chown(source.name, 12345, 12345)
    assert "somebody else" in problem_of(source).text


def test_links_pipes_folders_and_nothing_are_not_used(tmp_path: Path) -> None:
    source = key_file(tmp_path)
    (tmp_path / "link").symlink_to(source.name)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "pipe", "missing", "."):
        problem_of(KeySource.parse(f"file:{tmp_path}/{name}"))


@pytest.mark.parametrize(
    "text", ["", "\n", "short", "two words here", "line\nbreak-in-it", "k\xe4y-with-umlaut", "x" * 5000]
)
def test_what_cannot_be_a_key_is_not_used(tmp_path: Path, text: str) -> None:
    problem_of(key_file(tmp_path, text))


@pytest.mark.parametrize(
    "text", [CANARY, "", "env:", "env:A B", "env:1A", "file:", "file:relative", "file:/a\0b", "vault:x"]
)
def test_a_place_that_cannot_be_read_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        KeySource.parse(text)
    assert CANARY not in str(caught.value) + caught.value.hint
    assert caught.value.hint


def test_a_secret_shows_itself_only_on_purpose() -> None:
    secret = Secret(CANARY)
    assert CANARY not in f"{secret} {secret!r} {[secret]}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert secret.reveal() == CANARY
