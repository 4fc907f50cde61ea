"""Certificates: in the session's folder, and in the index of all sessions' deaths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hermitcrab.containers import certificates
from hermitcrab.containers.certificates import Certificate
from hermitcrab.errors import StoreError
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.store import deaths
from hermitcrab.store.database import Store

CERTIFICATE = Certificate(
    session=SessionId("s1"),
    generation=Generation(3),
    cause="exited",
    text="It ended by itself with exit code 3.",
    ended_at="2026-01-01T00:00:00+00:00",
    duration_s=2.5,
    exit_code=3,
    rows_returned=1,
    log=["one", "two"],
)


async def test_a_certificate_is_kept_whole_in_the_folder_and_without_its_log_in_the_index(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "store.db") as store:
        await certificates.keep(store, tmp_path / "logs" / "certificates.jsonl", CERTIFICATE)
        (noted,) = await store.read(lambda connection: deaths.newest(connection, limit=10))
    (kept,) = certificates.read(tmp_path / "logs" / "certificates.jsonl")
    assert kept["log"] == ["one", "two"]
    for field in ("session", "generation", "cause", "text", "ended_at", "duration_s", "exit_code", "rows_returned"):
        assert kept[field] == getattr(noted, field) == getattr(CERTIFICATE, field)


async def test_a_certificate_is_kept_even_when_the_index_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "certificates.jsonl"
    async with Store.open(tmp_path / "store.db") as store:
        await store.write(lambda connection: connection.execute("ALTER TABLE deaths RENAME TO away"))
        with pytest.raises(StoreError):
            await certificates.keep(store, path, CERTIFICATE)
        assert [each["generation"] for each in certificates.read(path)] == [3]
        # Whoever tries again does what is missing, and no more.
        await store.write(lambda connection: connection.execute("ALTER TABLE away RENAME TO deaths"))
        await certificates.keep(store, path, CERTIFICATE)
        assert len(await store.read(lambda connection: deaths.newest(connection, limit=10))) == 1
    assert [each["generation"] for each in certificates.read(path)] == [3]


@pytest.mark.parametrize("kept", [1, 20, -3, -1])
def test_what_was_cut_short_is_written_again_and_spoils_no_other(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "certificates.jsonl"
    certificates.write(path, CERTIFICATE)
    whole = path.read_bytes()
    third = replace(CERTIFICATE, text="Wegen eines vollen Datenträgers.")
    path.write_bytes(b"")
    certificates.write(path, third)
    # As a full disk leaves it: some of the line, perhaps half a letter, and no end.
    path.write_bytes(path.read_bytes()[:kept])
    certificates.write(path, third)
    certificates.write(path, replace(CERTIFICATE, generation=Generation(4)))
    assert [each["generation"] for each in certificates.read(path)] == [3, 4]
    path.write_bytes(whole + whole[:60] + "ä".encode()[:1])
    certificates.write(path, replace(CERTIFICATE, generation=Generation(4)))
    assert [each["generation"] for each in certificates.read(path)] == [3, 4]


def test_a_session_that_ends_for_ever_keeps_its_newest_certificates_in_a_bounded_file(tmp_path: Path) -> None:
    path = tmp_path / "certificates.jsonl"
    noisy = replace(CERTIFICATE, log=["x" * 10_000] * 100)
    for generation in range(1, 200):
        certificates.write(path, replace(noisy, generation=Generation(generation)))
    assert path.stat().st_size < 2 * 1024 * 1024
    assert [each["generation"] for each in certificates.read(path, last=3)] == [197, 198, 199]
    assert list(tmp_path.iterdir()) == [path]
