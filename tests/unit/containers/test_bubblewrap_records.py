"""The engine's folders: names taken once, whole or not there, and cleared of what crashes left."""

from __future__ import annotations

import fcntl
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermitcrab.containers.engines.bubblewrap_processes import Process
from hermitcrab.containers.engines.bubblewrap_records import ContainerFolder, Processes, Shelf
from hermitcrab.errors import EngineError, Failure
from hermitcrab.model.container import ContainerSpec, Limits, Mount, MountClass
from hermitcrab.model.ids import Generation, InstallationId, SessionId

SPEC = ContainerSpec(
    name="one",
    installation=InstallationId("here"),
    session=SessionId("s"),
    generation=Generation(3),
    image=None,
    argv=("sh", "-c", "true"),
    env={"A": "b"},
    mounts=(Mount(source="/a", target="/b", writable=True, mount_class=MountClass.WORK),),
    limits=Limits(pids=7),
    uid=1000,
    gid=1000,
    hardening="strict",
)
# Surrogates too: bytes of the environment that are no UTF-8 are told with them.
texts = st.text(st.characters(codec=None))


def names(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path / "engine")
    made.open()
    return made


def created(shelf: Shelf) -> ContainerFolder:
    shelf.create(SPEC)
    found = shelf.find(SPEC.name)
    assert found is not None
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(texts, max_size=3), st.dictionaries(texts, texts, max_size=3), texts)
def test_a_spec_is_read_as_it_was_written(tmp_path: Path, argv: list[str], env: dict[str, str], session: str) -> None:
    spec = replace(SPEC, argv=tuple(argv), env=env, session=SessionId(session))
    shelf = Shelf(tmp_path / "engine")
    shelf.create(spec)
    found = shelf.find(spec.name)
    assert found is not None
    record = found.record()
    assert record is not None
    assert record.spec == spec
    assert record.spec.spec_hash == spec.spec_hash
    shelf.forget(found)


def test_a_name_is_taken_once(shelf: Shelf) -> None:
    before = created(shelf).record()
    with pytest.raises(EngineError) as caught:
        shelf.create(replace(SPEC, generation=Generation(4)))
    assert caught.value.failure is Failure.NAME_IN_USE
    assert created_again(shelf) == before


def created_again(shelf: Shelf) -> object:
    found = shelf.find(SPEC.name)
    assert found is not None
    return found.record()


def test_of_many_at_once_one_takes_the_name_and_nothing_is_left_of_the_others(shelf: Shelf) -> None:
    def attempt(generation: int) -> bool:
        try:
            Shelf(shelf.folder).create(replace(SPEC, generation=Generation(generation)))
        except EngineError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(attempt, range(32)))
    assert outcomes.count(True) == 1
    assert names(shelf.folder) == [SPEC.name]


def test_a_forgotten_name_is_free(shelf: Shelf) -> None:
    shelf.forget(created(shelf))
    assert names(shelf.folder) == []
    shelf.create(SPEC)
    shelf.forget(ContainerFolder(shelf.folder / "nobody"))


def test_the_folder_is_the_hosts_alone(shelf: Shelf) -> None:
    folder = created(shelf)
    assert shelf.folder.stat().st_mode & 0o077 == 0
    assert folder.path.stat().st_mode & 0o077 == 0


def test_what_a_crash_left_half_made_is_cleared(shelf: Shelf) -> None:
    for name in (".new-1", ".gone-1"):
        (shelf.folder / name).mkdir()
        (shelf.folder / name / "record.json").write_text("{")
    Shelf(shelf.folder).open()
    assert names(shelf.folder) == []


def test_what_another_host_is_making_is_left_alone(shelf: Shelf) -> None:
    making = shelf.folder / ".new-1"
    making.mkdir()
    descriptor = os.open(making, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        Shelf(shelf.folder).open()
        assert making.exists()
    finally:
        os.close(descriptor)
    Shelf(shelf.folder).open()
    assert not making.exists()


def test_what_another_host_clears_away_before_it_is_locked_is_made_again(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open = os.open
    cleared: list[object] = []

    def opened(path: str | Path, flags: int, *more: int, **named: int) -> int:
        if not cleared:
            cleared.append(path)
            Shelf(shelf.folder).open()
            assert names(shelf.folder) == []
        return really_open(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", opened)
    shelf.create(SPEC)
    assert names(shelf.folder) == ["one"]


def test_a_trial_that_ends_while_it_is_looked_at_is_none(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([folder / ".trial-1"]))
    shelf.open()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"id": "x", "created_at": "", "spec": {}}'])
def test_a_record_that_cannot_be_read_is_none(shelf: Shelf, text: str) -> None:
    folder = created(shelf)
    (folder.path / "record.json").write_text(text)
    assert folder.record() is None


def test_processes_are_read_as_they_were_written(shelf: Shelf) -> None:
    folder = created(shelf)
    assert folder.processes() is None
    for processes in (
        Processes("b"),
        Processes("b", Process(4, 5), None),
        Processes("b", Process(4, 5), Process(6, 7)),
    ):
        folder.write_processes(processes)
        assert folder.processes() == processes


def test_processes_cut_short_belong_to_no_boot(shelf: Shelf) -> None:
    folder = created(shelf)
    (folder.path / "processes.json").write_text('{"boot": "b", ')
    assert folder.processes() == Processes(boot="")


def test_the_status_is_what_bubblewrap_wrote_so_far(shelf: Shelf) -> None:
    folder = created(shelf)
    status = folder.path / "status.json"
    assert folder.status().main_pid is None
    status.write_text('{ "child-pid": 12, "pid-namespace": 99 }\n')
    assert (folder.status().main_pid, folder.status().pid_namespace, folder.status().exit_code) == (12, 99, None)
    with status.open("a") as file:
        file.write('{ "exit-code": 3 }\n{ "cut sho')
    assert (folder.status().main_pid, folder.status().exit_code) == (12, 3)
    assert folder.status().finished_at is not None


def test_the_lock_knows_of_a_removal(shelf: Shelf) -> None:
    folder = created(shelf)
    with folder.locked() as is_there:
        assert is_there
        shelf.forget(folder)
    with folder.locked() as is_there:
        assert not is_there


def test_a_record_is_json_that_other_tools_can_read(shelf: Shelf) -> None:
    found = json.loads((created(shelf).path / "record.json").read_text())
    assert found["spec"]["session"] == "s"
