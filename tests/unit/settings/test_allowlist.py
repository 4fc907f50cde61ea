from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import SettingsError
from hermitcrab.logic.mounts import Allowlist, Root
from hermitcrab.settings import allowlist
from hermitcrab.settings.allowlist import read
from hermitcrab.settings.home import Home


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Home(tmp_path).mounts_file


def write(file: Path, text: str, mode: int = 0o600) -> None:
    file.write_text(text)
    file.chmod(mode)


def refusal(file: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        read(file)
    assert caught.value.hint
    assert str(file) in caught.value.message
    return caught.value.message


def test_no_file_is_no_allow_list(file: Path) -> None:
    assert read(file) is None


def test_an_empty_file_allows_nothing(file: Path) -> None:
    write(file, "")
    assert read(file) == Allowlist()


def test_the_example_in_the_documents_can_be_used(file: Path) -> None:
    document = Path(__file__).resolve().parents[3] / "docs/how-to/mounts.md"
    (example,) = re.findall(r"```toml\n(.*?)```", document.read_text(), re.DOTALL)
    write(file, example)
    found = read(file, user_home="/home/u")
    assert found is not None
    (root,) = found.roots
    assert (root.path, root.write, root.groups) == ("/home/u/projects", True, ("main", "helper"))
    assert found.refused_names == ("*.kdbx",)


def test_every_key_is_read_and_the_user_s_home_put_in(file: Path) -> None:
    write(
        file,
        """
        [[roots]]
        path = "~/projects/./x//"
        write = true
        description = "source code"
        groups = ["family", "work"]
        [[roots]]
        path = "/srv/data"
        [refused]
        names = ["*.kdbx"]
        """,
    )
    assert read(file, user_home="/home/u") == Allowlist(
        roots=(
            Root(path="/home/u/projects/x", write=True, description="source code", groups=("family", "work")),
            Root(path="/srv/data", write=False, description="", groups=("*",)),
        ),
        refused_names=("*.kdbx",),
    )


def test_an_edit_counts_at_once(file: Path) -> None:
    write(file, '[[roots]]\npath = "/srv"\nwrite = 1\n')
    refusal(file)
    write(file, '[[roots]]\npath = "/srv"\n')
    assert read(file) == Allowlist(roots=(Root(path="/srv"),))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[roots]]\npath = "/a"\nreadonly = true\n', "roots entry 1: there is no key 'readonly'"),
        ('[[roots]]\npath = "/a"\nwrit = true\n', "roots entry 1: there is no key 'writ'; did you mean write?"),
        ('allowedRoots = ["/a"]\n', "there is no key 'allowedRoots'; did you mean roots?"),
        ('[refused]\nname = ["x"]\n', "refused: there is no key 'name'; did you mean names?"),
        ("[[roots]]\nwrite = true\n", "roots entry 1 path: field required"),
        ('[[roots]]\npath = "/a"\nwrite = "yes"\n', "roots entry 1 write: input should be a valid boolean"),
        ('[[roots]]\npath = "/a"\nwrite = 1\n', "roots entry 1 write: input should be a valid boolean"),
        ('[[roots]]\npath = "a"\n', "roots entry 1 path: must be absolute"),
        ('[[roots]]\npath = "~root/a"\n', "roots entry 1 path: must be absolute"),
        ('[[roots]]\npath = "/a/../b"\n', "roots entry 1 path: is no path that can be used"),
        ('[[roots]]\npath = "/a"\ngroups = []\n', "roots entry 1 groups: list should have at least 1 item"),
        ('[[roots]]\npath = "/a"\ngroups = "*"\n', "roots entry 1 groups: input should be a valid list"),
        ('[[roots]]\npath = "/a"\ngroups = ["a b"]\n', "roots entry 1 groups entry 1: must be the folder name"),
        ('[refused]\nnames = ["a/b"]\n', "refused names entry 1: must be one name"),
        ('[refused]\nnames = ["*"]\n', "refused names entry 1: would refuse everything"),
        ('[[roots]]\npath = "/a"\n[[roots]]\npath = "/a/"\n', "roots entry 2: /a is there already for group *"),
        ("[[roots]\n", "is not valid TOML"),
        ('roots = "/a"\n', "roots: input should be a valid list"),
    ],
)
def test_whatever_is_wrong_is_refused_by_name(file: Path, text: str, told: str) -> None:
    write(file, text)
    assert told in refusal(file)


def test_everything_wrong_is_told_at_once(file: Path) -> None:
    write(file, '[[roots]]\npath = "a"\n[[roots]]\npath = "/b"\nmode = "rw"\n')
    told = refusal(file)
    assert "roots entry 1 path" in told
    assert "roots entry 2: there is no key 'mode'" in told


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o700 | 0o001])
def test_a_file_that_others_can_use_is_refused(file: Path, mode: int) -> None:
    write(file, "", mode)
    assert "others than its owner" in refusal(file)


def test_a_file_of_somebody_else_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, "")
    owner = file.stat().st_uid
    monkeypatch.setattr(allowlist.os, "geteuid", lambda: owner + 1)
    assert f"belongs to user {owner}" in refusal(file)


def test_links_pipes_folders_and_giants_are_refused(file: Path) -> None:
    elsewhere = file.with_name("elsewhere.toml")
    write(elsewhere, "")
    file.symlink_to(elsewhere)
    assert "cannot be opened as a plain file" in refusal(file)
    file.unlink()
    os.mkfifo(file, 0o600)
    assert "is no plain file" in refusal(file)
    file.unlink()
    file.mkdir(0o700)
    assert "is no plain file" in refusal(file)
    file.rmdir()
    write(file, "#" * 300_000)
    assert "is larger than" in refusal(file)


def test_bytes_that_are_no_text_are_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    file.chmod(0o600)
    assert "is not valid TOML" in refusal(file)


@given(st.text(max_size=200))
def test_any_text_is_an_allow_list_or_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("any") / "mounts.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    file.chmod(0o600)
    found: Allowlist | SettingsError | None
    try:
        found = read(file)
    except SettingsError as error:
        found = error
    assert isinstance(found, Allowlist) or (isinstance(found, SettingsError) and str(file) in found.message)
