"""What a wake brings to a container: everything is looked up afresh, and each thing once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from hermitcrab.containers.lifecycle.slot import WakeOutcome
from hermitcrab.conversation.notices import Notices
from hermitcrab.errors import ConflictError, EngineError, Failure
from hermitcrab.groups.surroundings import GroupSurveyor
from hermitcrab.logic.spec import container_name
from hermitcrab.model.container import EngineEvent
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.groups import MessagingGroup, Wiring
from hermitcrab.model.ids import MessageId, MessagingGroupId, WiringId
from hermitcrab.model.messages import InboundRow
from hermitcrab.model.sessions import Session
from hermitcrab.store import container_configs, messaging_groups, wirings
from hermitcrab.testing.fake_engine import FakeEngine
from hermitcrab.testing.simulation import Simulation

Play = Callable[..., None]


def test_each_container_is_told_where_it_may_send_and_of_its_config_as_they_are_then(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await simulation.say("chat")
        await simulation.answered()
        session = await simulation.session(simulation.chats["chat"][1])
        await simulation.host.runner.kill(session.id)
        other = MessagingGroup(id=MessagingGroupId("mg-x"), channel_type="recording", platform_id="x", name="elsewhere")
        wiring = Wiring(
            id=WiringId("mga-x"),
            messaging_group_id=other.id,
            agent_group_id=session.agent_group_id,
            engage_mode="pattern",
            engage_pattern=".",
        )

        def change(connection: Any) -> None:
            messaging_groups.insert(connection, other)
            wirings.insert(connection, wiring)
            config = ContainerConfig(provider="echo", assistant_name="Crusty")
            container_configs.put(connection, session.agent_group_id, config)

        await simulation.host.store.write(change)
        await simulation.say("chat")
        await simulation.answered()
        before, after = [welcome for _, _, welcome in simulation.script.welcomed][-2:]
        names = [{each["name"] for each in welcome.destinations} for welcome in (before, after)]
        assert names[1] - names[0] == {"elsewhere"}
        assert (before.config["assistant_name"], after.config["assistant_name"]) == ("chat", "Crusty")
        assert before.routing is not None
        assert before.routing == after.routing

    play(scenario)


def test_what_a_provider_and_a_group_bring_is_computed_once_for_a_start(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Awaitable[Any]]:
        real = getattr(GroupSurveyor, name)

        async def count(*arguments: Any) -> Any:
            asked[name] += 1
            return await real(*arguments)

        return count

    for name in ("packages", "documents", "image"):
        monkeypatch.setattr(GroupSurveyor, name, counted(name))

    async def scenario(simulation: Simulation) -> None:
        asked.clear()
        await simulation.say("chat")
        await simulation.answered()
        assert asked == {"packages": 1, "documents": 1, "image": 1}

    play(scenario)


def test_a_wake_of_a_live_container_changes_nothing_and_hands_over_what_waits(play: Play) -> None:
    async def scenario(simulation: Simulation) -> None:
        await simulation.say("chat")
        await simulation.answered()
        await simulation.until_phase("chat", "ready")
        session = await simulation.session(simulation.chats["chat"][1])
        before, calls = simulation.container("chat"), Counter(simulation.engine.calls)
        # A row that nobody has told the runner of.
        row = InboundRow(
            id=MessageId("quiet"), kind="chat", timestamp="2026-01-01T00:00:00.000Z", content={"text": "in the mailbox"}
        )
        await simulation.host.mailboxes.run(session, lambda mailbox: mailbox.accept(row))
        for _ in range(5):
            assert await simulation.host.runner.wake(session) == WakeOutcome(kind="live")
        await simulation.answered()
        assert simulation.script.received[-1][2] == "in the mailbox"
        assert simulation.container("chat") is before
        assert simulation.engine.calls["create"] == calls["create"]
        assert simulation.engine.calls["start"] == calls["start"]

    play(scenario)


@pytest.mark.parametrize(
    ("failure", "is_tried_again"),
    [
        (Failure.IMAGE_UNAVAILABLE, True),
        (Failure.RESOURCES_EXHAUSTED, True),
        (Failure.SPEC_INVALID, False),
        (Failure.DENIED_BY_POLICY, False),
        (Failure.UNKNOWN, True),
    ],
)
@pytest.mark.parametrize("step", ["ensure_image", "create", "start"])
def test_a_wake_that_fails_says_why_and_whether_it_is_tried_again(
    play: Play, step: str, failure: Failure, *, is_tried_again: bool
) -> None:
    async def scenario(simulation: Simulation) -> None:
        session = await simulation.session(simulation.chats["chat"][1])
        simulation.engine.faults.fail_next[step] = [EngineError(failure, "scripted trouble")]
        outcome = await simulation.host.runner.wake(session)
        assert (outcome.kind, outcome.failure) == ("failed", failure)
        assert "scripted trouble" in outcome.text
        assert (outcome.retry_in_s is not None) == is_tried_again
        assert simulation.phase("chat") == ("backoff" if is_tried_again else "quarantined")

    play(scenario)


def test_no_agent_group_is_gone_while_it_has_sessions(play: Play) -> None:
    """So that no wake can be for one; of a session that is gone itself, see the attacks on names."""

    async def scenario(simulation: Simulation) -> None:
        session = await simulation.session(simulation.chats["chat"][1])
        with pytest.raises(ConflictError, match="FOREIGN KEY"):
            await simulation.host.store.write(
                lambda connection: connection.execute(
                    "DELETE FROM agent_groups WHERE id = ?", (session.agent_group_id,)
                )
            )

    play(scenario)


def test_a_retry_that_is_due_while_the_chat_is_still_told_of_the_failure_is_not_lost(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = Notices.trouble

    async def tell_slowly(notices: Notices, session: Session, text: str) -> None:
        await anyio.sleep(60)  # As with a disk that is busy.
        await tell(notices, session, text)

    monkeypatch.setattr(Notices, "trouble", tell_slowly)

    async def scenario(simulation: Simulation) -> None:
        trouble = [EngineError(Failure.UNKNOWN, "scripted trouble") for _ in range(3)]
        simulation.engine.faults.fail_next["start"] = trouble
        await simulation.say("chat")
        await simulation.answered()
        assert trouble == []

    play(scenario)


def test_a_container_that_ends_before_its_start_is_answered_is_not_waited_for(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = FakeEngine.start

    async def slow_to_answer(engine: FakeEngine, name: str) -> None:
        await start(engine, name)
        engine.process(name).exit(3)
        await anyio.sleep(5)

    async def scenario(simulation: Simulation) -> None:
        session = await simulation.session(simulation.chats["chat"][1])
        began = anyio.current_time()
        with monkeypatch.context() as patched:
            patched.setattr(FakeEngine, "start", slow_to_answer)
            outcome = await simulation.host.runner.wake(session)
        assert "ended before its hello" in outcome.text
        assert anyio.current_time() - began < 10  # in virtual time, and a hello has longer

    play(scenario)


def test_a_slow_answer_about_an_earlier_container_ends_no_later_start(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(simulation: Simulation) -> None:
        session_id = simulation.chats["chat"][1]
        inspect, asked, go_on = FakeEngine.inspect, anyio.Event(), anyio.Event()

        async def slow(engine: FakeEngine, name: str) -> object:
            if not asked.is_set():
                asked.set()
                await go_on.wait()
            return await inspect(engine, name)

        simulation.script.says_hello = False
        name = container_name(simulation.host.installation, session_id)
        await simulation.say("chat")
        await simulation.until_phase("chat", "starting")
        with monkeypatch.context() as patched:
            patched.setattr(FakeEngine, "inspect", slow)
            simulation.engine.tell(EngineEvent(kind="ended", name=name))
            await asked.wait()
            await simulation.until_phase("chat", "backoff")
            await simulation.until_phase("chat", "starting")
            go_on.set()
            simulation.script.says_hello = True
            simulation.runners.wake_up()
            await simulation.answered()
        certificates = await simulation.host.runner.certificates(await simulation.session(session_id))
        assert [each["generation"] for each in certificates if each["cause"] == "start-failed"] == [2]

    play(scenario)
