from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.docker_body import Dialect, create_body, in_mount_order, mountpoint_in_source
from hermitcrab.model.container import ContainerSpec, Hardening, Limits, Mount, MountClass
from hermitcrab.model.ids import Generation, InstallationId, SessionId

SPEC = ContainerSpec(
    name="crab-a-b",
    installation=InstallationId("a"),
    session=SessionId("b"),
    generation=Generation(3),
    image="agent:1",
    argv=("python3", "-m", "runner"),
    env={"B": "2", "A": "x=y z"},
    mounts=(
        Mount(source="/h/ro", target="/workspace/agent/notes"),
        Mount(source="/h/work", target="/workspace", writable=True, mount_class=MountClass.WORK),
    ),
    limits=Limits(memory_bytes=512 * 1024 * 1024, pids=64, cpus=0.5, open_files=1000, tmp_bytes=4096, log_bytes=1000),
    uid=1000,
    gid=1001,
)
DOCKER = Dialect()
PODMAN = Dialect(engine="podman", processes=5000)


def body(spec: ContainerSpec = SPEC, dialect: Dialect = DOCKER, volumes: tuple[str, ...] = ()) -> dict[str, Any]:
    return create_body(spec, image="agent:1", dialect=dialect, image_volumes=volumes)


@pytest.mark.parametrize("dialect", [DOCKER, PODMAN, Dialect(engine="podman", rootless=True)])
def test_every_container_is_closed_on_all_sides(dialect: Dialect) -> None:
    made = body(dialect=dialect)
    host = made["HostConfig"]
    assert made["NetworkDisabled"] is True
    assert host["NetworkMode"] == "none"
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] == []
    assert host["SecurityOpt"] == ["no-new-privileges"]  # and nothing that would turn seccomp off
    assert host["Privileged"] is False
    assert host["ReadonlyRootfs"] is True
    assert host["Devices"] == []
    assert host["PublishAllPorts"] is False
    assert host["IpcMode"] == host["CgroupnsMode"] == "private"
    assert not {"PidMode", "UTSMode", "Binds", "VolumesFrom", "ExtraHosts", "Links"} & host.keys()


def test_the_exit_record_outlives_the_container() -> None:
    host = body()["HostConfig"]
    assert host["AutoRemove"] is False
    assert host["RestartPolicy"] == {"Name": "no"}


def test_nothing_that_the_image_says_is_left_standing() -> None:
    made = body(volumes=("/data", "/workspace"))
    assert made["Entrypoint"] == ["python3", "-m", "runner"]
    assert made["Cmd"] == []
    assert made["User"] == "1000:1001"
    assert made["WorkingDir"] == "/workspace/agent"
    assert made["Healthcheck"] == {"Test": ["NONE"]}
    assert made["StopSignal"] == "SIGTERM"
    # A volume of the image would be a writable folder without a size; one of our own mounts comes before it.
    assert made["HostConfig"]["Tmpfs"]["/data"].startswith("ro,")
    assert "/workspace" not in made["HostConfig"]["Tmpfs"]


def test_limits_are_kept_by_the_engine() -> None:
    host = body()["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 512 * 1024 * 1024
    assert host["PidsLimit"] == 64
    assert host["NanoCpus"] == 500_000_000
    assert {"Name": "nofile", "Soft": 1000, "Hard": 1000} in host["Ulimits"]
    assert {"Name": "core", "Soft": 0, "Hard": 0} in host["Ulimits"]
    assert "size=4096" in host["Tmpfs"]["/tmp"]


def test_logs_are_bounded_and_never_lost_whole() -> None:
    assert body()["HostConfig"]["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "500", "max-file": "2"}}
    assert body(dialect=PODMAN)["HostConfig"]["LogConfig"] == {"Type": "k8s-file", "Config": {"max-size": "1000"}}
    three = replace(SPEC, limits=replace(SPEC.limits, log_files=3))
    assert body(three)["HostConfig"]["LogConfig"]["Config"] == {"max-size": "333", "max-file": "3"}


def test_folders_in_memory_belong_to_the_user() -> None:
    for_docker = body()["HostConfig"]["Tmpfs"]["/tmp"].split(",")
    assert {"nosuid", "nodev", "uid=1000", "gid=1001", "mode=0700"} <= set(for_docker)
    for_podman = body(dialect=PODMAN)["HostConfig"]["Tmpfs"]["/tmp"].split(",")
    assert {"nosuid", "nodev", "mode=0700", "U", "notmpcopyup"} <= set(for_podman)


def test_podman_adds_no_writable_folders_of_its_own() -> None:
    tmpfs = body(dialect=PODMAN)["HostConfig"]["Tmpfs"]
    assert tmpfs["/run"].startswith("ro,")
    assert tmpfs["/var/tmp"].startswith("ro,")
    assert "/run" not in body()["HostConfig"]["Tmpfs"]


def test_podman_is_told_how_many_processes_a_user_may_have() -> None:
    assert {"Name": "nproc", "Soft": 5000, "Hard": 5000} in body(dialect=PODMAN)["HostConfig"]["Ulimits"]
    assert all(each["Name"] != "nproc" for each in body()["HostConfig"]["Ulimits"])


def test_rootless_podman_maps_the_user_to_itself() -> None:
    assert body(dialect=Dialect(engine="podman", rootless=True))["HostConfig"]["UsernsMode"] == "keep-id"
    assert "UsernsMode" not in body(dialect=Dialect(rootless=True))["HostConfig"]


def test_mounts_are_binds_of_what_exists_with_parents_first() -> None:
    outer, inner = body()["HostConfig"]["Mounts"]
    assert (outer["Source"], outer["Target"], outer["ReadOnly"]) == ("/h/work", "/workspace", False)
    assert (inner["Source"], inner["Target"], inner["ReadOnly"]) == ("/h/ro", "/workspace/agent/notes", True)
    for each in (outer, inner):
        assert each["Type"] == "bind"
        assert each["BindOptions"] == {"Propagation": "rprivate", "NonRecursive": True}


def test_environment_and_labels_are_those_of_the_spec() -> None:
    made = body()
    assert made["Env"] == ["A=x=y z", "B=2"]
    assert made["Labels"] == SPEC.labels


@pytest.mark.parametrize("hardening", ["standard", "strict"])
def test_each_profile_has_its_filter_of_system_calls(hardening: Hardening) -> None:
    host = body(replace(SPEC, hardening=hardening), Dialect(filters={"standard": "standard's", "strict": "strict's"}))
    assert host["HostConfig"]["SecurityOpt"] == ["no-new-privileges", f"seccomp={hardening}'s"]


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_strict_hardening_takes_more_away_and_uses_gvisor_where_there_is_one(
    engine: Literal["docker", "podman"],
) -> None:
    strict = replace(SPEC, hardening="strict")
    host = body(strict, Dialect(engine=engine))["HostConfig"]
    for folder in SPEC.tmpfs:
        assert {"noexec", "nosuid", "nodev"} <= set(host["Tmpfs"][folder].split(","))
    assert "Runtime" not in host
    assert body(strict, Dialect(sandbox_runtime="runsc"))["HostConfig"]["Runtime"] == "runsc"
    assert "Runtime" not in body(SPEC, Dialect(sandbox_runtime="runsc"))["HostConfig"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "--privileged"},
        {"name": "a/b"},
        {"name": ".."},
        {"name": "a" * 300},
        {"name": "a\n"},
        {"argv": ()},
        {"argv": ("a\0b",)},
        {"uid": 0},
        {"gid": 0},
        {"env": {"A=B": "c"}},
        {"env": {"A": "\0"}},
        {"env": {"": "x"}},
        {"mounts": (Mount(source="relative", target="/x"),)},
        {"mounts": (Mount(source="/a/../b", target="/x"),)},
        {"mounts": (Mount(source="/a", target="/"),)},
        {"mounts": (Mount(source="/a", target="x"),)},
        {"mounts": (Mount(source="/a", target="/x/../y"),)},
        {"mounts": (Mount(source="/a", target="/x"), Mount(source="/b", target="/x"))},
        {"mounts": (Mount(source="/a", target="/tmp"),)},
        {"workdir": "here"},
        {"tmpfs": ("tmp",)},
        {"limits": Limits(pids=0)},
        {"limits": Limits(memory_bytes=0)},
        {"limits": Limits(cpus=0)},
    ],
)
def test_a_spec_that_cannot_be_kept_never_reaches_the_engine(change: dict[str, Any]) -> None:
    with pytest.raises(EngineError) as raised:
        body(replace(SPEC, **change))
    assert raised.value.failure is Failure.SPEC_INVALID


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), max_size=8))
def test_no_mount_hides_another(parts: list[list[str]]) -> None:
    mounts = [Mount(source="/s", target="/" + "/".join(each)) for each in parts]
    ordered = [each.target for each in in_mount_order(mounts)]
    for earlier, target in enumerate(ordered):
        assert not any(other.startswith(f"{target}/") for other in ordered[:earlier])


@given(
    env=st.dictionaries(st.text(min_size=1), st.text(), max_size=4),
    argv=st.lists(st.text(), min_size=1, max_size=4),
    name=st.text(max_size=40),
)
def test_a_body_is_json_or_a_typed_refusal(env: dict[str, str], argv: list[str], name: str) -> None:
    failure = None
    try:
        made = body(replace(SPEC, env=env, argv=tuple(argv), name=name))
    except EngineError as error:
        failure = error.failure
    else:
        assert json.loads(json.dumps(made)) == made
        assert len(made["Env"]) == len(env)
    assert failure in {None, Failure.SPEC_INVALID}


def test_a_nested_target_lies_in_its_nearest_parent() -> None:
    spec = replace(
        SPEC,
        tmpfs=("/home/agent",),
        mounts=(
            Mount(source="/h/work", target="/workspace", writable=True, mount_class=MountClass.WORK),
            Mount(source="/h/group", target="/workspace/agent", writable=True, mount_class=MountClass.WORK),
            Mount(source="/h/notes", target="/workspace/agent/notes"),
            Mount(source="/h/state", target="/home/agent/.claude"),
        ),
    )
    work, group, notes, state = spec.mounts
    assert mountpoint_in_source(work, spec) is None
    assert mountpoint_in_source(group, spec) == "/h/work/agent"
    assert mountpoint_in_source(notes, spec) == "/h/group/notes"
    assert mountpoint_in_source(state, spec) is None  # in memory: the engine may make it there
