"""Family D, what a runner says: programs that speak on a session's link in place of the runner, and lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from hermitcrab.app import Host
from hermitcrab.containers.lifecycle.slot import Slot
from hermitcrab.containers.lifecycle.starting import Starter
from hermitcrab.model.container import ContainerSpec
from hermitcrab.model.ids import Generation, SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab.testing.intruder import LIAR, intrude, take_over, with_program
from hermitcrab.testing.scratch import add_chat, host_on, say

every_engine = pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])


async def first_certificate(host: Host, session: Session) -> dict[str, Any]:
    with anyio.fail_after(DEADLINE_S):
        while not (found := await host.runner.certificates(session)):  # noqa: ASYNC110  # nobody tells a test
            await anyio.sleep(0.02)
    return found[0]


BREAKS = """
for _ in range(20):
    try:
        link = dial()
        tell(greeting(), link)
        link.sendall(b"{no json\\n" * 3)
        while link.recv(65536):
            pass
    except OSError:
        pass
time.sleep(600)
"""


@every_engine
async def test_a_runner_that_breaks_the_protocol_again_and_again_is_ended(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host_on(tmp_path / "home", engine, stop_grace_s=0.1, **options) as (host, channel):
        intruder = await intrude(host, "liar")
        take_over(monkeypatch, host, LIAR + BREAKS, of=lambda session: session.id == intruder.session.id)
        await host.runner.wake(intruder.session)
        assert (await first_certificate(host, intruder.session))["cause"] == "broke-contract"
        _, address = await add_chat(host, "other")
        receipt = await say(host, address, "one", "hello")
        await channel.answer_to(receipt.row_ids[0])


COMES_BACK = """
while True:
    try:
        link = dial()
        tell(greeting(writable=["/tmp"]), link)
        while link.recv(65536):
            pass
    except OSError:
        pass
    time.sleep(0.05)
"""


@every_engine
async def test_one_that_was_taken_over_and_lies_at_its_hello_is_ended_for_that(
    engine: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = LIAR + "while first.fileno() >= 0 and threading.active_count() > 1: time.sleep(0.05)\n" + COMES_BACK
    prepare, foresee = Starter.prepare, Starter.foresee

    async def prepared(starter: Starter, slot: Slot, generation: Generation) -> ContainerSpec:
        return with_program(await prepare(starter, slot, generation), program)

    async def foreseen(starter: Starter, slots: Sequence[tuple[Slot, Generation]]) -> dict[SessionId, ContainerSpec]:
        return {each: with_program(spec, program) for each, spec in (await foresee(starter, slots)).items()}

    monkeypatch.setattr(Starter, "prepare", prepared)
    monkeypatch.setattr(Starter, "foresee", foreseen)
    async with host_on(tmp_path / "home", engine, keep=True, **options) as (host, _):
        intruder = await intrude(host, "liar")
        assert (await host.runner.wake(intruder.session)).kind == "started"
    async with host_on(tmp_path / "home", engine, stop_grace_s=0.1, **options) as (host, _):
        assert host.reconciled.adopted == 1
        certificate = await first_certificate(host, intruder.session)
        assert certificate["cause"] == "start-failed"
        assert certificate["text"].startswith("It was taken over from an earlier host, and could not be admitted: ")
        assert "/workspace" in certificate["text"]
