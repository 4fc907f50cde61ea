"""What no engine may see: one check of a container's spec, whatever the engine."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.credentials import credential_in
from hermitcrab.logic.spec_check import check
from hermitcrab.model.container import ContainerSpec, Limits, Mount, MountClass
from hermitcrab.model.ids import Generation, InstallationId, SessionId

WORK = Mount(source="/h/work", target="/workspace", writable=True, mount_class=MountClass.WORK)
NOTES = Mount(source="/h/notes", target="/workspace/agent/notes")
LINK = Mount(source="/h/run", target="/run/hermitcrab", mount_class=MountClass.LINK)
EXTRA = Mount(source="/data/code", target="/workspace/extra/code", writable=True, mount_class=MountClass.EXTRA)
SPEC = ContainerSpec(
    name="crab-a-b",
    installation=InstallationId("a"),
    session=SessionId("sess-1"),
    generation=Generation(3),
    image=None,
    argv=("python3", "-m", "runner", "--", "-x", "two\nlines"),
    env={"A": "x=y\nz", "_B9": ""},
    mounts=(WORK, NOTES, LINK, EXTRA),
    uid=1000,
    gid=1001,
)


def failure_of(**changes: Any) -> Failure | None:
    try:
        check(replace(SPEC, **changes))
    except EngineError as error:
        return error.failure
    return None


def test_an_ordinary_spec_passes() -> None:
    assert failure_of() is None


def rw(target: str, mount_class: MountClass) -> Mount:
    return Mount(source="/h/x", target=target, writable=True, mount_class=mount_class)


REFUSED: dict[str, dict[str, Any]] = {
    "an option for a name": {"name": "--privileged"},
    "a name with a slash": {"name": "a/b"},
    "a name with a space": {"name": "a b"},
    "a name with a command": {"name": "a;id"},
    "a name with a line's end": {"name": "a\n"},
    "a name of a look-alike letter": {"name": "\u0430b"},
    "an endless name": {"name": "a" * 300},
    "the folder above": {"name": ".."},
    "no name": {"name": ""},
    "an installation of two lines": {"installation": InstallationId("a\nb")},
    "a session with a NUL": {"session": SessionId("a\0b")},
    "half a character": {"session": SessionId("\ud800")},
    "a generation before all": {"generation": Generation(-1)},
    "an option for an image": {"image": "--rm"},
    "an image upwards": {"image": "/images/../etc"},
    "no command": {"argv": ()},
    "an empty command": {"argv": ("",)},
    "an option for a command": {"argv": ("--share-net", "x")},
    "a NUL in an argument": {"argv": ("a", "b\0c")},
    "an endless argument": {"argv": ("a", "b" * 200_000)},
    "endless arguments": {"argv": ("a",) * 1000},
    "a variable without a name": {"env": {"": "x"}},
    "a variable's name with =": {"env": {"A=B": "x"}},
    "a variable's name with a space": {"env": {"A B": "x"}},
    "a variable's name of two lines": {"env": {"A\nB": "x"}},
    "a variable's name of an odd letter": {"env": {"\u00c4": "x"}},
    "a NUL in a value": {"env": {"A": "x\0--share-net"}},
    "an escape in a value": {"env": {"A": "\x1b[2J"}},
    "an endless value": {"env": {"A": "x" * 200_000}},
    "root": {"uid": 0},
    "root's group": {"gid": 0},
    "nobody at all": {"uid": 2**32 - 1},
    "no memory": {"limits": Limits(memory_bytes=0)},
    "no processes": {"limits": Limits(pids=0)},
    "endless CPUs": {"limits": Limits(cpus=float("inf"))},
    "more than there can be": {"limits": Limits(memory_bytes=2**64)},
    "a relative working folder": {"workdir": "here"},
    "a working folder upwards": {"workdir": "/a/../b"},
    "a relative target": {"mounts": (Mount(source="/a", target="x"),)},
    "a target upwards": {"mounts": (Mount(source="/a", target="/x/../y"),)},
    "the root as target": {"mounts": (Mount(source="/a", target="/"),)},
    "a target of two lines": {"mounts": (Mount(source="/a", target="/x\ny"),)},
    "an endless target": {"mounts": (Mount(source="/a", target="/" + "x" * 5000),)},
    "a relative source": {"mounts": (Mount(source="a", target="/x"),)},
    "a source upwards": {"mounts": (Mount(source="/a/../b", target="/x"),)},
    "the root as source": {"mounts": (Mount(source="/", target="/x"),)},
    "two on one target": {"mounts": (Mount(source="/a", target="/x"), Mount(source="/b", target="/x"))},
    "one on a folder in memory": {"mounts": (Mount(source="/a", target="/tmp"),)},
    "over the processes": {"mounts": (Mount(source="/a", target="/proc/self"),)},
    "over the devices": {"mounts": (Mount(source="/a", target="/dev"),)},
    "over the kernel's settings": {"tmpfs": ("/sys/fs",)},
    "writable programs of the system": {"mounts": (rw("/usr/local/bin", MountClass.WORK),)},
    "writable settings of the system": {"mounts": (rw("/etc/ld.so.preload", MountClass.WORK),)},
    "memory over the system's programs": {"tmpfs": ("/usr/bin",)},
    "what the host writes, writable": {"mounts": (rw("/x", MountClass.HOST_WRITTEN),)},
    "the sockets, writable": {"mounts": (rw("/run/hermitcrab", MountClass.LINK),)},
    "the runner, writable": {"mounts": (rw("/app/src", MountClass.INSTALL_SURFACE),)},
    "writable inside what the host writes": {"mounts": (WORK, NOTES, rw("/workspace/agent/notes/x", MountClass.WORK))},
    "additional, elsewhere": {"mounts": (WORK, rw("/workspace/agent", MountClass.EXTRA))},
    "additional, deeper": {"mounts": (WORK, rw("/workspace/extra/a/b", MountClass.EXTRA))},
    "additional, all of the place": {"mounts": (WORK, rw("/workspace/extra", MountClass.EXTRA))},
    "additional, hidden": {"mounts": (WORK, rw("/workspace/extra/.ssh", MountClass.EXTRA))},
    "something else among the additional": {"mounts": (WORK, rw("/workspace/extra/x", MountClass.WORK))},
    "memory over what the host put there": {"tmpfs": ("/workspace/agent/notes/x",)},
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_could_mean_something_else_is_refused(what: str) -> None:
    assert failure_of(**REFUSED[what]) is Failure.SPEC_INVALID


def test_the_users_of_an_image_may_be_told_and_the_place_of_additional_mounts_filled() -> None:
    assert failure_of(mounts=(WORK, Mount(source="/h/passwd", target="/etc/passwd"))) is None
    assert failure_of(mounts=(WORK, Mount(source="/h/extra", target="/workspace/extra"), EXTRA)) is None


# All of them are made up and open nothing.
CREDENTIALS = [
    "sk-ant-api03-0123456789abcdefghij",
    "ghp_0123456789abcdefghijABCDEFGHIJ",
    "github_pat_0123456789abcdefghij",
    "xoxb-123456789012-abcdefghijkl",
    "AKIAABCDEFGHIJKLMNOP",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----",
    "postgres://me:hunter22@db/x",
    "Authorization: Bearer abcdefgh12345678",
]
PLACEHOLDERS = [
    "",
    "sk-ant-placeholder-0123456789abc",
    "sk-ant-api03-your-key-goes-here",
    "sk-xxxxxxxxxxxxxxxxxxxxxxxx",
    "https://user:${PASSWORD}@example.org/",
    "http://127.0.0.1:8080/anthropic",
    "Bearer <token>",
    "task-0123456789abcdefghij",
    "desk-lamp-in-the-living-room",
    "2026-01-01T00:00:00",
    "e3b0c44298fc1c149afbf4c8996fb924",
    "hermitcrab",
]


@pytest.mark.parametrize("value", CREDENTIALS)
@pytest.mark.parametrize("name", ["ANTHROPIC_API_KEY", "HARMLESS", "PATH"])
def test_a_credential_is_refused_under_any_name_and_is_not_repeated(name: str, value: str) -> None:
    with pytest.raises(EngineError) as caught:
        check(replace(SPEC, env={name: f"before {value} after"}))
    assert caught.value.failure is Failure.DENIED_BY_POLICY
    assert name in caught.value.message
    assert value not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("value", CREDENTIALS)
def test_a_credential_is_refused_as_an_argument_and_as_a_label(value: str) -> None:
    assert failure_of(argv=("run", value)) is Failure.DENIED_BY_POLICY
    assert failure_of(session=SessionId(value)) in {Failure.DENIED_BY_POLICY, Failure.SPEC_INVALID}


@pytest.mark.parametrize("value", PLACEHOLDERS)
def test_a_placeholder_passes(value: str) -> None:
    assert not credential_in(value)
    assert failure_of(env={"ANTHROPIC_API_KEY": value}) is None


words = st.text(max_size=30)
targets = st.one_of(
    words,
    st.lists(st.sampled_from(["workspace", "extra", "x", "..", "", "tmp", "etc", "proc"]), max_size=4).map("/".join),
).map(lambda path: f"/{path}")
mounts = st.builds(
    Mount, source=targets, target=targets, writable=st.booleans(), mount_class=st.sampled_from(list(MountClass))
)


@given(
    name=words,
    argv=st.lists(words, max_size=4).map(tuple),
    env=st.dictionaries(words, words, max_size=4),
    mounts=st.lists(mounts, max_size=6).map(tuple),
    tmpfs=st.lists(targets, max_size=3).map(tuple),
)
def test_what_passes_keeps_every_rule_and_what_does_not_is_typed(**changes: Any) -> None:
    if (failure := failure_of(**changes)) is not None:
        assert failure in {Failure.SPEC_INVALID, Failure.DENIED_BY_POLICY}
        return
    spec = replace(SPEC, **changes)
    paths = [*(mount.target for mount in spec.mounts), *spec.tmpfs]
    assert len(set(paths)) == len(paths)
    assert all(path == posixpath.normpath(path) and path.startswith("/") and path != "/" for path in paths)
    assert not any("\0" in word for word in (spec.name, *spec.argv, *spec.env, *spec.env.values(), *paths))
    for mount in spec.mounts:
        below_extra = mount.target.startswith("/workspace/extra/")
        assert (mount.mount_class is MountClass.EXTRA) == below_extra
        assert not mount.writable or mount.mount_class in {MountClass.WORK, MountClass.EXTRA}


@given(st.text(st.characters(codec="utf-8", categories=["Ll", "Nd", "Zs"]), max_size=200))
def test_plain_words_are_no_credential(text: str) -> None:
    assert not credential_in(text)
