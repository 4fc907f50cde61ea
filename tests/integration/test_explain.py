"""`crab explain` tells what a container really has: from the spec that the next one is made of, with nothing made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hermitcrab.app import Host
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.bubblewrap_arguments import etc_files
from hermitcrab.model.container_config import AdditionalMount, ContainerConfig, GroupLimits, McpServer
from hermitcrab.store import container_configs, destinations
from hermitcrab.testing.intruder import Intruder, intrude
from hermitcrab.testing.scratch import REPLY_WITHIN_S, host_on

every_engine = pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])


async def explained(host: Host, intruder: Intruder, *, in_session: bool = True) -> dict[str, Any]:
    granted = await host.store.read(lambda connection: destinations.for_agent_group(connection, intruder.group.id))
    return await host.explainer.explain(intruder.group, intruder.session if in_session else None, granted)


def options_of(engine: str, need_engine: Callable[[str], Mapping[str, str]]) -> dict[str, Any]:
    prefix = "HERMITCRAB__CONTAINERS__"
    return {
        key.removeprefix(prefix).lower(): value
        for key, value in need_engine(engine).items()
        if key != f"{prefix}ENGINE"
    }


@every_engine
async def test_what_is_explained_is_what_is_made(
    engine: str, need_engine: Callable[[str], Mapping[str, str]], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options_of(engine, need_engine)) as (host, _):
        intruder = await intrude(host, "chat")
        before = sorted(str(each) for each in host.home.path.rglob("*"))
        found = await explained(host, intruder)
        # The runner's source apart, which every host publishes once.
        after = [each for each in host.home.path.rglob("*") if "runner" not in str(each)]
        assert set(map(str, after)) <= set(before)
        assert (await host.runner.wake(intruder.session)).kind == "started"
        (view,) = await host.engine.containers()
        assert view.spec_hash == found["spec_hash"]
        inside = await host.runner.ask(intruder.session.id, "evidence", {}, timeout_s=REPLY_WITHIN_S)
        writable = {each["container"] for each in found["mounts"] if each["mode"] == "read-write"}
        assert writable <= set(inside["writable_mounts"])
        read_only = {each["container"] for each in found["mounts"] if each["mode"] == "read-only"}
        assert read_only <= set(inside["readonly_mounts"])
        if engine == "bubblewrap":
            # The root itself, its devices and the few files that are made for it tell nothing of the host.
            own = {"/", "/dev", *etc_files(0, 0, "")}
            assert set(inside["readonly_mounts"]) <= read_only | own, "nothing of the host's is there untold"
        assert found["unrealized"] == (await host.engine.capabilities()).unrealized_for("standard")


async def test_every_part_of_a_config_is_told_and_so_is_what_was_refused(
    need_engine: Callable[[str], Mapping[str, str]], tmp_path: Path
) -> None:
    need_engine("bubblewrap")
    (tmp_path / "projects/code").mkdir(parents=True)
    async with host_on(tmp_path / "home", "bubblewrap") as (host, _):
        host.home.mounts_file.write_text(f'[[roots]]\npath = "{tmp_path / "projects"}"\nwrite = true\n')
        host.home.mounts_file.chmod(0o600)
        intruder = await intrude(host, "chat")
        config = ContainerConfig(
            provider="echo",
            hardening="strict",
            skills=("memory", "vanished"),
            limits=GroupLimits(memory_mb=512, pids=999),
            mcp_servers={"tools": McpServer(command="tool-server", args=("--fast",))},
            additional_mounts=(
                AdditionalMount(host_path=str(tmp_path / "projects/code"), read_only=False),
                AdditionalMount(host_path=str(tmp_path / "home")),
            ),
        )
        await host.store.write(lambda connection: container_configs.put(connection, intruder.group.id, config))
        found = await explained(host, intruder, in_session=False)
        assert found["session"] is None
        assert (found["runs"]["skills"], found["runs"]["missing_skills"]) == (["memory"], ["vanished"])
        assert found["runs"]["mcp_servers"] == {"tools": "tool-server --fast"}
        (extra,) = [each for each in found["mounts"] if each["class"] == "extra"]
        assert (extra["container"], extra["mode"]) == ("/workspace/extra/code", "read-only")
        assert "hardening 'strict' lets none write" in extra["why"]
        (refused,) = found["refused_mounts"]
        assert refused["host"] == str(tmp_path / "home")
        assert "Hermitcrab's home" in refused["reason"] or "none of the allowed roots" in refused["reason"]
        assert (found["limits"]["memory_bytes"], found["limits"]["pids"]) == (512 << 20, 128)
        assert found["hardening"]["profile"] == "strict"
        assert {"gvisor", "noexec-tmp"} <= found["unrealized"].keys()
        assert found["reaches"]["gateway"] == [{"path": "/anthropic", "leads_to": "https://api.anthropic.com"}]
        assert "HERMITCRAB_LINK" in found["environment"]
        assert not (host.home.sessions / intruder.group.id).exists()


async def test_a_container_that_could_not_be_made_is_not_explained_away(
    need_engine: Callable[[str], Mapping[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, _):
        intruder = await intrude(host, "chat")
        # Made up; it opens nothing.
        monkeypatch.setitem(host.starter._runner_env, "HARMLESS", "ghp_0123456789abcdefghijABCDEFGHIJ")
        with pytest.raises(EngineError) as caught:
            await explained(host, intruder)
        assert caught.value.failure is Failure.DENIED_BY_POLICY
        assert "HARMLESS" in caught.value.message
        outcome = await host.runner.wake(intruder.session)
        assert (outcome.kind, outcome.failure) == ("failed", Failure.DENIED_BY_POLICY)
        assert await host.engine.containers() == []
