"""`crab groups config` over the real methods and a real store; only containers are made up."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hermitcrab.cli.main import build_app
from hermitcrab.cli.skills import list_skills
from hermitcrab.control.client import ControlClient
from hermitcrab.control.config_methods import ConfigMethods
from hermitcrab.control.host import ControlledHost
from hermitcrab.control.server import serving
from hermitcrab.errors import BadInputError, ConfigError, ConflictError, NotAgreedError, NotFoundError
from hermitcrab.groups.creation import create_group
from hermitcrab.groups.images import GroupImages
from hermitcrab.logic.container_config import KEYS
from hermitcrab.model.container_config import ContainerConfig, McpServer
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import SessionId
from hermitcrab.model.sessions import Session
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import AgentSettings, Settings
from hermitcrab.store import container_configs, sessions
from hermitcrab.store.database import Store


class Scene:
    def __init__(self, home: Home, store: Store, group: AgentGroup, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.store, self.group, self._capsys = home, store, group, capsys
        self.live: list[SimpleNamespace] = []
        self.reconsidered: list[str] = []

    async def crab(self, *words: str) -> str:
        """What the command prints."""
        command, bound, _ = build_app().parse_args(["groups", "config", *words], print_error=False, exit_on_error=False)
        await command(*bound.args, **bound.kwargs, home=self.home)
        return self._capsys.readouterr().out

    async def config(self) -> ContainerConfig:
        return await self.store.read(lambda connection: container_configs.of(connection, self.group.id))


@asynccontextmanager
async def on_stage(path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Scene]:
    home = Home(path / "home")
    home.prepare()
    async with Store.open(home.database) as store:
        scene = Scene(home, store, await create_group(store, folder="main", name="Main"), capsys)
        settings = Settings(agents=AgentSettings(model="sonnet"))
        host = SimpleNamespace(
            home=home,
            store=store,
            settings=settings,
            images=GroupImages(store, home, settings, engine="docker", default=None),
            runner=SimpleNamespace(views=lambda: scene.live, reconsider=scene.reconsidered.append),
        )
        config = ConfigMethods(cast("ControlledHost", host))
        methods = {
            "groups.config.show": config.show,
            "groups.config.change": config.change,
            "groups.config.propose": config.propose,
        }
        async with serving(home.run, methods):
            yield scene


def skill(place: Path, name: str) -> None:
    (place / name).mkdir(parents=True)
    (place / name / "SKILL.md").write_text(f"---\nname: {name}\ndescription: For tests.\n---\n")


async def test_a_group_shows_what_it_decides_and_what_the_installation_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        await scene.crab("set", "main", "effort", "high")
        rows = {line.split()[0]: line.split()[1:] for line in (await scene.crab("show", "main")).splitlines()}
        assert rows["effort"] == ["high", "group"]
        assert rows["model"] == ["sonnet", "installation"]
        assert rows["skills"] == ["all", "default"]
        assert rows["limits.pids"] == ["256", "installation"]
        shown = json.loads(await scene.crab("show", "main", "--json"))
        assert tuple(shown) == KEYS
        assert (shown["effort"], shown["model"]) == ("high", None)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["model", "opus"], "model", "opus"),
        (["assistant_name", "42"], "assistant_name", "42"),
        (["max_messages_per_prompt", "3"], "max_messages_per_prompt", 3),
        (["foreign_command", "bun", "run", "--yes", "--", "-v"], "foreign_command", ("bun", "run", "-v")),
        (["skills", "[]"], "skills", ()),
        (["hardening", "strict"], "hardening", "strict"),
    ],
)
async def test_values_are_meant_as_their_key_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], key: str, value: object
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        told = await scene.crab("set", "main", *words)
        assert "takes effect when a container of it next starts" in told
        assert getattr(await scene.config(), key) == value
        await scene.crab("unset", "main", key, "--yes")
        assert await scene.config() == ContainerConfig()


async def test_all_is_a_word_of_its_own_among_skills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        await scene.crab("set", "main", "skills", "[]")
        await scene.crab("set", "main", "skills", "all")
        assert (await scene.config()).skills == "all"


async def test_parts_of_a_config_are_set_and_unset_by_dotted_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        await scene.crab("set", "main", "limits.cpus", "0.5")
        await scene.crab("set", "main", "packages.apt", "ffmpeg", "jq", "--yes")
        await scene.crab("set", "main", "mcp_servers.files", '{"command": "python3", "args": ["-m", "files"]}', "--yes")
        await scene.crab("set", "main", "mcp_servers.files.env.LEVEL", "debug", "--yes")
        config = await scene.config()
        assert (config.limits.cpus, config.packages.apt) == (0.5, ("ffmpeg", "jq"))
        assert config.mcp_servers == {
            "files": McpServer(command="python3", args=("-m", "files"), env={"LEVEL": "debug"})
        }
        assert "mcp_servers.files" in await scene.crab("show", "main")
        await scene.crab("unset", "main", "mcp_servers.files")
        assert (await scene.config()).mcp_servers == {}


async def test_a_whole_config_goes_out_and_in_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        await scene.crab("set", "main", "model", "opus")
        before = await scene.config()
        (tmp_path / "config.json").write_text(await scene.crab("show", "main", "--json"))
        await scene.crab("unset", "main", "model")
        await scene.crab("import", "main", str(tmp_path / "config.json"))
        assert await scene.config() == before
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b'{"effort": "low"}')))
        printed = json.loads(await scene.crab("import", "main", "--json", "--", "-"))
        assert printed["effort"] == "low"
        assert await scene.config() == ContainerConfig(effort="low")


async def test_a_foreign_runner_has_providers_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        await scene.crab("set", "main", "--yes", "foreign_command", "bun", "run", "/app/src/index.ts")
        await scene.crab("set", "main", "provider", "mock")
        assert (await scene.config()).provider == "mock"
        with pytest.raises(BadInputError) as caught:
            await scene.crab("unset", "main", "foreign_command")
        assert "no provider 'mock'" in caught.value.message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["set", "main", "modle", "x"], "no key 'modle'"),
        (["set", "main", "runner", "foreign"], "no key 'runner'"),
        (["set", "main", "model"], "needs a value"),
        (["set", "main", "model", "a", "b"], "takes one value"),
        (["set", "main", "limits.pids", "many"], "no JSON"),
        (["set", "main", "limits.pids", "1"], "limits.pids"),
        (["set", "main", "provider", "nope"], "no provider 'nope'"),
        (["set", "main", "skills", "nope"], "no skill 'nope'"),
        (["set", "main", "skills", "../x"], "skills.0"),
        (["set", "main", "skills", "--", "-v"], "skills.0"),
        (["set", "main", "mcp_servers.x.env.TOKEN", "ghp_" + "abcdefghij0123456789"], "credential"),  # made up
        (["set", "main", "mcp_servers.x", "[" * 100_000], "no JSON"),
        (["import", "main", "/nonexistent.json"], "cannot be read"),
        (["import", "main", "/dev/zero"], "longer than"),
    ],
)
async def test_what_cannot_be_used_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        await scene.crab("set", "main", "effort", "high")
        before = await scene.config()
        with pytest.raises(BadInputError) as caught:
            await scene.crab(*words)
        assert told in caught.value.message
        assert await scene.config() == before


async def test_a_change_that_changes_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        scene.live = [SimpleNamespace(session_id="s-main", phase="ready")]
        for words in (["set", "main", "skills", "all"], ["unset", "main", "model"]):
            assert await scene.crab(*words) == "Group main is like that already.\n"


async def test_a_server_that_is_added_or_removed_is_told_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        told = await scene.crab("set", "main", "mcp_servers.files", '{"command": "python3"}', "--yes")
        assert [line.split(":")[0] for line in told.splitlines() if "->" in line] == ["  mcp_servers.files"]
        assert "(none) -> {" in told
        assert "-> (none)" in await scene.crab("unset", "main", "mcp_servers.files")


async def test_packages_are_told_to_need_a_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        assert "crab image build --group main" in await scene.crab("set", "main", "packages.apt", "jq", "--yes")
        assert "The packages are in no image yet: crab image build --group main" in await scene.crab("show", "main")
        assert "image build" in await scene.crab("set", "main", "image", "other:1", "--yes"), "it is made from that one"
        assert "image build" not in await scene.crab("unset", "main", "packages.apt")
        assert "no image" not in await scene.crab("show", "main")


WIDER = ["set", "main", "packages.apt", "ffmpeg"]


async def test_what_gives_agents_more_is_shown_and_needs_a_yes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        for words in (WIDER, [*WIDER, "--json"]):
            with pytest.raises(NotAgreedError, match="apt package ffmpeg") as caught:
                await scene.crab(*words)
            assert "--yes" in caught.value.hint
        assert await scene.config() == ContainerConfig()
        answers = iter(["", "n", "yes please", "y"])
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
        monkeypatch.setattr("builtins.input", lambda _: next(answers))
        for _ in range(3):
            capsys.readouterr()
            told = await scene.crab(*WIDER)
            assert 'packages.apt: [] -> ["ffmpeg"]' in told
            assert "! Their image gets the apt package ffmpeg" in told
            assert await scene.config() == ContainerConfig()
        assert scene.reconsidered == []
        assert "Changed group main" in await scene.crab(*WIDER)
        assert scene.reconsidered == [scene.group.id], "who was refused a container is tried again"
        assert (await scene.config()).packages.apt == ("ffmpeg",)
        assert "Changed group main" in await scene.crab("set", "main", "packages.apt", "[]"), "less needs no yes"


async def test_a_yes_is_to_the_change_that_was_shown_and_to_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with on_stage(tmp_path, capsys) as scene, ControlClient.connect(scene.home) as client:
        shown = await client.call("groups.config.propose", folder="main", set={"cli_scope": "global"})
        others: list[dict[str, Any]] = [
            {"set": {"cli_scope": "global"}},
            {"set": {"cli_scope": "global", "image": "other:1"}, "agreement": shown["agreement"]},
            {"config": {"additional_mounts": [{"host_path": "/srv"}]}, "agreement": shown["agreement"]},
            {"set": {"cli_scope": "global"}, "agreement": "yes"},
        ]
        for wish in others:
            with pytest.raises((NotAgreedError, ConflictError)):
                await client.call("groups.config.change", folder="main", **wish)
        await scene.crab("set", "main", "hardening", "strict")
        with pytest.raises(ConflictError, match="meanwhile"):
            await client.call(
                "groups.config.change", folder="main", set={"cli_scope": "global"}, agreement=shown["agreement"]
            )
        assert await scene.config() == ContainerConfig(hardening="strict")


async def test_a_mount_that_the_allow_list_refuses_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        mounts = json.dumps([{"host_path": str(tmp_path)}])
        told = await scene.crab("set", "main", "additional_mounts", mounts, "--yes")
        assert f"{tmp_path} will not be mounted" in told
        assert "will not be mounted" in await scene.crab("show", "main")
        assert "mounted" not in await scene.crab("set", "main", "additional_mounts", "[]")


@pytest.mark.parametrize("group", ["nobody", "../x", "-v", "a b", "x" * 5000])
async def test_a_group_that_there_is_not_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        with pytest.raises(NotFoundError):
            await scene.crab("show", "--", group)


async def test_skills_are_known_where_they_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        skill(scene.home.skills, "ours")
        skill(scene.home.group_skills("main"), "mine")
        skill(scene.home.group_skills("other"), "theirs")
        await scene.crab("set", "main", "skills", "ours", "mine")
        assert (await scene.config()).skills == ("ours", "mine")
        with pytest.raises(BadInputError, match="theirs"):
            await scene.crab("set", "main", "skills", "theirs")
        with pytest.raises(BadInputError, match="oars") as caught:
            await scene.crab("set", "main", "skills", "oars")
        assert "Did you mean ours?" in caught.value.hint


async def test_sessions_that_run_with_the_earlier_config_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with on_stage(tmp_path, capsys) as scene:
        other = await create_group(scene.store, folder="other")
        for key, group in (("s-main", scene.group), ("s-other", other), ("s-quiet", scene.group)):
            session = Session(id=SessionId(key), agent_group_id=group.id, messaging_group_id=None, thread_id=key)
            await scene.store.write(lambda connection, session=session: sessions.insert(connection, session))  # type: ignore[misc]
        scene.live = [
            SimpleNamespace(session_id="s-main", phase="ready"),
            SimpleNamespace(session_id="s-other", phase="ready"),
            SimpleNamespace(session_id="s-quiet", phase="absent"),
        ]
        told = await scene.crab("set", "main", "model", "opus")
        assert "s-main" in told
        assert "s-other" not in told
        assert "s-quiet" not in told


async def test_a_config_that_cannot_be_used_any_more_is_replaced_by_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with on_stage(tmp_path, capsys) as scene:

        def damage(connection: Any) -> None:
            connection.execute("UPDATE container_configs SET document = '{\"old\": 1}'")

        await scene.store.write(damage)
        with pytest.raises(ConfigError, match="old"):
            await scene.crab("show", "main")
        (tmp_path / "new.json").write_text("{}")
        await scene.crab("import", "main", str(tmp_path / "new.json"))
        assert await scene.config() == ContainerConfig()


@pytest.mark.parametrize("group", [None, "main"])
def test_skills_are_listed_with_the_place_where_they_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], group: str | None
) -> None:
    home = Home(tmp_path / "home")
    skill(home.skills, "ours")
    skill(home.group_skills("main"), "mine")
    list_skills(group=group, json=True, home=home)
    found = {each["skill"]: each for each in json.loads(capsys.readouterr().out)}
    assert (found["ours"]["from"], found["ours"]["description"]) == ("installation", "For tests.")
    assert found["memory"]["from"] == "shipped"
    assert ("mine" in found) == (group == "main")
    list_skills(group=group, home=home)
    assert "For tests." in capsys.readouterr().out


@pytest.mark.parametrize("group", ["../x", "-v", "a\0b", ""])
def test_skills_of_no_group_are_not_looked_for(tmp_path: Path, group: str) -> None:
    with pytest.raises(BadInputError):
        list_skills(group=group, home=Home(tmp_path))
