"""Sockets in deep folders, stale sockets, and who may connect."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hermitcrab.errors import BadInputError, HomeError
from hermitcrab.settings.sockets import bind_unix, connect_unix, short_address


def deep_folder(tmp_path: Path) -> Path:
    folder = tmp_path.joinpath(*(["a-long-folder-name"] * 10))
    folder.mkdir(parents=True)
    assert len(str(folder)) > 107
    return folder


def test_bytes_pass_through_a_socket_deeper_than_an_address_can_hold(tmp_path: Path) -> None:
    folder = deep_folder(tmp_path)
    with bind_unix(folder, "x.sock", 0o600) as listener, connect_unix(folder / "x.sock") as client:
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"hello")
            accepted.setblocking(True)
            assert accepted.recv(5) == b"hello"


def test_the_listener_does_not_block(tmp_path: Path) -> None:
    with bind_unix(tmp_path, "x.sock", 0o600) as listener, pytest.raises(BlockingIOError):
        listener.accept()


def test_a_socket_left_by_an_earlier_process_is_replaced(tmp_path: Path) -> None:
    bind_unix(tmp_path, "x.sock", 0o600).close()
    with pytest.raises(ConnectionRefusedError):
        connect_unix(tmp_path / "x.sock")
    with bind_unix(tmp_path, "x.sock", 0o600), connect_unix(tmp_path / "x.sock") as client:
        assert client.getpeername().endswith("/x.sock")


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_socket_has_exactly_the_asked_mode_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        with bind_unix(tmp_path, "x.sock", mode):
            assert stat.S_IMODE((tmp_path / "x.sock").stat().st_mode) == mode
    finally:
        os.umask(before)


def test_a_file_in_the_way_is_kept_and_named(tmp_path: Path) -> None:
    (tmp_path / "x.sock").write_text("precious")
    with pytest.raises(HomeError, match="in the way"):
        bind_unix(tmp_path, "x.sock", 0o600)
    assert (tmp_path / "x.sock").read_text() == "precious"


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x.sock").symlink_to(tmp_path / "elsewhere.sock")
    with pytest.raises(HomeError, match="in the way"):
        bind_unix(tmp_path, "x.sock", 0o600)
    assert not (tmp_path / "elsewhere.sock").exists()


def test_a_missing_folder_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(HomeError) as caught:
        bind_unix(tmp_path / "nowhere", "x.sock", 0o600)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError):
        bind_unix(tmp_path, name, 0o600)


def test_no_descriptor_stays_open(tmp_path: Path, open_files: Callable[[], set[str]]) -> None:
    before = open_files()
    with bind_unix(tmp_path, "x.sock", 0o600), connect_unix(tmp_path / "x.sock"):
        pass
    with pytest.raises(FileNotFoundError):
        connect_unix(tmp_path / "none.sock")
    with pytest.raises(BadInputError), short_address(Path("/")):
        pass
    assert open_files() <= before
