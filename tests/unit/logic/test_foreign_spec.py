"""A container for a foreign runner is one of ours, but for what that runner's image expects."""

from __future__ import annotations

import json

from hermitcrab.logic.instructions import claude_settings
from hermitcrab.logic.spec import Materials, build_spec
from hermitcrab.model.container import ContainerSpec, Limits
from hermitcrab.model.ids import AgentGroupId, Generation, InstallationId, SessionId
from hermitcrab.model.sessions import Session

MATERIALS = Materials(
    work="/h/work",
    inbox="/h/inbox",
    run="/h/run",
    state="/h/state",
    state_overlays={"settings.json": "/h/settings", "skills": "/h/skills"},
    group_folder="/h/group",
    generated={"container.json": "/h/container.json"},
    app={"/app/src": "/h/runner", "/app/skills": "/h/skills"},
    extra_points="/h/extra",
    python="python3",
)
COMMAND = ("bun", "run", "/app/src/index.ts")


def spec(*command: str) -> ContainerSpec:
    return build_spec(
        installation=InstallationId("abc"),
        session=Session(id=SessionId("sess-1"), agent_group_id=AgentGroupId("ag-1"), messaging_group_id=None),
        generation=Generation(1),
        image="image",
        provider="claude",
        materials=MATERIALS,
        limits=Limits(),
        uid=1000,
        gid=1000,
        timezone="UTC",
        foreign_command=command,
    )


def test_process_1_stays_our_runner() -> None:
    own, foreign = spec(), spec(*COMMAND)
    assert foreign.argv == (*own.argv, "shim", "--", *COMMAND)
    assert foreign.spec_hash != own.spec_hash


def test_the_image_keeps_its_own_source_and_home() -> None:
    mounts = {mount.target: mount for mount in spec(*COMMAND).mounts}
    assert "/app/src" not in mounts
    assert mounts["/opt/hermitcrab/runner"].source == "/h/runner"
    assert not mounts["/opt/hermitcrab/runner"].writable
    assert mounts["/home/node/.claude"].source == "/h/state"
    assert mounts["/app/skills"].source == "/h/skills"
    found = spec(*COMMAND)
    assert found.env["HOME"] == "/home/node"
    assert found.env["PYTHONPATH"] == "/opt/hermitcrab/runner"
    assert "/home/node" in found.tmpfs
    assert "/home/agent" not in found.tmpfs


def test_its_harness_settings_lie_beside_their_place_as_it_adds_to_them() -> None:
    own, foreign = spec(), spec(*COMMAND)
    mounts = {mount.target: mount for mount in foreign.mounts}
    assert "/home/node/.claude/settings.json" not in mounts
    assert mounts["/opt/hermitcrab/claude-settings.json"].source == "/h/settings"
    assert not mounts["/opt/hermitcrab/claude-settings.json"].writable
    assert not mounts["/home/node/.claude/skills"].writable
    assert foreign.env["HERMITCRAB_HARNESS_SETTINGS"] == "/opt/hermitcrab/claude-settings.json"
    assert "HERMITCRAB_HARNESS_SETTINGS" not in own.env
    assert [each.writable for each in own.mounts if each.target.endswith("settings.json")] == [False]


def test_its_harness_gets_the_one_hook_that_is_part_of_it() -> None:
    own, foreign = (json.loads(claude_settings(foreign=each).content) for each in (False, True))
    # A runner that has a memory of its own says to the harness that it needs none, and is not overruled.
    assert "CLAUDE_CODE_DISABLE_AUTO_MEMORY" not in foreign["env"]
    assert own["hooks"] == {}
    (entry,) = foreign["hooks"]["PreCompact"]
    assert entry["hooks"] == [{"type": "command", "command": "bun /app/src/compact-instructions.ts"}]
