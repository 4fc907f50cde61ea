"""Family A: an agent that would like its group's config, skills and instructions to be others than they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hermitcrab.errors import BadInputError, ConflictError, NotAgreedError
from hermitcrab.groups.configuration import Configurator, replacing
from hermitcrab.groups.skills import SkillShelf
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.store import container_configs
from hermitcrab.testing.intruder import intrude
from hermitcrab.testing.scratch import host_on

every_engine = pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])
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


ROADS = """
wish = {"image": "evil", "cli_scope": "global", "packages": {"apt": ["evil"]}, "additional_mounts": [{"host_path": "/"}]}
asked = ["config_change", "groups.config.change", "install_packages", "add_mcp_server", "self_mod", "approve", "system"]

def line(frame):
    return json.dumps(frame).encode() + b"\\n"

def told(frames):
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(10)
    link.connect("/run/hermitcrab/link.sock")
    link.sendall(line({"type": "hello", "protocol": 1, "generation": 1, "provider": "echo", "version": "x", "config": wish,
        "writable": ["/workspace", "/workspace/agent", "/tmp", os.environ["HOME"], os.environ["HOME"] + "/.claude"]}))
    answers = b""
    try:
        for frame in frames:
            link.sendall(line(frame))
        link.shutdown(socket.SHUT_WR)
        while data := link.recv(65536):
            answers += data
    except OSError:
        pass
    return answers.decode().splitlines()

rows = [
    {"type": "out", "id": f"wish-{number}", "kind": kind, "content": {"action": action, "config": wish, "approved": True}}
    for number, (kind, action) in enumerate((kind, action) for kind in ("system", "action", "chat") for action in asked)
]
unknown = [told([{"type": each, "id": "1", "method": each, "params": {"folder": "chat", "set": wish}}]) for each in asked]
heard = told([*rows, {"type": "set-state", "id": "s", "key": "config", "value": json.dumps(wish)}])

def reached(path):
    door = socket.socket(socket.AF_UNIX)
    door.connect(path)
    door.sendall(line({"id": 1, "method": "groups.config.change", "params": {"folder": "chat", "set": {"cli_scope": "global"}}}))

found = [os.path.join(folder, name) for top in ("/run", "/workspace", "/app", "/tmp", "/proc/1/root/run")
         for folder, _, names in os.walk(top) for name in names if name == "control.sock"]
def over_http(path):
    door = socket.socket(socket.AF_UNIX)
    door.settimeout(10)
    door.connect("/run/hermitcrab/gateway.sock")
    door.sendall(f"POST {path} HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
    return int(door.recv(200).split()[1])

answer({
    "greeted": "welcome" in heard[0] if heard else heard,
    "unknown": unknown,
    "found": found,
    "control": [attempt(reached, each) for each in ("/run/hermitcrab/control.sock", "\\0control.sock", "/run/control.sock")],
    "gateway": [over_http(each) for each in ("/groups.config.change", "/control", "http://localhost/control", "/anthropic/../control")],
})
"""


@every_engine
async def test_no_road_of_an_agents_leads_to_a_change_of_its_config(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (host, _):
        intruder = await intrude(host, "chat")
        async with intruder.doors_open():
            found = await intruder.ask(ROADS)
        assert found["greeted"], "it spoke as a runner does, and was heard"
        assert found["found"] == []
        assert "done" not in found["control"]
        assert all(status >= 400 for status in found["gateway"])
        assert not any("committed" in each for answers in found["unknown"] for each in answers[1:])
        stored = await host.store.read(lambda connection: container_configs.of(connection, intruder.group.id))
        assert stored == ContainerConfig()


@pytest.mark.parametrize("agreed", [None, "", "yes", "0" * 64])
async def test_whatever_gives_more_needs_the_agreement_of_who_was_shown_it(
    tmp_path: Path, need_engine: Any, agreed: str | None
) -> None:
    """Whoever asks inside the host, now or later, for whatever agent."""
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, _):
        group = (await intrude(host, "chat")).group
        configurator = Configurator(host.store, SkillShelf(host.home))
        for document in (
            {"image": "evil:1"},
            {"cli_scope": "global"},
            {"packages": {"pip": ["evil==1.0"]}},
            {"additional_mounts": [{"host_path": "/srv"}]},
            {"mcp_servers": {"x": {"command": "evil"}}},
            {"foreign_command": ["evil"]},
        ):
            with pytest.raises((NotAgreedError, ConflictError)):
                await configurator.change(group, replacing(document), agreed=agreed)
        stored = await host.store.read(lambda connection: container_configs.of(connection, group.id))
        assert stored == ContainerConfig()


async def test_a_group_sees_nothing_of_another_groups_config_and_skills(tmp_path: Path, need_engine: Any) -> None:
    need_engine("bubblewrap")
    async with host_on(tmp_path / "home", "bubblewrap") as (host, _):
        other = await intrude(host, "other")
        configurator = Configurator(host.store, SkillShelf(host.home))
        wish = replacing({"mcp_servers": {"x": {"command": "CANARY-1"}}})
        await configurator.change(other.group, wish, agreed=(await configurator.propose(other.group, wish)).agreement)
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
                    await configurator.change(intruder.group, replacing(document))
        stored = await host.store.read(lambda connection: container_configs.of(connection, intruder.group.id))
        assert stored == ContainerConfig()
