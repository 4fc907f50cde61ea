"""The spec of a session's container: its mounts one by one, and all that its environment says."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from hermitcrab.logic import system_calls
from hermitcrab.logic.spec import Materials, build_spec
from hermitcrab.model.container import ContainerSpec, Limits, Mount, MountClass
from hermitcrab.model.ids import AgentGroupId, Generation, InstallationId, SessionId
from hermitcrab.model.sessions import Session

MATERIALS = Materials(
    work="/h/work",
    inbox="/h/inbox",
    run="/h/run/7",
    state="/h/state",
    group_folder="/h/groups/chat",
    generated={each: f"/h/made/{each}" for each in ("container.json", "CLAUDE.md", ".claude-fragments", ".claude")},
    app={"/app/CLAUDE.md": "/h/shared.md", "/app/src": "/h/runner", "/app/skills": "/h/made/skills"},
    work_overlays={"CLAUDE.md": "/h/made/empty.md"},
    state_overlays={"settings.json": "/h/made/settings", "skills": "/h/made/skills"},
    extra_points="/h/extra/7",
    extra=(Mount(source="/srv/code", target="/workspace/extra/code", writable=True, mount_class=MountClass.EXTRA),),
    python="python3",
)
MODES = {
    "/workspace": ("/h/work", "rw"),
    "/workspace/CLAUDE.md": ("/h/made/empty.md", "ro"),
    "/workspace/inbox": ("/h/inbox", "ro"),
    "/workspace/extra": ("/h/extra/7", "ro"),
    "/workspace/extra/code": ("/srv/code", "rw"),
    "/run/hermitcrab": ("/h/run/7", "ro"),
    "/workspace/agent": ("/h/groups/chat", "rw"),
    "/workspace/agent/container.json": ("/h/made/container.json", "ro"),
    "/workspace/agent/CLAUDE.md": ("/h/made/CLAUDE.md", "ro"),
    "/workspace/agent/.claude-fragments": ("/h/made/.claude-fragments", "ro"),
    "/workspace/agent/.claude": ("/h/made/.claude", "ro"),
    "/home/agent/.claude": ("/h/state", "rw"),
    "/home/agent/.claude/settings.json": ("/h/made/settings", "ro"),
    "/home/agent/.claude/skills": ("/h/made/skills", "ro"),
    "/app/CLAUDE.md": ("/h/shared.md", "ro"),
    "/app/src": ("/h/runner", "ro"),
    "/app/skills": ("/h/made/skills", "ro"),
}


def spec(materials: Materials = MATERIALS, *, timezone: str = "UTC", image: str | None = "image") -> ContainerSpec:
    return build_spec(
        installation=InstallationId("abc"),
        session=Session(id=SessionId("sess-1"), agent_group_id=AgentGroupId("ag-1"), messaging_group_id=None),
        generation=Generation(7),
        image=image,
        provider="claude",
        materials=materials,
        limits=Limits(),
        uid=1000,
        gid=1000,
        timezone=timezone,
    )


def modes(materials: Materials) -> dict[str, tuple[str, str]]:
    mounts = spec(materials).mounts
    assert len({mount.target for mount in mounts}) == len(mounts), "no mount hides another"
    return {mount.target: (mount.source, "rw" if mount.writable else "ro") for mount in mounts}


def test_every_mount_has_its_place_and_its_mode() -> None:
    assert modes(MATERIALS) == MODES


def test_the_memory_of_all_groups_is_mounted_read_only_where_there_is_one() -> None:
    found = modes(replace(MATERIALS, global_memory="/h/groups/global"))
    assert found == {**MODES, "/workspace/global": ("/h/groups/global", "ro")}


def test_the_packages_of_a_provider_are_mounted_read_only() -> None:
    place = "/opt/hermitcrab/packages"
    found = modes(replace(MATERIALS, app={**MATERIALS.app, place: "/cache/claude"}))
    assert found == {**MODES, place: ("/cache/claude", "ro")}


def test_the_environment_says_where_things_are_and_what_time_it_is_and_nothing_else() -> None:
    env = spec(timezone="Europe/Lisbon").env
    assert env["TZ"] == "Europe/Lisbon"
    ours = {name for name in env if name.startswith("HERMITCRAB_")}
    assert ours == {
        f"HERMITCRAB_{each}" for each in ["GATEWAY", "GENERATION", "LINK", "PACKAGES", "PROVIDER", "WRITABLE"]
    }
    others = {"HOME", "USER", "LANG", "PATH", "TZ", "TMPDIR", "PYTHONPATH"}
    assert set(env) - ours == {*others, "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}


def test_labels_tell_whose_container_it_is_and_which() -> None:
    # Written out: by these very names a later version finds the containers of this one.
    assert spec().labels == {
        "hermitcrab.installation": "abc",
        "hermitcrab.session": "sess-1",
        "hermitcrab.generation": "7",
        "hermitcrab.spec-hash": spec().spec_hash,
    }


def changed(value: Any) -> list[Any]:
    """Other values in the place of this one, one for each part of it."""
    match value:
        case Limits() | Mount():
            return [
                replace(value, **{each.name: other})
                for each in fields(value)
                for other in changed(getattr(value, each.name))
            ]
        case MountClass():
            return [each for each in MountClass if each is not value]
        case bool():
            return [not value]
        case int() | float():
            return [value + 1]
        case str():
            return [f"{value}x"]
        case tuple():
            first, *rest = value
            return [tuple(rest), *((each, *rest) for each in changed(first))]
        case _:
            return [{**value, "MORE": "x"}]


def test_whatever_could_change_a_container_changes_the_hash_of_its_spec() -> None:
    """A host that comes back replaces what it would make differently now, and goes by nothing but the hash."""
    usual = spec()
    assert replace(usual, generation=Generation(8)).spec_hash == usual.spec_hash
    for each in fields(ContainerSpec):
        if each.name != "generation":
            for other in changed(getattr(usual, each.name)):
                assert replace(usual, **{each.name: other}).spec_hash != usual.spec_hash, (each.name, other)


def test_a_container_of_an_earlier_filter_of_system_calls_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = spec()
    monkeypatch.setattr(system_calls, "fingerprint", lambda _: "another")
    assert spec().spec_hash != earlier.spec_hash
