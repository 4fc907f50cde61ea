"""Each way in which an end can come leaves one certificate with its own cause, on a simulated host in virtual time."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from hermitcrab.containers import certificates, machine
from hermitcrab.errors import EngineError, Failure
from hermitcrab.gateway.listener import Gateway
from hermitcrab.model.container import ContainerStatus
from hermitcrab.store import deaths, sessions
from hermitcrab.testing import virtual_time
from hermitcrab.testing.fake_engine import FakeContainer
from hermitcrab.testing.simulation import Simulation

Scenario = Callable[[Simulation], Awaitable[None]]


def play(folder: Path, scenario: Scenario, **containers: Any) -> list[dict[str, Any]]:
    """The certificates of `chat` after the scenario, without its first: oldest first."""
    found: list[dict[str, Any]] = []

    async def whole() -> None:
        simulation = Simulation(folder, **containers)
        await simulation.start()
        await simulation.add_session("chat")
        await scenario(simulation)
        session = await simulation.session(simulation.chats["chat"][1])
        found.extend(await simulation.host.runner.certificates(session))
        await simulation.stop()

    virtual_time.run(whole)
    generations = [each["generation"] for each in found]
    assert len(set(generations)) == len(generations), "a generation ends once"
    assert all(each["text"].endswith(".") for each in found)
    return found[1:]


async def live(simulation: Simulation) -> FakeContainer:
    await simulation.say("chat")
    await simulation.answered()
    await simulation.until_phase("chat", "ready")
    container = simulation.container("chat")
    assert container is not None
    return container


def ended_by(code: int, *, oom_killed: bool = False) -> Scenario:
    async def scenario(simulation: Simulation) -> None:
        container = await live(simulation)
        assert container.process is not None
        container.process.write("last words")
        container.process.exit(code, oom_killed=oom_killed)
        await simulation.until_phase("chat", "absent")

    return scenario


async def stopped_by_a_person(simulation: Simulation) -> None:
    await live(simulation)
    await simulation.host.runner.kill(simulation.chats["chat"][1])


async def quiet(simulation: Simulation) -> None:
    await live(simulation)
    await simulation.until_phase("chat", "absent", within_s=5000)


async def evicted(simulation: Simulation) -> None:
    await live(simulation)
    await simulation.add_session("other")
    await simulation.until_phase("chat", "absent")


async def removed_behind_our_back(simulation: Simulation) -> None:
    container = await live(simulation)
    del simulation.machine.containers[container.spec.name]
    await simulation.until_phase("chat", "absent")


async def hung(simulation: Simulation) -> None:
    await live(simulation)
    simulation.script.beats = False
    await simulation.until_phase("chat", "absent")
    simulation.script.beats = True


async def made_differently_by_the_next_host(simulation: Simulation) -> None:
    container = await live(simulation)
    await simulation.crash()
    container.spec = replace(container.spec, workdir="/elsewhere")
    await simulation.start()
    await simulation.until_phase("chat", "absent")


async def made_and_never_started(simulation: Simulation) -> None:
    container = await live(simulation)
    await simulation.crash()
    container.status, container.process = ContainerStatus.CREATED, None
    await simulation.start()
    await simulation.until_phase("chat", "absent")


async def engine_gone(simulation: Simulation) -> None:
    container = await live(simulation)
    simulation.engine.faults.unavailable = True
    assert container.process is not None
    container.process.exit(137)
    await simulation.until_phase("chat", "unknown")
    simulation.engine.faults.unavailable = False
    await simulation.until_phase("chat", "absent")


async def host_left(simulation: Simulation) -> None:
    await live(simulation)
    await simulation.stop()
    await simulation.start()


async def ended_without_a_host(simulation: Simulation) -> None:
    container = await live(simulation)
    await simulation.crash()
    assert container.process is not None
    container.process.exit(75)
    await simulation.start()
    await simulation.until_phase("chat", "absent")


async def gone_without_a_host(simulation: Simulation) -> None:
    container = await live(simulation)
    await simulation.crash()
    del simulation.machine.containers[container.spec.name]
    await simulation.start()


async def machine_restarted(simulation: Simulation) -> None:
    container = await live(simulation)
    await simulation.crash()
    assert container.process is not None
    container.process.exit(255)
    simulation.home.machine_file.write_text("another run of it")
    await simulation.start()
    await simulation.until_phase("chat", "absent")


@pytest.mark.parametrize(
    ("scenario", "cause", "code"),
    [
        pytest.param(ended_by(3), "exited", 3, id="exit-code"),
        pytest.param(ended_by(139), "signalled", 139, id="signal"),
        pytest.param(ended_by(137, oom_killed=True), "out-of-memory", 137, id="out-of-memory"),
        pytest.param(ended_by(0), "drained", 0, id="drained"),
        pytest.param(ended_by(77), "misconfigured", 77, id="misconfigured"),
        pytest.param(stopped_by_a_person, "stopped", 0, id="stopped"),
        pytest.param(quiet, "quiet", 0, id="quiet"),
        pytest.param(evicted, "evicted", 0, id="evicted"),
        pytest.param(hung, "hung", 0, id="hung"),
        pytest.param(made_differently_by_the_next_host, "replaced", None, id="replaced"),
        pytest.param(made_and_never_started, "host-died", None, id="never-started"),
        pytest.param(removed_behind_our_back, "vanished", None, id="vanished"),
        pytest.param(engine_gone, "engine-gone", 137, id="engine-gone"),
        pytest.param(host_left, "host-left", 0, id="host-left"),
        pytest.param(ended_without_a_host, "orphaned", 75, id="orphaned"),
        pytest.param(gone_without_a_host, "host-died", None, id="host-died"),
        pytest.param(machine_restarted, "machine-restarted", 255, id="machine-restarted"),
    ],
)
def test_an_end_has_its_cause(tmp_path: Path, scenario: Scenario, cause: str, code: int | None) -> None:
    (certificate,) = play(tmp_path, scenario, max_running=1 if scenario is evicted else 10)
    assert (certificate["cause"], certificate["exit_code"]) == (cause, code)


def test_the_last_words_are_kept(tmp_path: Path) -> None:
    (certificate,) = play(tmp_path, ended_by(3))
    assert certificate["log"][-1] == "last words"


def test_a_lifetime_that_is_over_is_an_end_of_its_own(tmp_path: Path) -> None:
    async def scenario(simulation: Simulation) -> None:
        await live(simulation)
        await simulation.until_phase("chat", "absent", within_s=5000)

    (certificate,) = play(tmp_path, scenario, lifetime_s=600, quiet_before_stop_s=86_400, quiet_before_freeze_s=86_400)
    assert certificate["cause"] == "expired"
    assert 590 < certificate["duration_s"] < 630


@pytest.mark.parametrize("stage", ["ensure_image", "create", "start"])
def test_a_start_that_fails_at_the_engine_tells_its_step(tmp_path: Path, stage: str) -> None:
    async def scenario(simulation: Simulation) -> None:
        simulation.engine.faults.fail_next[stage] = [EngineError(Failure.UNKNOWN, "scripted trouble")]
        await simulation.say("chat")
        await simulation.answered()

    (certificate,) = play(tmp_path, scenario)
    step = {"ensure_image": "preparing it", "create": "creating it", "start": "starting it"}[stage]
    assert certificate["cause"] == "start-failed"
    assert certificate["text"] == f"It did not come up; the step that failed was {step}: scripted trouble."


def test_a_start_that_ends_before_its_hello_tells_how_it_ended(tmp_path: Path) -> None:
    async def scenario(simulation: Simulation) -> None:
        simulation.engine.faults.die_after_start = True
        await simulation.say("chat")
        await simulation.until_phase("chat", "backoff")
        simulation.engine.faults.die_after_start = False
        await simulation.answered()

    (certificate, *_) = play(tmp_path, scenario)
    assert certificate["cause"] == "start-failed"
    assert "its hello" in certificate["text"]
    assert certificate["text"].endswith("It exited with code 1.")


def test_one_that_says_nothing_at_all_is_ended_at_its_deadline(tmp_path: Path) -> None:
    async def scenario(simulation: Simulation) -> None:
        simulation.script.says_hello = False
        began = anyio.current_time()
        await simulation.say("chat")
        await simulation.until_phase("chat", "backoff", within_s=100)
        assert 20 <= anyio.current_time() - began < 22
        simulation.script.says_hello = True
        await simulation.answered()

    (certificate, *_) = play(tmp_path, scenario)
    assert certificate["cause"] == "start-failed"
    assert "without its hello" in certificate["text"]


def test_one_that_ends_while_it_is_frozen_and_of_which_nobody_hears_is_found_by_a_slow_look(tmp_path: Path) -> None:
    async def scenario(simulation: Simulation) -> None:
        await live(simulation)
        await simulation.until_phase("chat", "frozen")
        simulation.engine.faults.drop_events = True
        container = simulation.container("chat")
        assert container is not None
        assert container.process is not None
        container.process.exit(7)
        await anyio.sleep(5)
        assert simulation.phase("chat") == "frozen", "nobody has told"
        await simulation.host.reconciler.sweep()
        assert simulation.phase("chat") == "absent"

    (certificate,) = play(tmp_path, scenario, quiet_before_freeze_s=10)
    assert (certificate["cause"], certificate["exit_code"]) == ("exited", 7)


def test_a_gateway_that_cannot_be_opened_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Gateway.open

    async def scenario(simulation: Simulation) -> None:
        async def broken(*_: object, **__: object) -> object:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Gateway, "open", broken)
        await simulation.say("chat")
        await simulation.until_phase("chat", "backoff")
        monkeypatch.setattr(Gateway, "open", usual)
        await simulation.answered()

    (certificate, *_) = play(tmp_path, scenario)
    assert certificate["cause"] == "gateway-down"
    assert "the gateway" in certificate["text"]


def test_the_machine_counts_as_restarted_for_one_host_only(tmp_path: Path) -> None:
    async def scenario(simulation: Simulation) -> None:
        await machine_restarted(simulation)
        assert not machine.was_restarted(simulation.home.machine_file)

    play(tmp_path, scenario)


class Disk:
    """Takes no certificate while it is full."""

    def __init__(self) -> None:
        self.is_full = True
        self._keep = certificates.keep

    async def keep(self, *arguments: Any) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await self._keep(*arguments)


def test_a_certificate_that_a_full_disk_did_not_take_is_written_when_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    monkeypatch.setattr(certificates, "keep", disk.keep)

    async def scenario(simulation: Simulation) -> None:
        session_id = simulation.chats["chat"][1]
        session = await simulation.session(session_id)
        await stopped_by_a_person(simulation)
        assert await simulation.host.runner.certificates(session) == []
        disk.is_full = False
        await simulation.host.reconciler.sweep()
        assert len(await simulation.host.runner.certificates(session)) > 1

    found = play(tmp_path, scenario)
    assert found[0]["cause"] == "stopped"


def test_a_certificate_that_died_with_its_host_is_made_up_for_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    monkeypatch.setattr(certificates, "keep", disk.keep)

    async def scenario(simulation: Simulation) -> None:
        await stopped_by_a_person(simulation)
        await live(simulation)
        await simulation.crash()
        disk.is_full = False
        await simulation.start()
        await simulation.until_phase("chat", "ready")

    found = play(tmp_path, scenario)
    assert [(each["generation"], each["cause"]) for each in found] == [(2, "host-died")]


def test_an_end_that_was_not_noted_when_its_host_died_is_noted_by_the_next_one(tmp_path: Path) -> None:
    async def scenario(simulation: Simulation) -> None:
        key = simulation.chats["chat"][1]

        await simulation.leave()
        with closing(sqlite3.connect(simulation.home.database)) as connection, connection:
            connection.execute("DELETE FROM deaths")
            sessions.unsettle(connection, key)
        await simulation.start()
        noted = await simulation.host.store.read(lambda connection: deaths.newest(connection, limit=10))
        assert [(each.session, each.generation, each.cause) for each in noted] == [(key, 1, "stopped")]

    play(tmp_path, scenario)


@pytest.mark.parametrize("next_look", ["sweep", "next host"])
def test_an_end_that_a_full_disk_keeps_out_of_the_index_at_a_start_is_noted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, next_look: str
) -> None:
    def full(*_arguments: object, **_named: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def scenario(simulation: Simulation) -> None:
        key = simulation.chats["chat"][1]
        await simulation.leave()
        with closing(sqlite3.connect(simulation.home.database)) as connection, connection:
            connection.execute("DELETE FROM deaths")
            sessions.unsettle(connection, key)
        with monkeypatch.context() as patched:
            patched.setattr(deaths, "insert", full)
            await simulation.start()
        if next_look == "sweep":
            await simulation.host.reconciler.sweep()
        else:
            # All that people wait for is done meanwhile, and the session does not count as settled for it.
            await stopped_by_a_person(simulation)
            await anyio.sleep(1)
            await simulation.crash()
            await simulation.start()
        noted = await simulation.host.store.read(lambda connection: deaths.newest(connection, limit=10))
        assert 1 in {each.generation for each in noted}
        assert await simulation.host.store.read(sessions.unsettled_count) == 0

    play(tmp_path, scenario)


def test_what_vanished_is_certified_though_nothing_waits_and_the_engine_could_not_be_asked_at_the_start(
    tmp_path: Path,
) -> None:
    async def scenario(simulation: Simulation) -> None:
        container = await live(simulation)
        await simulation.crash()
        assert container.process is not None
        container.process.exit(137)
        simulation.machine.containers.clear()
        simulation.engine.faults.unavailable = True
        await simulation.start()
        simulation.engine.faults.unavailable = False
        await simulation.host.reconciler.sweep()

    (certificate,) = play(tmp_path, scenario)
    assert certificate["generation"] == 2


def test_what_vanished_before_a_host_could_ask_its_engine_is_certified_though_its_session_waits(tmp_path: Path) -> None:
    async def scenario(simulation: Simulation) -> None:
        container = await live(simulation)
        await simulation.leave()
        assert container.process is not None
        container.process.exit(137)
        simulation.machine.containers.clear()
        simulation.engine.faults.unavailable = True
        await simulation.start()
        await simulation.say("chat")
        await anyio.sleep(1)
        simulation.engine.faults.unavailable = False
        await simulation.answered()

    found = play(tmp_path, scenario)
    assert found[0]["generation"] == 2
