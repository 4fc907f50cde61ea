"""The log's last lines, and a head that is given back while the writer goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hermitcrab.containers.engines.bubblewrap_log import tail, trim


@pytest.mark.parametrize(
    ("content", "lines", "wanted"),
    [
        (b"", 5, []),
        (b"one\ntwo\n", 5, ["one", "two"]),
        (b"one\ntwo\n", 1, ["two"]),
        (b"one\ntwo", 1, ["two"]),
        (b"one\n\n", 2, ["one", ""]),
        (b"one\n", 0, []),
        (b"a\xffb\n", 1, ["a\ufffdb"]),
        (b"\0\0\0one\n", 1, ["one"]),
    ],
)
def test_the_last_lines(tmp_path: Path, content: bytes, lines: int, wanted: list[str]) -> None:
    (tmp_path / "log").write_bytes(content)
    assert tail(str(tmp_path / "log"), lines) == wanted


def test_a_huge_log_is_not_read_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 3_000_000 + b"\nlast\n")
    assert tail(str(log), 2)[-1] == "last"
    assert sum(map(len, tail(str(log), 1_000_000))) <= 1024 * 1024


def test_a_link_in_the_logs_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "log").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        tail(str(tmp_path / "log"), 1)


def test_a_log_within_its_limit_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 10_000)
    assert not trim(str(tmp_path / "log"), 1_000_000)
    assert (tmp_path / "log").read_bytes() == b"x" * 10_000


def test_the_head_of_a_long_log_gives_its_room_back_and_the_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as writer:
        for number in range(100_000):
            writer.write(b"line %d\n" % number)
        os.fsync(writer.fileno())
        assert trim(str(log), 400_000)
        assert log.stat().st_blocks * 512 <= 400_000
        writer.write(b"after\n")
    assert tail(str(log), 3) == ["line 99998", "line 99999", "after"]
    assert not trim(str(log), 400_000)
