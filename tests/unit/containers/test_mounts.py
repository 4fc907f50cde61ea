"""Additional mounts on a real file system: walks, races, forbidden places, and the check before a start."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hermitcrab.containers.engines.bubblewrap_processes import bubblewrap
from hermitcrab.containers.materials.mounts import (
    MountEntry,
    decide_each,
    forbidden_places,
    gather,
    mount_table,
    verify_after_create,
    verify_inside,
    walk,
)
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.mounts import Allowlist, Decision, ForbiddenPlace, Identity, MountRequest, Root, decide
from hermitcrab.settings.home import Home

SWAPS = 1500


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A user's folders, and a home of ours beside them, free of symbolic links."""
    base = tmp_path.resolve()
    for folder in ("u/projects/code", "u/keys", "home/sessions/ag1/s1/work"):
        (base / folder).mkdir(parents=True)
    (base / "u/keys/secret").write_text("secret")
    return base


def identity(path: Path) -> Identity:
    found = path.stat()
    return Identity(found.st_dev, found.st_ino)


def judge(base: Path, path: Path | str, *, root: Path | None = None, write: bool = False) -> Decision:
    allowlist = Allowlist(roots=(Root(path=str(root or base), write=True),))
    request = MountRequest(path=str(path), name="x", write=write)
    environment = {"HOME": str(base / "u"), "PATH": str(base / "u/projects/bin")}
    forbidden = forbidden_places(Home(base / "home"), environment=environment)
    return decide(request, allowlist, gather(request, allowlist, forbidden=forbidden))


def refused_by(decision: Decision) -> str:
    assert not decision.allowed
    return next(step.rule for step in decision.steps if not step.passed)


@contextmanager
def swapping(place: Path, *others: Path) -> Iterator[threading.Event]:
    """`place` is by turns what it was and each of the others, as fast as renames go. The event is set after all turns."""
    done = threading.Event()
    stop = threading.Event()
    parked = place.with_name("parked")

    def swap() -> None:
        try:
            for turn in range(SWAPS):
                if stop.is_set():
                    break
                other = others[turn % len(others)]
                place.rename(parked)
                other.rename(place)
                place.rename(other)
                parked.rename(place)
        finally:
            done.set()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def test_a_walk_meets_every_folder_from_the_root_of_the_file_system(base: Path) -> None:
    code = base / "u/projects/code"
    found = walk(str(code))
    assert (found.kind, found.problem) == ("folder", "")
    assert found.chain == tuple(identity(each) for each in (*reversed(code.parents), code))
    assert walk("/").chain == (identity(Path("/")),)


def test_a_walk_tells_where_it_ended_and_why(base: Path) -> None:
    (base / "link").symlink_to(base / "u/keys")
    assert (
        walk(str(base / "link")).problem
        == f"{base}/link is a symbolic link to {base}/u/keys; write the path without links"
    )
    assert "is a symbolic link" in walk(str(base / "link/secret")).problem
    assert walk(str(base / "none/x")).problem == f"{base}/none does not exist"
    assert walk(str(base / "u/keys/secret/x")).problem == f"{base}/u/keys/secret is no folder"
    assert walk(str(base / "link")).chain == walk(str(base)).chain
    assert walk(str(base / "link")).identity is None
    assert walk(str(base / "u/../u")).identity is None


def test_a_walk_keeps_no_descriptor(base: Path, open_files: Callable[[], set[str]]) -> None:
    before = open_files()
    for path in ("/", str(base), str(base / "none"), str(base / "u/keys/secret/x")):
        walk(path)
    assert open_files() <= before


def test_a_folder_in_a_root_is_allowed_as_the_inode_that_it_is(base: Path) -> None:
    code = base / "u/projects/code"
    decision = judge(base, code, write=True)
    assert decision.mount is not None
    assert decision.mount.source == str(code)
    assert decision.mount.writable
    assert decision.chain[-1] == identity(code)


def test_a_root_may_be_the_operator_s_own_link(base: Path) -> None:
    (base / "easy").symlink_to(base / "u/projects")
    assert judge(base, base / "u/projects/code", root=base / "easy").allowed
    assert refused_by(judge(base, base / "easy/code", root=base / "easy")) == "found"
    assert refused_by(judge(base, base / "u/projects/code", root=base / "nowhere")) == "root"


@pytest.mark.parametrize(
    "path", ["home", "home/sessions", "home/sessions/ag1/s1/work", ".", "u", "u/.ssh", "u/.config/gcloud/x"]
)
def test_our_home_and_the_user_s_secrets_are_refused_and_so_is_what_holds_them(base: Path, path: str) -> None:
    (base / path).mkdir(parents=True, exist_ok=True)
    decision = judge(base, base / path)
    assert not decision.allowed
    assert "forbidden places" in [step.rule for step in decision.steps if not step.passed]


@pytest.mark.parametrize("path", ["/", "/etc", "/etc/ssl", "/proc", "/proc/self", "/sys", "/dev", "/dev/null", "/run"])
def test_the_machine_s_own_places_are_refused_even_where_a_root_names_them(base: Path, path: str) -> None:
    if Path(path).resolve() != Path(path) and path != "/proc/self":
        pytest.skip(f"{path} is a link on this machine")
    assert not judge(base, path, root=Path(path)).allowed
    assert not judge(base, path, root=Path("/")).allowed


def test_a_secret_that_is_a_link_is_forbidden_at_both_ends(base: Path) -> None:
    (base / "u/.ssh").symlink_to(base / "u/keys")
    assert refused_by(judge(base, base / "u/keys")) == "forbidden places"
    assert refused_by(judge(base, base / "u/keys/secret")) == "forbidden places"
    assert refused_by(judge(base, base / "u")) == "forbidden places"
    assert judge(base, base / "u/projects").allowed


def test_a_folder_where_a_secret_does_not_lie_yet_is_refused(base: Path) -> None:
    assert not (base / "u/.ssh").exists()
    assert refused_by(judge(base, base / "u")) == "forbidden places"


def test_programs_of_the_host_may_be_read_and_never_written(base: Path) -> None:
    (base / "u/projects/bin").mkdir()
    assert judge(base, base / "u/projects").allowed
    assert refused_by(judge(base, base / "u/projects", write=True)) == "forbidden places"
    assert refused_by(judge(base, base / "u/projects/bin", write=True)) == "forbidden places"


def test_sockets_pipes_and_files_with_a_second_name_are_refused(base: Path) -> None:
    os.mkfifo(base / "u/projects/pipe")
    os.link(base / "u/keys/secret", base / "u/projects/other-name")
    (base / "u/projects/file").write_text("x")
    assert refused_by(judge(base, base / "u/projects/pipe")) == "kind"
    assert refused_by(judge(base, base / "u/projects/other-name")) == "kind"
    assert judge(base, base / "u/projects/file").allowed


def test_of_two_requests_for_one_target_the_first_has_it(base: Path) -> None:
    allowlist = Allowlist(roots=(Root(path=str(base)),))
    requests = [
        MountRequest(path=str(base / "u/keys"), name="x"),
        MountRequest(path=str(base / "u/projects"), name="x"),
    ]
    first, second = decide_each(requests, allowlist, forbidden=())
    assert first.allowed
    assert refused_by(second) == "target free"


def test_the_mount_table_is_read_with_its_escapes() -> None:
    text = (
        "22 1 8:1 / / rw - ext4 /dev/a rw\n"
        "23 22 8:1 /u/my\\040keys /data/my\\040code rw shared:1 - ext4 /dev/a rw\n"
        "cut off"
    )
    assert mount_table(text) == (
        MountEntry("/", "ext4", "8:1", "/"),
        MountEntry("/data/my code", "ext4", "8:1", "/u/my keys"),
    )
    assert any(entry.point == "/" for entry in mount_table())


def test_a_part_of_a_secret_that_is_bound_into_a_project_is_found(base: Path) -> None:
    """The table says so; the mount itself would need privileges, and its inode is in nobody's chain."""
    inner = base / "u/projects/code/notes"
    inner.mkdir()
    allowlist = Allowlist(roots=(Root(path=str(base)),))
    forbidden = [ForbiddenPlace(what="keys", place=walk(str(base / "u/keys")))]
    plain = (MountEntry("/", "ext4", "8:1", "/"),)
    bound = (*plain, MountEntry(str(inner), "ext4", "8:1", f"{base}/u/keys/deep"))
    for table, path, refusing in (
        (plain, base / "u/projects/code", ""),
        (bound, base / "u/projects/code", "inner mounts"),
        (bound, inner, "forbidden places"),
    ):
        request = MountRequest(path=str(path))
        decision = decide(request, allowlist, gather(request, allowlist, forbidden=forbidden, table=table))
        assert decision.allowed if not refusing else refused_by(decision) == refusing


def test_a_kernel_file_system_below_the_place_is_refused(base: Path) -> None:
    allowlist = Allowlist(roots=(Root(path=str(base)),))
    request = MountRequest(path=str(base / "u/projects"))
    table = (MountEntry("/", "ext4", "8:1", "/"), MountEntry(str(base / "u/projects/code"), "proc", "0:9", "/"))
    assert (
        refused_by(decide(request, allowlist, gather(request, allowlist, forbidden=(), table=table))) == "inner mounts"
    )


def test_whoever_swaps_the_place_for_a_link_never_leads_a_decision_astray(base: Path) -> None:
    code = base / "u/projects/code"
    secret = identity(base / "u/keys")
    (base / "u/projects/to-keys").symlink_to(base / "u/keys")
    (base / "u/projects/other").mkdir()
    mine = {identity(code), identity(base / "u/projects/other")}
    looked = 0
    with swapping(code, base / "u/projects/to-keys", base / "u/projects/other") as done:
        while not done.is_set():
            found = walk(str(code))
            assert secret not in found.chain
            assert found.identity in mine or found.problem
            looked += 1
    assert looked > 10


def test_whoever_swaps_a_folder_above_the_place_never_leads_a_decision_astray(base: Path) -> None:
    (base / "u/keys/code").mkdir()
    (base / "u/to-keys").symlink_to(base / "u/keys")
    forbidden = [ForbiddenPlace(what="keys", place=walk(str(base / "u/keys")))]
    allowlist = Allowlist(roots=(Root(path=str(base)),))
    request = MountRequest(path=str(base / "u/projects/code"))
    expected = identity(base / "u/projects/code")
    table = mount_table()
    with swapping(base / "u/projects", base / "u/to-keys") as done:
        while not done.is_set():
            decision = decide(request, allowlist, gather(request, allowlist, forbidden=forbidden, table=table))
            if decision.allowed:
                assert decision.chain[-1] == expected
                with suppress(EngineError):
                    verify_after_create([decision])
            else:
                assert decision.reason
    verify_after_create([judge(base, base / "u/projects/code")])


def test_an_unchanged_place_may_be_started_and_a_refused_one_is_no_matter(base: Path) -> None:
    allowed, refused = judge(base, base / "u/projects/code"), judge(base, base / "home")
    verify_after_create([allowed, refused])
    verify_after_create([])


@pytest.mark.parametrize("how", ["link", "folder", "gone", "file", "parent"])
def test_a_place_that_changed_between_the_decision_and_the_start_is_not_started(base: Path, how: str) -> None:
    code = base / "u/projects/code"
    decision = judge(base, code)
    if how == "parent":
        (base / "u/projects").rename(base / "u/moved")
        code.mkdir(parents=True)
    else:
        code.rename(base / "u/projects/was")
    if how == "link":
        code.symlink_to(base / "u/projects/was")
    elif how == "folder":
        code.mkdir()
    elif how == "file":
        code.write_text("")
    with pytest.raises(EngineError, match="changed after it was allowed") as caught:
        verify_after_create([decision])
    assert caught.value.failure is Failure.DENIED_BY_POLICY
    assert not caught.value.failure.retryable


def test_a_container_that_got_something_else_is_told_from_inside(base: Path) -> None:
    try:
        program = bubblewrap()
    except EngineError as error:
        pytest.skip(error.message)
    decision = judge(base, base / "u/projects/code")
    assert decision.mount is not None
    for source, right in ((base / "u/projects/code", True), (base / "u/keys", False)):
        child = subprocess.Popen(
            [
                *(program, "--unshare-pid", "--ro-bind", "/usr", "/usr"),
                *(part for name in ("bin", "lib", "lib64") for part in ("--symlink", f"usr/{name}", f"/{name}")),
                *("--ro-bind", str(source), decision.mount.target),
                *("sh", "-c", "echo up; read _"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with child:
            assert child.stdout is not None
            assert child.stdin is not None
            up = child.stdout.readline()
            if not up and child.stderr is not None:
                pytest.skip(f"bwrap: {child.stderr.read().decode()}")
            try:
                pid = int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()[0])
                if right:
                    verify_inside([decision], pid)
                else:
                    with pytest.raises(EngineError, match="something else"):
                        verify_inside([decision], pid)
            finally:
                child.stdin.close()
