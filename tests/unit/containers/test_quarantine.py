"""A message that ends container after container is set aside, on a simulated host in virtual time."""

from __future__ import annotations

from pathlib import Path

import anyio

from hermitcrab.mailbox.mailbox import Mailbox
from hermitcrab.model.ids import MessageId
from hermitcrab.testing import virtual_time
from hermitcrab.testing.simulation import Simulation


def test_it_is_set_aside_with_a_notice_the_others_go_on_and_a_person_lets_it_out(tmp_path: Path) -> None:
    async def whole() -> None:
        simulation = Simulation(tmp_path, quarantine_after=3)
        await simulation.start()
        session_id = await simulation.add_session("chat")
        simulation.script.crashes_on = "poison"
        poison = await simulation.say("chat", "poison")
        other = await simulation.say("chat", "harmless")
        await simulation.answered(within_s=3000)
        session = await simulation.session(session_id)
        mailbox = simulation.host.mailboxes
        with anyio.fail_after(60):
            _, notice = await simulation.channel.answer_to(poison)
            _, answer = await simulation.channel.answer_to(other)
        assert "3 containers ended the same way (exited)" in notice.content["text"]
        assert f"crab sessions release {session_id} {poison}" in notice.content["text"]
        assert answer.content["text"] == f"Echo: {other}"
        (entry,) = await mailbox.run(session, lambda each: each.entries("quarantined", 10))
        assert (entry.id, entry.attempts) == (poison, 3)
        simulation.script.crashes_on = None
        simulation.channel.delivered.clear()
        assert await mailbox.run(session, lambda each: each.release(MessageId(poison)))
        simulation.host.runner.request(session)
        with anyio.fail_after(60):
            _, answer = await simulation.channel.answer_to(poison)
        assert answer.content["text"] == f"Echo: {poison}"
        assert (await mailbox.run(session, Mailbox.counts)).quarantined == 0
        await simulation.stop()

    virtual_time.run(whole)


def test_one_that_hangs_while_it_is_handed_one_message_after_the_other_is_ended(tmp_path: Path) -> None:
    async def whole() -> None:
        simulation = Simulation(tmp_path, quarantine_after=100)
        await simulation.start()
        await simulation.add_session("chat")
        script = simulation.script
        script.crashes_on = "poison"
        await simulation.say("chat", "poison")
        await simulation.say("chat", "waits behind it")
        await anyio.sleep(5)  # Some containers have ended by then, and the next is handed one message at a time.
        script.crashes_on, script.beats, script.answers = None, False, False
        await simulation.until_phase("chat", "ready")
        hung = simulation.container("chat")
        assert hung is not None
        with anyio.fail_after(120):
            while hung.runs:  # noqa: ASYNC110  # virtual time
                await anyio.sleep(1)
        script.beats = script.answers = True
        await simulation.answered()
        await simulation.stop()

    virtual_time.run(whole)


def test_ends_that_somebody_wanted_count_against_no_message(tmp_path: Path) -> None:
    async def whole() -> None:
        simulation = Simulation(tmp_path, quarantine_after=2, drain_within_s=0)
        await simulation.start()
        session_id = await simulation.add_session("chat")
        simulation.script.answers = False
        key = await simulation.say("chat", "it takes long")
        for _ in range(6):
            await simulation.until_phase("chat", "ready")
            await anyio.sleep(10)
            await simulation.host.runner.kill(session_id)
            await simulation.host.runner.wake(await simulation.session(session_id))
        simulation.script.answers = True
        simulation.runners.wake_up()
        with anyio.fail_after(60):
            _, answer = await simulation.channel.answer_to(key)
        assert answer.content["text"] == f"Echo: {key}"
        await simulation.stop()

    virtual_time.run(whole)
