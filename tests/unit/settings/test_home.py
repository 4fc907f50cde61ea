"""Where the home is, who may have it, and that one host only does."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hermitcrab.errors import BadInputError, HomeError, HomeInUseError
from hermitcrab.settings.home import Home, HomeLock, lock_holder, resolve

HOLD = """
import sys
from pathlib import Path
from hermitcrab.settings.home import Home, HomeLock
with HomeLock(Home(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_option_wins_over_the_variable_over_the_data_folder(tmp_path: Path) -> None:
    environment = {"HERMITCRAB_HOME": str(tmp_path / "variable"), "XDG_DATA_HOME": str(tmp_path / "data")}
    assert resolve(str(tmp_path / "option"), environment=environment) == (tmp_path / "option").resolve()
    assert resolve(None, environment=environment) == (tmp_path / "variable").resolve()
    del environment["HERMITCRAB_HOME"]
    expected = Path("/var/lib/hermitcrab") if os.geteuid() == 0 else tmp_path / "data/hermitcrab"
    assert resolve(None, environment=environment) == expected.resolve()


def test_a_home_has_no_symbolic_links_in_its_path(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert resolve(str(tmp_path / "link" / "home")) == (tmp_path / "real" / "home").resolve()


@pytest.mark.parametrize("option", ["", "a\0b"])
def test_what_is_no_path_is_refused(option: str) -> None:
    with pytest.raises(BadInputError):
        resolve(option)


def test_everything_in_a_prepared_home_is_for_its_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "home")
    before = os.umask(0)
    try:
        home.prepare()
        home.prepare()
    finally:
        os.umask(before)
    folders = [home.path, *(each for each in home.path.rglob("*") if each.is_dir())]
    assert len(folders) > 6
    assert {stat.S_IMODE(each.stat().st_mode) for each in folders} == {0o700}
    assert {home.run, home.sessions, home.groups, home.generated, home.logs, home.cache} <= set(folders)
    assert not list(home.path.glob("*probe*"))


def test_a_folder_with_other_things_that_others_can_enter_is_not_taken_over(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(HomeError, match="holds other things"):
        Home(tmp_path).prepare()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_home_that_became_readable_for_others_is_closed_again(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    home.settings_file.touch()
    home.path.chmod(0o755)
    home.prepare()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_a_home_on_a_network_file_system_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises(HomeError, match="nfs4 file system") as caught:
        home.prepare(mountinfo="1 0 0:1 / / rw - nfs4 server:/ rw\n")
    assert str(home.path) in str(caught.value)
    assert "--home" in caught.value.hint
    assert not home.path.exists()


def test_a_file_in_the_place_of_the_home_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("x")
    with pytest.raises(HomeError, match="cannot be written"):
        Home(tmp_path / "home").prepare()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(HomeError, match="cannot be written"):
        Home(tmp_path / "home").prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_home_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(HomeError, match="belongs to user 12345"):
        Home(tmp_path).prepare()


def test_a_second_host_is_told_who_has_the_home(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with HomeLock(home):
        assert lock_holder(home) == os.getpid()
        with pytest.raises(HomeInUseError, match=f"process {os.getpid()}") as caught, HomeLock(home):
            pytest.fail("two hosts hold one home")
        assert str(tmp_path) in str(caught.value)
    assert lock_holder(home) is None
    with HomeLock(home):
        pass


def test_the_lock_of_a_host_that_was_killed_is_free(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(HomeInUseError, match=f"process {other.pid}"), HomeLock(home):
            pytest.fail("two hosts hold one home")
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert home.lock_file.exists()
    with HomeLock(home):
        assert lock_holder(home) == os.getpid()


def test_a_lock_file_that_was_removed_meanwhile_does_not_make_two_holders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    real = fcntl.flock
    removed: list[bool] = []

    def flock(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(True)
            home.lock_file.unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with HomeLock(home):
        assert home.lock_file.read_text() == f"{os.getpid()}\n"


def test_a_symbolic_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    Home(tmp_path).lock_file.symlink_to("precious")
    with pytest.raises(HomeError), HomeLock(Home(tmp_path)):
        pytest.fail("a link was taken for the lock")
    assert (tmp_path / "precious").read_text() == "precious"
