"""Family A: an agent that would like its group's config, skills and instructions to be others than they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hermitcrab.errors import BadInputError
from hermitcrab.groups.configuration import Configurator
from hermitcrab.groups.skills import SkillShelf
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.store import container_configs
from hermitcrab.testing.intruder import intrude
from hermitcrab.testing.scratch import host_on

every_engine = pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])
pytestmark = pytest.mark.timeout(120)

READ = """
def tree(top):
    return {path[len(top):]: open(path).read() for folder, _, names in os.walk(top) for name in names for path in [folder + "/" + name]}

agent = "/workspace/agent/"
answer({
    "config": open(agent + "container.json").read(),
    "entry": open(agent + "CLAUDE.md").read(),
    "fragments": tree(agent + ".claude-fragments"),
    "skills": tree("/app/skills"),
    "of the harness": tree(os.environ["HOME"] + "/.claude/skills"),
    "memory": open(agent + "CLAUDE.local.md").read(),
})
"""

WISHES = """
wish = b'{"image": "evil", "privileged": true, "network": "host", "additional_mounts": [{"host_path": "/"}], "provider": "evil"}'
for folder in ("/workspace/", "/workspace/agent/", os.environ["HOME"] + "/.claude/"):
    for name in ("container.json", "config.json", "hermitcrab.toml", "mounts.toml", ".mcp.json", "hermitcrab.db"):
        attempt(write, folder + name, wish)
    for place in ("skills", "group-skills", "group-skills/chat", ".claude/skills", ".claude-fragments"):
        attempt(os.makedirs, folder + place + "/planted")
        attempt(write, folder + place + "/planted/SKILL.md", b"---\\nname: planted\\n---")
        attempt(write, folder + place + "/planted/instructions.md", b"PLANTED")
        attempt(os.symlink, "/etc", folder + place + "/linked")
write("/workspace/agent/CLAUDE.local.md", b"what the agent learned")
inside = [os.environ["HOME"] + "/.claude/skills", "/app/skills", "/app/skills/memory", "/workspace/agent/.claude-fragments"]
answer({
    "written": [attempt(write, each + "/planted") for each in inside],
    "put aside": [attempt(os.rename, each, "/workspace/aside") for each in inside],
    "replaced": attempt(os.symlink, "/workspace/agent/skills", inside[0] + "/planted"),
})
"""


@every_engine
async def test_nothing_that_an_agent_writes_changes_its_config_its_skills_or_its_instructions(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (host, _):
        intruder = await intrude(host, "chat")
        spec = (await intruder.spec("")).spec_hash
        before = await intruder.ask(READ)
        assert before["memory"] == ""
        assert before["of the harness"] == before["skills"] != {}
        found = await intruder.ask(WISHES)
        assert "done" not in [*found["written"], *found["put aside"], found["replaced"]]
        after = await intruder.ask(READ)
        assert after == {**before, "memory": "what the agent learned"}
        assert (await intruder.spec("")).spec_hash == spec
        stored = await host.store.read(lambda connection: container_configs.of(connection, intruder.group.id))
        assert stored == ContainerConfig()


async def test_a_group_sees_nothing_of_another_groups_config_and_skills(tmp_path: Path, need_engine: Any) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, _):
        other = await intrude(host, "other")
        configurator = Configurator(host.store, SkillShelf(host.home))
        await configurator.replace(other.group, {"mcp_servers": {"x": {"command": "CANARY-1"}}})
        skill = host.home.group_skills("other") / "theirs"
        skill.mkdir(parents=True)
        (skill / "SKILL.md").write_text("CANARY-2")
        assert "CANARY" in str(await other.ask(READ))
        intruder = await intrude(host, "chat")
        assert "CANARY" not in str(await intruder.ask(READ))
        search = "answer(subprocess.run(['grep', '-rlsI', 'CANARY-[12]', '/workspace', '/app', '/home', '/run', '/opt', '/etc'], capture_output=True, text=True).stdout)"
        assert await intruder.ask(search) == ""


HOSTILE = [
    "../x",
    "../../etc",
    "/etc",
    "-v",
    "--privileged",
    "a b",
    "a;id",
    "a\nb",
    "a\0b",
    ".",
    "..",
    "",
    "x" * 300,
    "\u0430bc",
]


async def test_hostile_names_get_into_no_config(tmp_path: Path, need_engine: Any) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, _):
        intruder = await intrude(host, "chat")
        configurator = Configurator(host.store, SkillShelf(host.home))
        for name in HOSTILE:
            for document in (
                {"skills": [name]},
                {"provider": name},
                {"mcp_servers": {name: {"command": "x"}}},
                {"mcp_servers": {"x": {"command": "x", "env": {name: "y"}}}},
                {"additional_mounts": [{"host_path": "/srv", "name": name}]},
                {"packages": {"apt": [name]}},
                {"packages": {"npm": [name]}},
                {"packages": {"pip": [name]}},
                {name: True},
            ):
                with pytest.raises(BadInputError):
                    await configurator.replace(intruder.group, document)
        stored = await host.store.read(lambda connection: container_configs.of(connection, intruder.group.id))
        assert stored == ContainerConfig()
