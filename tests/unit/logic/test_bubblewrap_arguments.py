"""What bubblewrap is told, without any bubblewrap."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic import bubblewrap_arguments as told
from hermitcrab.logic.bubblewrap_arguments import Bind, Data, Folder, Identity, Link, Tmpfs
from hermitcrab.model.container import ContainerSpec, Mount, MountClass
from hermitcrab.model.ids import Generation, InstallationId, SessionId

SPEC = ContainerSpec(
    name="one",
    installation=InstallationId("here"),
    session=SessionId("s"),
    generation=Generation(1),
    image=None,
    argv=("true",),
    env={"A": "b"},
    mounts=(Mount(source="/host/work", target="/workspace", writable=True, mount_class=MountClass.WORK),),
    uid=1000,
    gid=1000,
)
paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


def arguments(**changes: object) -> list[str]:
    values: dict[str, object] = {
        "steps": [],
        "identity": Identity(1000, 1000, 1),
        "env": {},
        "hostname": "one",
        "workdir": "/workspace",
        "status": 5,
        "seccomp": 6,
    }
    return told.arguments(**(values | changes))  # type: ignore[arg-type]


def follows(words: list[str], *run: str) -> bool:
    return any(words[index : index + len(run)] == list(run) for index in range(len(words)))


@pytest.mark.parametrize(
    "option", ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--new-session", "--clearenv"]
)
def test_every_container_is_cut_off(option: str) -> None:
    assert option in arguments()


def test_no_option_ties_it_to_the_host_or_lets_the_network_in() -> None:
    assert not {"--die-with-parent", "--share-net"} & set(arguments())


def test_the_superusers_container_is_in_the_prepared_namespace() -> None:
    words = arguments()
    assert follows(words, "--userns", "1")
    assert follows(words, "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL")
    assert "--unshare-user" not in words


def test_an_ordinary_users_container_makes_its_own_namespace_and_no_further_one() -> None:
    words = arguments(identity=Identity(1000, 1000, None))
    assert follows(words, "--unshare-user", "--disable-userns")
    assert "--userns" not in words


def test_the_root_and_the_devices_are_closed_after_everything_is_in_place() -> None:
    words = arguments(steps=[Tmpfs("/tmp", 100, 0o1777), Bind("/workspace", 9, writable=True)])
    assert words.index("--remount-ro") > words.index("--bind-fd")
    assert words[words.index("--remount-ro") :][:4] == ["--remount-ro", "/dev", "--remount-ro", "/"]


def test_each_step_becomes_its_option() -> None:
    words = arguments(
        steps=[Bind("/usr", 9), Bind("/w", 10, writable=True), Tmpfs("/t", 100), Link("/bin", "usr/bin"), Folder("/run"),
               Data("/etc/hosts", 11), Data("/etc/passwd", 12, over_existing=True)],
    )  # fmt: skip
    assert follows(words, "--ro-bind-fd", "9", "/usr")
    assert follows(words, "--bind-fd", "10", "/w")
    assert follows(words, "--perms", "0755", "--size", "100", "--tmpfs", "/t")
    assert follows(words, "--symlink", "usr/bin", "/bin")
    assert follows(words, "--dir", "/run")
    assert follows(words, "--perms", "0444", "--file", "11", "/etc/hosts")
    assert follows(words, "--perms", "0444", "--ro-bind-data", "12", "/etc/passwd")


def test_the_environment_is_set_after_it_was_cleared() -> None:
    words = arguments(env={"A": "--share-net"})
    assert follows(words, "--clearenv", "--setenv", "A", "--share-net")


def test_a_machine_without_a_filter_gets_none() -> None:
    assert "--seccomp" not in arguments(seccomp=None)
    assert follows(arguments(), "--seccomp", "6")


def test_a_long_name_is_cut_to_what_a_host_name_may_be() -> None:
    assert follows(arguments(hostname="x" * 100), "--hostname", "x" * 63)


@given(st.lists(paths, unique=True))
def test_no_mount_hides_one_that_came_before(targets: list[str]) -> None:
    order = told.ordered(targets)
    assert sorted(order) == sorted(targets)
    for index, target in enumerate(order):
        assert not any(earlier.startswith(target + "/") for earlier in order[:index])


@given(paths, st.lists(paths))
def test_the_enclosing_mount_is_the_deepest_one_around(target: str, others: list[str]) -> None:
    found = told.enclosing(target, others)
    around = [other for other in others if target.startswith(other + "/")]
    assert (found in around) if around else (found is None)
    assert all(len(other) <= len(found or "") for other in around)


def test_the_root_encloses_everything() -> None:
    assert told.enclosing("/a", ["/", "/b"]) == "/"


CHANGES: dict[str, Callable[[ContainerSpec], ContainerSpec]] = {
    "no command": lambda spec: replace(spec, argv=()),
    "superuser": lambda spec: replace(spec, uid=0),
    "superusers group": lambda spec: replace(spec, gid=0),
    "as whom the superuser appears": lambda spec: replace(spec, uid=told.HOST_ROOT_INSIDE),
    "NUL in argv": lambda spec: replace(spec, argv=("a\0b",)),
    "NUL in the environment": lambda spec: replace(spec, env={"A": "\0--share-net"}),
    "no name": lambda spec: replace(spec, env={"": "x"}),
    "equals sign in a name": lambda spec: replace(spec, env={"A=B": "x"}),
    "relative target": lambda spec: replace(spec, mounts=(Mount(source="/a", target="workspace"),)),
    "target upwards": lambda spec: replace(spec, mounts=(Mount(source="/a", target="/x/../etc"),)),
    "root as target": lambda spec: replace(spec, mounts=(Mount(source="/a", target="/"),)),
    "target in proc": lambda spec: replace(spec, mounts=(Mount(source="/a", target="/proc/1"),)),
    "target dev": lambda spec: replace(spec, mounts=(Mount(source="/a", target="/dev"),)),
    "two on one path": lambda spec: replace(spec, tmpfs=("/workspace",)),
    "relative workdir": lambda spec: replace(spec, workdir="work"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_impossible_spec_is_refused(change: str) -> None:
    with pytest.raises(EngineError) as caught:
        told.check(CHANGES[change](SPEC))
    assert caught.value.failure is Failure.SPEC_INVALID


def test_an_ordinary_spec_is_accepted() -> None:
    told.check(SPEC)


def test_the_map_of_users_has_everybody_once_and_no_superuser() -> None:
    ranges = [tuple(map(int, line.split())) for line in told.user_namespace_map().splitlines()]
    inside = sorted((first, first + length) for first, _, length in ranges)
    outside = sorted((first, first + length) for _, first, length in ranges)
    for spans in (inside, outside):
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert inside[0][0] == 1
    assert outside[0] == (0, 1)
    assert all(to == at for at, to, length in ranges if length > 1)


def test_the_users_files_name_the_user_and_tell_nothing_else() -> None:
    files = told.etc_files(1234, 567, "box")
    assert "agent:x:1234:567:" in files["/etc/passwd"]
    assert "agent:x:567:" in files["/etc/group"]
    assert files["/etc/resolv.conf"] == ""
