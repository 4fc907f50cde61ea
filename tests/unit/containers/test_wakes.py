"""What a wake brings to a container: everything is looked up afresh, and each thing once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hermitcrab.groups.surroundings import GroupSurveyor
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.groups import MessagingGroup, Wiring
from hermitcrab.model.ids import MessagingGroupId, WiringId
from hermitcrab.store import container_configs, messaging_groups, wirings
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
